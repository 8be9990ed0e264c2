from __future__ import annotations

import gzip
import io
import tarfile
from collections.abc import AsyncIterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinkergate.core.archives import Archive, Member

BLOCK = 65_535
LONG = "/".join(["folder" * 9] * 3) + "/file"
"""A name that a plain header cannot hold."""


async def packed(contents: dict[str, bytes], offset: int = 0, piece: int = 1000) -> bytes:
    archive = Archive([Member(name, len(data)) for name, data in contents.items()], 1_700_000_000)

    async def read(name: str) -> AsyncIterator[bytes]:
        data = contents[name]
        for start in range(0, len(data), piece):
            yield data[start : start + piece]

    made = b"".join([part async for part in archive.read(offset, read)])
    assert len(made) == archive.size - offset
    return made


@given(
    sizes=st.lists(
        st.sampled_from([0, 1, 511, 512, 513, BLOCK - 1536, BLOCK - 1535, BLOCK, 200_000]),
        max_size=5,
    ),
    piece=st.sampled_from([1, 4096, 1 << 20]),
)
@settings(deadline=None, max_examples=25)
async def test_it_is_a_tar_gz_of_the_size_that_was_said(sizes: list[int], piece: int) -> None:
    names = ["a.json", "weights.safetensors", LONG, "in/a/folder", "ü.txt"]
    contents = {
        name: bytes((i * 7 + size) % 251 for i in range(size))
        for name, size in zip(names, sizes, strict=False)
    }
    made = await packed(contents, piece=piece if sum(sizes) < 1000 else max(piece, 4096))
    with tarfile.open(fileobj=io.BytesIO(made), mode="r:gz") as tar:
        members = tar.getmembers()
        assert [member.name for member in members] == list(contents)
        for member in members:
            file = tar.extractfile(member)
            assert file is not None
            assert file.read() == contents[member.name]
            assert (member.mtime, member.mode, member.uid) == (1_700_000_000, 0o644, 0)
            assert member.isfile()
    assert gzip.decompress(made)  # to its end, with its checksum


async def test_the_same_files_give_the_same_bytes_from_any_offset_on() -> None:
    contents = {"a": b"x" * 100_000, "b": bytes(300), "c": b""}
    whole = await packed(contents)
    assert await packed(contents, piece=77) == whole
    for offset in (1, 9, 10, 15, 65_000, 65_550, len(whole) - 1, len(whole)):
        assert await packed(contents, offset) == whole[offset:]


async def test_little_is_held_at_once() -> None:
    """However large the file is, and however small or large the pieces it comes in."""
    size, piece = 40 << 20, 1 << 20
    archive = Archive([Member("a", size)], 0)
    read = 0

    async def reader(_: str) -> AsyncIterator[bytes]:
        nonlocal read
        for _ in range(size // piece):
            read += piece
            yield bytes(piece)

    sent = 0
    async for part in archive.read(0, reader):
        sent += len(part)
        assert len(part) <= piece + 2 * BLOCK
        assert read - sent <= piece + BLOCK
    assert sent == archive.size


async def test_a_reader_that_fails_is_heard() -> None:
    async def reader(_: str) -> AsyncIterator[bytes]:
        yield b"ab"
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        _ = [part async for part in Archive([Member("a", 5)], 0).read(0, reader)]
