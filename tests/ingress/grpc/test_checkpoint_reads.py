"""Files and archives of checkpoints as gRPC streams: a real door on a real gateway, whose backend
makes large files up as they are read and counts."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import pytest
from accounting_backend import BASE, AccountingBackend

from tinkergate.core.archives import Checksums
from tinkergate.core.gateway import Gateway
from tinkergate.ingress.grpc.door import GrpcDoor
from tinkergate.ingress.grpc.settings import GrpcSettings
from tinkergate.store import Store
from tinkergate.v1 import (
    CheckpointFile,
    CheckpointServiceStub,
    CreateModelRequest,
    CreateSessionRequest,
    DeleteCheckpointRequest,
    GetCheckpointArchiveUrlRequest,
    ListCheckpointFilesRequest,
    ReadCheckpointArchiveRequest,
    ReadCheckpointFileRequest,
    ReadHeader,
    SaveStateRequest,
    WaitOperationRequest,
)

MIB = 1 << 20
BIG = "big.bin"
PIECE = 1 << 20


def stretch(size: int, offset: int) -> bytes:
    """Bytes of the large file, which differ from place to place."""
    block = 1 << 12
    first = offset // block
    count = (offset + size - 1) // block - first + 1
    made = b"".join((first + n).to_bytes(8, "big") * (block // 8) for n in range(count))
    return made[offset - first * block :][:size]


class LargeFiles(AccountingBackend):
    """Has a file of `size` bytes in each checkpoint."""

    size = 5 * MIB + 3
    bytes_read = 0
    open_reads = 0
    hold = 1 << 62
    """How much is handed out before `read_gate` is waited for."""

    async def checkpoint_files(self, path: str) -> Sequence[CheckpointFile]:
        return [
            CheckpointFile(name=BIG, size_bytes=self.size),
            *await super().checkpoint_files(path),
        ]

    async def read_checkpoint_file(
        self, path: str, name: str, offset: int = 0
    ) -> AsyncIterator[bytes]:
        if name != BIG:
            async for piece in super().read_checkpoint_file(path, name, offset):
                yield piece
            return
        self.open_reads += 1
        try:
            for start in range(offset, self.size, PIECE):
                if self.bytes_read >= self.hold:
                    await self.read_gate.wait()
                piece = stretch(min(PIECE, self.size - start), start)
                self.bytes_read += len(piece)
                yield piece
                await asyncio.sleep(0)
        finally:
            self.open_reads -= 1


@dataclass
class Got:
    """What a stream told."""

    header: ReadHeader
    data: bytes = b""
    sums: dict[int, int] = field(default_factory=dict)
    """The checksum at each offset at which a message ended."""


class House:
    """A gateway, its door, a checkpoint and a caller."""

    def __init__(
        self, gateway: Gateway, backend: LargeFiles, stub: CheckpointServiceStub, path: str
    ) -> None:
        self.gateway = gateway
        self.backend = backend
        self.stub = stub
        self.path = path

    def archive(self, **fields: Any) -> Any:
        return self.stub.ReadCheckpointArchive(
            ReadCheckpointArchiveRequest(path=self.path, **fields)
        )

    def file(self, name: str = BIG, **fields: Any) -> Any:
        return self.stub.ReadCheckpointFile(
            ReadCheckpointFileRequest(path=self.path, name=name, **fields)
        )

    async def read(self, call: Any, offset: int = 0) -> Got:
        """All of a stream that begins at `offset`."""
        first = await call.read()
        assert first.WhichOneof("part") == "header"
        got, pieces = Got(first.header), []
        while (message := await call.read()) is not grpc.aio.EOF:
            assert message.WhichOneof("part") == "data"
            assert len(message.data) <= MIB
            pieces.append(message.data)
            offset += len(message.data)
            got.sums[offset] = getattr(message, "contents_crc32", 0)
        got.data = b"".join(pieces)
        return got

    async def until(self, is_met: Any) -> None:
        while not is_met():  # noqa: ASYNC110 - what is waited for has no event of its own
            await asyncio.sleep(0.01)


async def to_the_end(call: Any) -> None:
    while await call.read() is not grpc.aio.EOF:
        pass


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    backend = LargeFiles(folder=tmp_path)
    gateway = Gateway([backend], Store(f"sqlite:///{tmp_path}/gateway.db"), None, BASE)
    await gateway.start()
    door = GrpcDoor(GrpcSettings(listen="127.0.0.1:0"), max_message_bytes=64 * MIB)
    address = await door.start(gateway)
    try:
        session = (await gateway.sessions.create(CreateSessionRequest())).session.session_id
        made = await gateway.models.create(CreateModelRequest(session_id=session, base_model=BASE))
        await gateway.operations.wait(WaitOperationRequest(name=made.name))
        saving = await gateway.training.submit(SaveStateRequest(model_id=made.model_id, name="a"))
        saved = await gateway.operations.wait(WaitOperationRequest(name=saving.name))
        async with grpc.aio.insecure_channel(str(address)) as channel:
            stub = CheckpointServiceStub(channel)
            yield House(gateway, backend, stub, saved.operation.save_state.path)
    finally:
        await door.stop(0)
        if "close" not in backend.events:
            await gateway.close(0)


async def test_a_file_is_read_from_any_offset(house: House) -> None:
    got = await house.read(house.file())
    assert got.data == stretch(house.backend.size, 0)
    assert got.header.size_bytes == house.backend.size
    assert got.header.sha256 == b""
    listed = await house.stub.ListCheckpointFiles(ListCheckpointFilesRequest(path=house.path))
    assert {file.name: file.etag for file in listed.files}[BIG] == got.header.etag
    for offset in (1, MIB, house.backend.size - 1, house.backend.size):
        rest = await house.read(house.file(offset=offset, expected_etag=got.header.etag), offset)
        assert rest.header == got.header
        assert rest.data == got.data[offset:]


async def test_an_archive_goes_on_by_the_sum_that_was_told(house: House) -> None:
    got = await house.read(house.archive())
    assert got.header.size_bytes == len(got.data)
    house.backend.bytes_read = 0
    for offset, checksum in got.sums.items():
        before = house.backend.bytes_read
        call = house.archive(offset=offset, expected_etag=got.header.etag, contents_crc32=checksum)
        rest = await house.read(call, offset)
        assert rest.data == got.data[offset:]
        left = max(house.backend.size - offset, 0)
        assert house.backend.bytes_read - before <= left + PIECE + 70_000
    # By another gateway, which has not read it before and is not told.
    house.gateway.checkpoint_files._checksums = Checksums()
    assert (await house.read(house.archive(offset=MIB), MIB)).data == got.data[MIB:]


async def test_another_etag_or_offset_is_refused(house: House, details_of: Any) -> None:
    size = (await house.read(house.file())).header.size_bytes
    for call, code, reason in (
        (house.file(expected_etag="x"), "FAILED_PRECONDITION", "CHECKPOINT_MISMATCH"),
        (house.archive(expected_etag="x"), "FAILED_PRECONDITION", "CHECKPOINT_MISMATCH"),
        (house.file(offset=-1), "INVALID_ARGUMENT", "INVALID_FIELD"),
        (house.file(offset=size + 1), "INVALID_ARGUMENT", "INVALID_FIELD"),
        (house.archive(offset=1 << 40), "INVALID_ARGUMENT", "INVALID_FIELD"),
        (house.file("../value.txt"), "NOT_FOUND", "CHECKPOINT_NOT_FOUND"),
        (house.file(""), "NOT_FOUND", "CHECKPOINT_NOT_FOUND"),
    ):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await house.read(call)
        assert caught.value.code().name == code
        assert details_of(caught.value).info.reason == reason


async def test_a_checkpoint_that_is_deleted_meanwhile_ends_the_stream(
    house: House, details_of: Any
) -> None:
    house.backend.size = 64 * MIB
    for call in (house.file(), house.archive()):
        assert (await call.read()).WhichOneof("part") == "header"
    reading = house.archive()
    for _ in range(4):
        await reading.read()
    await house.gateway.checkpoints.delete(DeleteCheckpointRequest(path=house.path))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await to_the_end(reading)
    assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert details_of(caught.value).info.reason == "CHECKPOINT_MISMATCH"


async def test_no_more_is_read_than_the_caller_takes(house: House) -> None:
    """What is on its way fits into the windows of HTTP/2 and the buffers of sockets."""
    house.backend.size = 400 * MIB
    reading = house.archive()
    digest, taken = hashlib.sha256(), 0
    await reading.read()
    for _ in range(40):
        data = (await reading.read()).data
        taken += len(data)
        digest.update(data)
    settled = -1
    while settled != house.backend.bytes_read:
        settled = house.backend.bytes_read
        await asyncio.sleep(0.3)
    assert house.backend.bytes_read - taken < 32 * MIB
    reading.cancel()
    await house.until(lambda: not house.backend.open_reads)


@pytest.mark.parametrize("how", ["cancel", "deadline"])
async def test_reading_ends_with_the_call(house: House, how: str) -> None:
    house.backend.size = 400 * MIB
    house.backend.hold = MIB
    house.backend.read_gate.clear()
    request = ReadCheckpointFileRequest(path=house.path, name=BIG)
    call = house.stub.ReadCheckpointFile(request, timeout=2 if how == "deadline" else None)
    await call.read()
    await house.until(lambda: house.backend.open_reads == 1)
    if how == "cancel":
        call.cancel()
    with contextlib.suppress(asyncio.CancelledError, grpc.aio.AioRpcError):
        await to_the_end(call)
    await house.until(lambda: not house.backend.open_reads)
    await house.gateway.checkpoint_files.idle()


async def test_a_gateway_that_stops_waits_for_its_readers(house: House, details_of: Any) -> None:
    house.backend.size = 3 * MIB
    house.backend.hold = MIB
    house.backend.read_gate.clear()
    reading = asyncio.create_task(house.read(house.file()))
    await house.until(lambda: house.backend.open_reads == 1)
    closing = asyncio.create_task(house.gateway.close(60))
    await house.until(lambda: house.gateway._admission._closed)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await house.read(house.archive())
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert details_of(caught.value).info.reason == "SHUTTING_DOWN"
    assert not closing.done()
    house.backend.read_gate.set()
    assert (await reading).data == stretch(3 * MIB, 0)
    await closing


async def test_readers_that_the_grace_does_not_suffice_for_are_told(
    house: House, details_of: Any
) -> None:
    house.backend.size = 400 * MIB
    reading = house.file()
    for _ in range(3):
        await reading.read()
    closing = asyncio.create_task(house.gateway.close(0))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await to_the_end(reading)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    told = details_of(caught.value)
    assert told.info.reason == "SHUTTING_DOWN"
    assert told.retry is not None
    await closing


async def test_without_an_http_door_there_are_no_links(house: House, details_of: Any) -> None:
    listed = await house.stub.ListCheckpointFiles(ListCheckpointFilesRequest(path=house.path))
    assert [(file.url, file.HasField("url_expire_time")) for file in listed.files] == [
        ("", False)
    ] * 2
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await house.stub.GetCheckpointArchiveUrl(GetCheckpointArchiveUrlRequest(path=house.path))
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
    assert details_of(caught.value).info.reason == "UNSUPPORTED"
