"""Backends that are down, slow or silent do not stop the gateway, and come back."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from tinkergate.core import backends as backends_module
from tinkergate.core.backends import BackendOpening
from tinkergate.core.model_names import ModelName
from tinkergate.core.router import Router
from tinkergate.errors import GatewayError, Kind
from tinkergate.v1 import BackendKind, ErrorReason


def down(words: str = "connection refused") -> GatewayError:
    return GatewayError(Kind.UNAVAILABLE, ErrorReason.ERROR_REASON_BACKEND_UNAVAILABLE, words)


class Host:
    """A router on backends of the books, with the checkpoints that it was told of."""

    def __init__(self, backends: list[Any], **settings: Any) -> None:
        self.router = Router(backends, **settings)
        self.held: list[str] = []

    async def start(self) -> None:
        await self.router.backends.start(
            lambda _name: [], lambda backend, _held: self.held.append(backend.name)
        )

    async def close(self) -> None:
        await self.router.backends.close()


@pytest.fixture
async def pair(open_house: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Two backends, and attempts to start that follow at once."""
    monkeypatch.setattr(backends_module, "RETRY_SECONDS", (0.0, 0.0, 0.0))
    kind = type((await open_house()).backend)
    return [kind(name, folder=tmp_path) for name in ("first", "second")]


async def test_one_that_is_down_is_listed_refused_and_taken_up_later(
    pair: list[Any], until: Any
) -> None:
    first, second = pair
    attempts: list[int] = []
    is_up = False
    start = second.start

    async def fragile(*known: Any) -> None:
        attempts.append(1)
        if not is_up:
            raise down()
        await start(*known)

    second.start = fragile
    host = Host(pair, names=[ModelName("public", "second", "accounts/small")])
    await host.start()
    assert host.held == ["first"]
    told = {each.name: each.unavailable for each in host.router.capabilities()}
    assert told == {"first": "", "second": "connection refused"}
    assert {model.backend for model in host.router.models} == {"first"}
    for route in (host.router.route("public"), host.router.route("small", "second")):
        with pytest.raises(GatewayError, match="'second' is unavailable: connection") as caught:
            await route
        assert caught.value.kind is Kind.UNAVAILABLE
        assert caught.value.backend == "second"
        assert caught.value.retryable
    # A name that nobody knows may be that of a model of the one that is down.
    with pytest.raises(GatewayError) as caught:
        await host.router.route("nobody knows")
    assert caught.value.kind is Kind.UNAVAILABLE
    assert (await host.router.route("small")).backend is first

    await until(lambda: len(attempts) > 3)
    is_up = True
    await until(lambda: "second" in host.held)
    assert (await host.router.route("public")).backend is second
    assert [each.unavailable for each in host.router.capabilities()] == ["", ""]
    assert second.events == ["start"]
    await host.close()
    assert (first.events[-1], second.events[-1]) == ("close", "close")


async def test_one_that_cannot_be_opened_is_opened_later(pair: list[Any], until: Any) -> None:
    first, second = pair
    is_there = False

    async def open_() -> Any:
        if not is_there:
            raise down("no such folder")
        return second

    host = Host([first, BackendOpening("second", BackendKind.BACKEND_KIND_LOCAL, open_)])
    await host.start()
    listed = host.router.capabilities()[1]
    assert (listed.name, listed.kind) == ("second", BackendKind.BACKEND_KIND_LOCAL)
    assert listed.unavailable == "no such folder"
    is_there = True
    await until(lambda: "second" in host.held)
    assert (await host.router.route("small", "second")).backend is second
    await host.close()


async def test_a_start_that_went_well_is_not_repeated(pair: list[Any], until: Any) -> None:
    first, _ = pair
    models, silent = first.models, True

    async def sometimes() -> Any:
        if silent:
            raise down()
        return await models()

    first.models = sometimes
    host = Host([first])
    await host.start()
    assert host.router.models == []
    silent = False
    await until(lambda: host.held == ["first"])
    assert first.events == ["start"]
    await host.close()


async def test_one_that_does_not_answer_delays_the_start_for_a_while_only(
    pair: list[Any], monkeypatch: pytest.MonkeyPatch, until: Any
) -> None:
    monkeypatch.setattr(backends_module, "START_SECONDS", 0.05)
    first, second = pair
    answer = asyncio.Event()

    async def slow(*known: Any) -> None:
        await answer.wait()

    second.start = slow
    capabilities = second.capabilities

    def elsewhere() -> Any:
        told = capabilities()
        told.kind = BackendKind.BACKEND_KIND_MINT
        return told

    second.capabilities = elsewhere
    host = Host([first, second])
    await host.start()
    assert host.router.capabilities()[1].unavailable == "no answer within 0.05 s"
    answer.set()
    await until(lambda: "second" in host.held)
    await host.close()


async def test_one_that_falls_silent_keeps_its_models(pair: list[Any]) -> None:
    first, second = pair
    host = Host(pair)
    await host.start()
    models = first.models

    async def silent() -> Any:
        raise down("no route")

    first.models = silent
    await host.router.refresh(max_age=0)
    assert host.router.capabilities()[0].unavailable == "no route"
    assert (await host.router.route("small", "first")).backend is first
    assert (await host.router.route("small", "second")).backend is second
    first.models = models
    await host.router.refresh(max_age=0)
    assert host.router.capabilities()[0].unavailable == ""
    await host.close()


async def test_lists_are_asked_for_seldom_together_and_for_a_bounded_time(
    pair: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backends_module, "MODELS_SECONDS", 0.05)
    first, second = pair
    host = Host(pair)
    await host.start()
    asked: list[str] = []
    both = asyncio.Event()
    models = first.models

    async def counted() -> Any:
        asked.append("first")
        await both.wait()
        return await models()

    async def never() -> Any:
        asked.append("second")
        both.set()
        await asyncio.Event().wait()

    first.models, second.models = counted, never
    await host.router.refresh()
    assert asked == []  # the start was only now
    await asyncio.gather(*(host.router.refresh(max_age=0) for _ in range(5)))
    assert sorted(asked) == ["first", "second"]
    assert "within 0.05 s" in host.router.capabilities()[1].unavailable
    await host.router.refresh()
    assert len(asked) == 2
    await host.close()
