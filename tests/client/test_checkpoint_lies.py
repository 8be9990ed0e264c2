"""Downloads from a server that lies: about names, contents, checksums and sizes."""

from __future__ import annotations

import gzip
import hashlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import pytest

from tinkergate.v1 import (
    CapabilitiesServiceServicer,
    CheckpointFile,
    CheckpointServiceServicer,
    GetCapabilitiesResponse,
    ListCheckpointFilesResponse,
    ReadCheckpointArchiveResponse,
    ReadCheckpointFileResponse,
    ReadHeader,
    add_CapabilitiesServiceServicer_to_server,
    add_CheckpointServiceServicer_to_server,
)
from tinkergate_client import Client, TinkergateError, connect

PATH = "tinker://s:train:0/weights/a"


@dataclass
class Liar:
    """What the server tells."""

    files: dict[str, bytes] = field(default_factory=dict)
    sha256: bytes = b""
    sizes: dict[str, int] = field(default_factory=dict)
    archive: bytes = b""
    codes: list[grpc.StatusCode] = field(default_factory=list)
    """How the next reads end, each after one piece."""
    asked: list[Any] = field(default_factory=list)


class _Capabilities(CapabilitiesServiceServicer):
    def GetCapabilities(self, request: Any, context: Any) -> Any:  # noqa: N802
        return GetCapabilitiesResponse()


class _Checkpoints(CheckpointServiceServicer):
    def __init__(self, liar: Liar) -> None:
        self._liar = liar

    def ListCheckpointFiles(self, request: Any, context: Any) -> Any:  # noqa: N802
        files = [
            CheckpointFile(name=name, size_bytes=len(data), etag="e")
            for name, data in self._liar.files.items()
        ]
        return ListCheckpointFilesResponse(files=files)

    def ReadCheckpointFile(self, request: Any, context: Any) -> Any:  # noqa: N802
        liar = self._liar
        liar.asked.append(request)
        data = liar.files[request.name]
        size = liar.sizes.get(request.name, len(data))
        yield ReadCheckpointFileResponse(
            header=ReadHeader(size_bytes=size, etag="e", sha256=liar.sha256)
        )
        for start in range(request.offset, len(data), 2):
            yield ReadCheckpointFileResponse(data=data[start : start + 2])
            if liar.codes:
                context.abort(liar.codes.pop(0), "broken off")

    def ReadCheckpointArchive(self, request: Any, context: Any) -> Any:  # noqa: N802
        data = self._liar.archive
        yield ReadCheckpointArchiveResponse(header=ReadHeader(size_bytes=len(data), etag="e"))
        yield ReadCheckpointArchiveResponse(data=data[request.offset :], contents_crc32=0)


@pytest.fixture
def liar() -> Liar:
    return Liar()


@pytest.fixture
def client(liar: Liar) -> Iterator[Client]:
    server = grpc.server(ThreadPoolExecutor(4))
    add_CapabilitiesServiceServicer_to_server(_Capabilities(), server)
    add_CheckpointServiceServicer_to_server(_Checkpoints(liar), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        with connect(f"127.0.0.1:{port}", patience=5) as connected:
            yield connected
    finally:
        server.stop(0).wait()


@pytest.mark.parametrize(
    "name", ["../up", "/etc/passwd", "C:\\x", "a/../../b", ".bashrc", "NUL", "a\nb", ""]
)
def test_a_name_that_leads_elsewhere_ends_it_before_anything_is_read(
    client: Client, liar: Liar, tmp_path: Path, name: str
) -> None:
    liar.files = {"fine": b"1", name: b"2"}
    with pytest.raises(TinkergateError) as caught:
        client.checkpoints.download(PATH, tmp_path / "a")
    assert caught.value.reason == "UNSAFE_FILE_NAME"
    assert liar.asked == []
    assert list(tmp_path.iterdir()) == []


def test_contents_that_are_not_those_of_the_sha256_are_thrown_away(
    client: Client, liar: Liar, tmp_path: Path
) -> None:
    liar.files = {"weights": b"12345"}
    liar.sha256 = hashlib.sha256(b"54321").digest()
    with pytest.raises(TinkergateError) as caught:
        client.checkpoints.download(PATH, tmp_path)
    assert caught.value.reason == "CHECKSUM_MISMATCH"
    assert caught.value.code is grpc.StatusCode.DATA_LOSS
    assert not (tmp_path / "weights").exists()
    # Nothing of it is gone on with.
    liar.sha256 = hashlib.sha256(b"12345").digest()
    (got,) = client.checkpoints.download(PATH, tmp_path)
    assert liar.asked[-1].offset == 0
    assert got.verified
    assert (tmp_path / "weights").read_bytes() == b"12345"


def test_without_a_sha256_it_is_said_that_nothing_was_checked(
    client: Client, liar: Liar, tmp_path: Path
) -> None:
    liar.files = {"weights": b"12345"}
    (got,) = client.checkpoints.download(PATH, tmp_path)
    assert not got.verified
    assert got.sha256 == hashlib.sha256(b"12345").hexdigest()


@pytest.mark.parametrize("spoil", ["a byte", "the sum", "the end", "more", "all"])
def test_an_archive_whose_checksum_is_another_is_thrown_away(
    client: Client, liar: Liar, tmp_path: Path, spoil: str
) -> None:
    whole = gzip.compress(bytes(range(256)) * 40, 0)
    liar.archive = {
        "a byte": whole[:500] + b"\xff" + whole[501:],
        "the sum": whole[:-8] + b"\0\0\0\0" + whole[-4:],
        "the end": whole[:-9],
        "more": whole + b"\0",
        "all": b"<html>not found</html>",
    }[spoil]
    with pytest.raises(TinkergateError) as caught:
        client.checkpoints.download_archive(PATH, tmp_path / "a.tar.gz")
    assert caught.value.reason == "CHECKSUM_MISMATCH"
    assert not (tmp_path / "a.tar.gz").exists()
    liar.archive = whole
    assert client.checkpoints.download_archive(PATH, tmp_path / "a.tar.gz").verified


@pytest.mark.parametrize("code", ["INTERNAL", "UNKNOWN", "UNAVAILABLE", "CANCELLED"])
def test_a_stream_that_breaks_off_in_any_way_is_taken_up_again(
    client: Client, liar: Liar, tmp_path: Path, code: str
) -> None:
    liar.files = {"weights": b"123456789"}
    liar.codes = [grpc.StatusCode[code]] * 3
    client.checkpoints.download(PATH, tmp_path)
    assert (tmp_path / "weights").read_bytes() == b"123456789"
    assert [each.offset for each in liar.asked] == [0, 2, 4, 6]
    assert {each.expected_etag for each in liar.asked} == {"e"}


def test_a_stream_that_never_gets_further_is_given_up(
    client: Client, liar: Liar, tmp_path: Path
) -> None:
    liar.files = {"weights": b"12345"}
    liar.sizes = {"weights": 6}
    client._connection.patience = 0.3
    with pytest.raises(TinkergateError, match="ended before its end"):
        client.checkpoints.download(PATH, tmp_path)
    assert not (tmp_path / "weights").exists()
