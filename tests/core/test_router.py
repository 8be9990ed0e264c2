from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tinkergate.core.router import Router
from tinkergate.errors import GatewayError, Kind
from tinkergate.v1 import ErrorReason, SupportedModel


async def backends(open_house: Any, tmp_path: Path, *names: str) -> list[Any]:
    kind = type((await open_house()).backend)
    return [kind(name, folder=tmp_path) for name in names]


async def test_named_backend_else_the_first_that_serves_it(open_house: Any, tmp_path: Path) -> None:
    first, second = await backends(open_house, tmp_path, "first", "second")
    router = Router([first, second])
    await router.refresh()
    assert (await router.route("small")).backend is first
    assert (await router.route("accounts/small", "second")).backend is second
    assert (await router.route("small")).model.name == "accounts/small"


async def test_another_rule_may_choose(open_house: Any, tmp_path: Path) -> None:
    first, second = await backends(open_house, tmp_path, "first", "second")
    router = Router([first, second], rule=lambda routes: routes[-1])
    assert (await router.route("small")).backend is second


async def test_a_model_that_is_added_later_is_found(open_house: Any, tmp_path: Path) -> None:
    (backend,) = await backends(open_house, tmp_path, "first")
    router = Router([backend])
    with pytest.raises(GatewayError, match="accounts/small") as caught:
        await router.route("new")
    assert caught.value.reason == ErrorReason.ERROR_REASON_BASE_MODEL_NOT_FOUND

    async def models() -> list[SupportedModel]:
        return [SupportedModel(name="new", backend="first", vocab_size=7)]

    backend.models = models
    route = await router.route("new")
    assert route.facts.vocab_size == 7


async def test_unknown_backend(open_house: Any, tmp_path: Path) -> None:
    router = Router(await backends(open_house, tmp_path, "first"))
    with pytest.raises(GatewayError, match="there are: first") as caught:
        await router.route("small", "other")
    assert caught.value.reason == ErrorReason.ERROR_REASON_BACKEND_NOT_FOUND


async def test_two_backends_of_one_name_are_a_mistake(open_house: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="same name"):
        Router(await backends(open_house, tmp_path, "first", "first"))


async def test_a_backend_that_does_not_answer_keeps_its_models(
    open_house: Any, tmp_path: Path
) -> None:
    first, second = await backends(open_house, tmp_path, "first", "second")
    router = Router([first, second])
    await router.refresh()

    async def silent() -> list[SupportedModel]:
        raise GatewayError(
            Kind.UNAVAILABLE, ErrorReason.ERROR_REASON_BACKEND_UNAVAILABLE, "no route"
        )

    first.models = silent
    await router.refresh()
    assert (await router.route("small", "first")).backend is first
    assert (await router.route("small", "second")).backend is second
