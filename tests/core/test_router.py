from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tinkergate.core.model_names import ModelName
from tinkergate.core.router import Router
from tinkergate.errors import GatewayError, Kind
from tinkergate.v1 import Checkpoint, ErrorReason, SupportedModel


async def made(open_house: Any, tmp_path: Path, *names: str) -> list[Any]:
    kind = type((await open_house()).backend)
    return [kind(name, folder=tmp_path) for name in names]


async def started(backends: list[Any], **settings: Any) -> Router:
    router = Router(backends, **settings)
    await router.backends.start(lambda _name: [], lambda _backend, _held: None)
    return router


async def test_named_backend_else_the_first_that_serves_it(open_house: Any, tmp_path: Path) -> None:
    first, second = await made(open_house, tmp_path, "first", "second")
    router = await started([first, second])
    assert (await router.route("small")).backend is first
    assert (await router.route("accounts/small", "second")).backend is second
    assert (await router.route("small")).model.name == "accounts/small"


async def test_the_default_backend_goes_before_the_first(open_house: Any, tmp_path: Path) -> None:
    first, second = await made(open_house, tmp_path, "first", "second")
    router = await started([first, second], default_backend="second")
    assert (await router.route("small")).backend is second
    assert (await router.route("small", "first")).backend is first
    assert router.default_model == "accounts/small"


async def test_another_rule_may_choose(open_house: Any, tmp_path: Path) -> None:
    first, second = await made(open_house, tmp_path, "first", "second")
    router = await started([first, second], rule=lambda routes: routes[-1])
    assert (await router.route("small")).backend is second


async def test_a_named_model_goes_to_its_backend_under_the_backends_own_name(
    open_house: Any, tmp_path: Path
) -> None:
    first, second = await made(open_house, tmp_path, "first", "second")
    name = ModelName("Qwen/Qwen3-8B", "second", "small", ("qwen",), "Qwen/Qwen3-8B")
    router = await started([first, second], names=[name])
    for called in ("Qwen/Qwen3-8B", "qwen"):
        route = await router.route(called)
        assert route.backend is second
        assert route.model.name == "Qwen/Qwen3-8B"
        assert route.upstream_name == route.model.upstream_name == "accounts/small"
        assert route.model.tokenizer_id == "Qwen/Qwen3-8B"
        assert list(route.model.aliases) == ["qwen", "small"]
    # The other backend's model keeps its own name.
    assert (await router.route("accounts/small")).backend is first
    assert (await router.route("accounts/small", "second")).model.name == "Qwen/Qwen3-8B"
    with pytest.raises(GatewayError) as caught:
        await router.route("Qwen/Qwen3-8B", "first")
    assert caught.value.kind is Kind.NOT_FOUND


async def test_a_public_name_hides_another_models_own(open_house: Any, tmp_path: Path) -> None:
    (backend,) = await made(open_house, tmp_path, "first")
    router = await started([backend], names=[ModelName("accounts/frozen", "first", "small")])
    assert [model.name for model in router.models] == ["accounts/frozen"]
    assert (await router.route("accounts/frozen")).upstream_name == "accounts/small"


async def test_checkpoints_are_told_with_public_names(open_house: Any, tmp_path: Path) -> None:
    (backend,) = await made(open_house, tmp_path, "first")
    router = await started([backend], names=[ModelName("public", "first", "small")])
    held = [Checkpoint(path="a", base_model="accounts/small"), Checkpoint(base_model="gone")]
    named = router.publicly_named("first", held)
    assert [each.base_model for each in named] == ["public", "gone"]
    assert held[0].base_model == "accounts/small"


async def test_two_models_of_one_name_are_a_mistake() -> None:
    names = [ModelName("a", "x", "1", ("b",)), ModelName("b", "y", "2")]
    with pytest.raises(ValueError, match="two base models are named 'b'"):
        Router([], names=names)


async def test_a_model_that_is_added_later_is_found(open_house: Any, tmp_path: Path) -> None:
    (backend,) = await made(open_house, tmp_path, "first")
    router = await started([backend], miss_lifetime=0.0)
    with pytest.raises(GatewayError, match="accounts/small") as caught:
        await router.route("new")
    assert caught.value.reason == ErrorReason.ERROR_REASON_BASE_MODEL_NOT_FOUND

    async def models() -> list[SupportedModel]:
        return [SupportedModel(name="new", backend="first", vocab_size=7)]

    backend.models = models
    route = await router.route("new")
    assert route.facts.vocab_size == 7


async def test_unknown_backend(open_house: Any, tmp_path: Path) -> None:
    router = await started(await made(open_house, tmp_path, "first"))
    with pytest.raises(GatewayError, match="there are: first") as caught:
        await router.route("small", "other")
    assert caught.value.reason == ErrorReason.ERROR_REASON_BACKEND_NOT_FOUND


async def test_two_backends_of_one_name_are_a_mistake(open_house: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="same name"):
        Router(await made(open_house, tmp_path, "first", "first"))
