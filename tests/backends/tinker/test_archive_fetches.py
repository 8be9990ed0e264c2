"""An archive is fetched once, for everybody who wants it, whoever of them goes away meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import io
import tarfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from scripted_service import Asked, Reply, ScriptedService

from tinkergate.backends.tinker import checkpoint_files
from tinkergate.backends.tinker.backend import TinkerBackend
from tinkergate.backends.tinker.settings import TinkerSettings
from tinkergate.errors import GatewayError, Kind
from tinkergate.v1 import Checkpoint

PATH = "tinker://s-1:train:0/weights/ck"
ROUTE = "training_runs/far-m/checkpoints/weights/ck/archive"
LINK = "/links/ck.tar.gz"
DATA = bytes(range(256)) * 4000


def archive() -> bytes:
    written = io.BytesIO()
    with tarfile.open(fileobj=written, mode="w:gz") as out:
        member = tarfile.TarInfo("weights")
        member.size = len(DATA)
        out.addfile(member, io.BytesIO(DATA))
    return written.getvalue()


class Slow:
    """Makes the archive for as long as `made` is false."""

    made = False

    def __call__(self, asked: Asked) -> Reply:
        match asked.route:
            case route if route == ROUTE:
                if not self.made:
                    return Reply({"detail": "being made"}, 503)
                return Reply(status=302, headers={"location": LINK})
            case route if route == LINK:
                return Reply(archive())
            case _:
                return Reply({})


@pytest.fixture
async def service() -> AsyncIterator[ScriptedService]:
    async with ScriptedService(Slow()) as service:
        yield service


@pytest.fixture
async def far(
    service: ScriptedService, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[TinkerBackend]:
    monkeypatch.setattr(checkpoint_files, "BUILDING_PAUSE", 0.01)
    settings = TinkerSettings(
        "far", base_url=service.url, api_key="tml-k", retry_time=3.0, scratch_dir=tmp_path
    )
    backend = TinkerBackend(settings)
    await backend.start([Checkpoint(path=PATH, upstream_path="tinker://far-m/weights/ck")])
    yield backend
    with contextlib.suppress(RuntimeError):
        await backend.close()


def names_in(folder: Path) -> list[str]:
    return [each.name for each in folder.iterdir()]


async def until_asked(service: ScriptedService, times: int) -> None:
    while len(service.of(ROUTE)) < times:  # noqa: ASYNC110 - the service has no event for it
        await asyncio.sleep(0.005)


async def test_a_caller_that_goes_away_does_not_end_it(
    service: ScriptedService, far: TinkerBackend
) -> None:
    first = asyncio.create_task(far.checkpoint_files(PATH))
    await until_asked(service, 1)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    # It goes on without anybody.
    await until_asked(service, len(service.of(ROUTE)) + 2)
    service.script.made = True  # type: ignore[attr-defined]
    while not service.of(LINK):  # noqa: ASYNC110
        await asyncio.sleep(0.005)
    [file] = await far.checkpoint_files(PATH)
    assert (file.name, file.size_bytes) == ("weights", len(DATA))
    assert len(service.of(LINK)) == 1


async def test_a_checkpoint_that_is_deleted_ends_it_and_those_who_wait_are_told(
    service: ScriptedService, far: TinkerBackend, tmp_path: Path
) -> None:
    waiting = asyncio.create_task(far.checkpoint_files(PATH))
    await until_asked(service, 1)
    await far.delete_checkpoint(PATH)
    with pytest.raises(GatewayError, match="it is gone") as caught:
        await waiting
    assert caught.value.kind is Kind.UNAVAILABLE
    assert names_in(tmp_path) == []


async def test_a_backend_that_closes_ends_it(
    service: ScriptedService, far: TinkerBackend, tmp_path: Path
) -> None:
    waiting = asyncio.create_task(far.checkpoint_files(PATH))
    await until_asked(service, 1)
    await far.close()
    with pytest.raises(GatewayError):
        await waiting
    asked = len(service.of(ROUTE))
    await asyncio.sleep(0.05)
    assert len(service.of(ROUTE)) == asked
    assert names_in(tmp_path) == []


async def test_the_size_of_a_file_is_that_of_its_own_bytes(tmp_path: Path) -> None:
    path = "tinker://s-1:train:0/external_weights/ck"

    def answer(asked: Asked) -> Reply:
        if asked.route.endswith("/external_weights_urls"):
            return Reply({"urls": {"adapter_model.safetensors": "/links/adapter"}})
        if asked.route != "/links/adapter":
            return Reply({})
        if asked.headers["accept-encoding"] == "identity":
            return Reply(DATA)
        return Reply(gzip.compress(DATA), headers={"content-encoding": "gzip"})

    async with ScriptedService(answer) as service:
        settings = TinkerSettings(
            "far", base_url=service.url, api_key="tml-k", scratch_dir=tmp_path
        )
        backend = TinkerBackend(settings)
        upstream = "tinker://far-m/external_weights/ck"
        await backend.start([Checkpoint(path=path, upstream_path=upstream)])
        [file] = await backend.checkpoint_files(path)
        assert file.size_bytes == len(DATA)
        pieces = [piece async for piece in backend.read_checkpoint_file(path, file.name, 7)]
        assert b"".join(pieces) == DATA[7:]
        await backend.close()
