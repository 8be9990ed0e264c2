"""Archives that the service is still making, or cannot make, or whose link is bad: answers that our
own gateway never gives."""

from __future__ import annotations

import asyncio
import hashlib
import io
import tarfile
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

import pytest
from scripted_service import Asked, Reply, ScriptedService

from tinkergate.backends import pauses
from tinkergate.backends.tinker import checkpoint_files
from tinkergate.backends.tinker.backend import TinkerBackend
from tinkergate.backends.tinker.settings import TinkerSettings
from tinkergate.errors import GatewayError, Kind
from tinkergate.v1 import Checkpoint

PATH = "tinker://s-1:train:0/weights/ck"
ROUTE = "training_runs/far-m/checkpoints/weights/ck/archive"
LINK = "/links/ck.tar.gz?signature=abc"
FILES = {"adapter_config.json": b'{"r": 4}', "adapter_model.safetensors": bytes(range(256)) * 900}


def archive() -> bytes:
    written = io.BytesIO()
    with tarfile.open(fileobj=written, mode="w:gz") as out:
        for name, data in FILES.items():
            member = tarfile.TarInfo(f"ck/{name}")
            member.size = len(data)
            out.addfile(member, io.BytesIO(data))
    return written.getvalue()


class Archives:
    """A service that has one checkpoint, and answers for its archive what a test says."""

    def __init__(self) -> None:
        self.link: list[Reply] = []
        """The answers to be given for the link first."""
        self.bodies: list[Reply] = []
        """The answers to be given under the link first."""

    def __call__(self, asked: Asked) -> Reply:
        match asked.route:
            case "client/config":
                return Reply({})
            case route if route == ROUTE:
                return (
                    self.link.pop(0) if self.link else Reply(status=302, headers={"location": LINK})
                )
            case route if route == LINK:
                return self.bodies.pop(0) if self.bodies else Reply(archive())
            case _:
                return Reply({"detail": "no such route"}, 404)


@pytest.fixture
async def service() -> AsyncIterator[ScriptedService]:
    async with ScriptedService(Archives()) as service:
        yield service


@pytest.fixture
async def far(
    service: ScriptedService, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[TinkerBackend]:
    """A backend that knows the checkpoint, and waits shortly."""
    monkeypatch.setattr(pauses, "FIRST_PAUSE", 0.01)
    monkeypatch.setattr(checkpoint_files, "BUILDING_PAUSE", 0.01)
    settings = TinkerSettings(
        "far", base_url=service.url, api_key="tml-k", retry_time=3.0, scratch_dir=tmp_path
    )
    backend = TinkerBackend(settings)
    await backend.start([Checkpoint(path=PATH, upstream_path="tinker://far-m/weights/ck")])
    yield backend
    await backend.close()


async def read(backend: TinkerBackend, name: str) -> bytes:
    parts = []
    async with aclosing(backend.read_checkpoint_file(PATH, name)) as pieces:  # type: ignore[type-var]
        async for piece in pieces:
            parts.append(piece)
    return b"".join(parts)


async def check_files(backend: TinkerBackend) -> None:
    listed = {file.name: file for file in await backend.checkpoint_files(PATH)}
    assert set(listed) == set(FILES)
    for name, data in FILES.items():
        assert listed[name].size_bytes == len(data)
        assert listed[name].sha256 == hashlib.sha256(data).digest()
        assert await read(backend, name) == data


async def test_an_archive_that_is_being_made_is_waited_for(
    service: ScriptedService, far: TinkerBackend
) -> None:
    service.script.link = [  # type: ignore[attr-defined]
        Reply({"detail": "being made"}, 503),
        Reply({"detail": "being made"}, 409, {"retry-after-ms": "20"}),
        Reply({"detail": "gateway"}, 502),
        Reply({"url": LINK, "expires": "2030-01-01T00:00:00Z"}),
    ]
    await check_files(far)
    asked = service.of(ROUTE)
    assert len(asked) == 4
    assert {each.headers["x-api-key"] for each in asked} == {"tml-k"}
    # Fetched once for all files, by a link that is somebody else's: it is not told the key.
    [fetched] = service.of(LINK)
    assert "x-api-key" not in fetched.headers
    assert "authorization" not in fetched.headers


async def test_all_who_want_it_wait_for_one_archive(
    service: ScriptedService, far: TinkerBackend
) -> None:
    service.script.link = [Reply({"detail": "being made"}, 503)] * 3  # type: ignore[attr-defined]
    await asyncio.gather(*(read(far, name) for name in (*FILES, *FILES)))
    assert len(service.of(ROUTE)) == 4
    assert len(service.of(LINK)) == 1


async def test_an_archive_that_never_gets_made_is_given_up(
    service: ScriptedService, far: TinkerBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint_files, "BUILDING_TIME", 0.1)
    building = [Reply({"detail": "being made, the 7th"}, 503)] * 1000
    service.script.link = building  # type: ignore[attr-defined]
    with pytest.raises(GatewayError, match=r"the archive of .*: being made, the 7th") as raised:
        await far.checkpoint_files(PATH)
    assert raised.value.kind is Kind.UNAVAILABLE
    assert len(service.of(ROUTE)) > 1
    # The next caller asks anew.
    service.script.link = []  # type: ignore[attr-defined]
    await check_files(far)


async def test_one_that_is_not_there_is_told_at_once(
    service: ScriptedService, far: TinkerBackend
) -> None:
    service.script.link = [Reply({"detail": "no such checkpoint"}, 404)]  # type: ignore[attr-defined]
    with pytest.raises(GatewayError, match="no such checkpoint") as raised:
        await far.checkpoint_files(PATH)
    assert raised.value.kind is Kind.NOT_FOUND
    assert len(service.of(ROUTE)) == 1


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        (Reply({"detail": "expired"}, 403), "was answered 403"),
        (Reply(b"<html>sorry</html>"), "cannot be unpacked"),
        (Reply(b""), "cannot be unpacked"),
    ],
)
async def test_a_link_that_holds_no_archive_leaves_nothing_behind(
    body: Reply, problem: str, service: ScriptedService, far: TinkerBackend, tmp_path: Any
) -> None:
    service.script.bodies = [body]  # type: ignore[attr-defined]
    with pytest.raises(GatewayError, match=problem):
        await far.checkpoint_files(PATH)
    assert list(tmp_path.iterdir()) == []
    await check_files(far)
