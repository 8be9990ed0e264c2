from __future__ import annotations

import gzip
import io
import tarfile
from collections.abc import AsyncIterator, Mapping

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinkergate.core.archives import ARCHIVES_KEPT, MARKS, Archive, Checksums, Marks, Member

BLOCK = 65_535
LONG = "/".join(["folder" * 9] * 3) + "/file"
"""A name that a plain header cannot hold."""


class Files:
    """What is to be packed, and how much of it was read."""

    def __init__(self, contents: Mapping[str, bytes], piece: int = 1000) -> None:
        self.contents = contents
        self.piece = piece
        self.bytes_read = 0
        members = [Member(name, len(data)) for name, data in contents.items()]
        self.archive = Archive(members, 1_700_000_000)

    async def read(self, name: str, offset: int) -> AsyncIterator[bytes]:
        data = self.contents[name]
        for start in range(offset, len(data), self.piece):
            part = data[start : start + self.piece]
            self.bytes_read += len(part)
            yield part

    async def packed(
        self,
        offset: int = 0,
        end: int | None = None,
        *,
        checksum: int | None = None,
        marks: Marks | None = None,
    ) -> bytes:
        self.bytes_read = 0
        reading = self.archive.read(self.read, offset, end, checksum=checksum, marks=marks)
        made = b"".join([stretch.data async for stretch in reading])
        wanted = self.archive.size if end is None else min(end, self.archive.size)
        assert len(made) == wanted - offset
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
    made = await Files(contents, piece if sum(sizes) < 1000 else max(piece, 4096)).packed()
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
    files = Files(contents)
    whole = await files.packed()
    assert await Files(contents, piece=77).packed() == whole
    for offset in (1, 9, 10, 15, 65_000, 65_550, len(whole) - 1, len(whole)):
        assert await files.packed(offset) == whole[offset:]


EDGES = [
    place + around
    for place in (0, 10, 10 + 5 + BLOCK, 10 + 2 * (5 + BLOCK))
    for around in (-6, -5, -1, 0, 1, 4, 5, 6)
    if place + around >= 0
]


@pytest.mark.parametrize("size", [BLOCK - 1536, BLOCK + 700, 2 * BLOCK - 1536])
async def test_any_part_is_that_of_the_whole(size: int) -> None:
    """Whatever it begins and ends with: the header of the archive, of a block, the checksum."""
    files = Files({"a": bytes(i % 249 for i in range(size)), "b": b"y" * 9}, piece=10_000)
    whole = await files.packed()
    ends = [len(whole) - left for left in (0, 1, 7, 8, 9)]
    places = sorted({place for place in (*EDGES, *ends) if place <= len(whole)})
    for first in places:
        for end in places:
            if first <= end:
                assert await files.packed(first, end) == whole[first:end], (first, end)


async def test_a_part_that_is_not_the_end_takes_no_more_than_that_part() -> None:
    files = Files({"a": bytes(1_000_000), "b": bytes(1_000_000)}, piece=10_000)
    whole = await files.packed()
    assert files.bytes_read == 2_000_000
    assert await files.packed(1_500_000, 1_600_000) == whole[1_500_000:1_600_000]
    assert files.bytes_read <= 100_000 + BLOCK + 10_000
    assert await files.packed(0, 5000) == whole[:5000]
    assert files.bytes_read <= 10_000


async def test_the_rest_is_read_alone_where_the_sum_before_it_is_known() -> None:
    files = Files({"a": bytes(i % 251 for i in range(500_000)), "b": bytes(500_000)}, 10_000)
    whole = await files.packed()
    at, sums = 0, {}
    async for stretch in files.archive.read(files.read):
        at += len(stretch.data)
        sums[at] = stretch.checksum
    assert at == len(whole)
    for offset, checksum in sums.items():
        assert await files.packed(offset, checksum=checksum) == whole[offset:]
        assert files.bytes_read <= max(len(whole) - offset, 0) + 10_000
    wrong = await files.packed(600_000, checksum=1)
    assert wrong[:-8] == whole[600_000:-8]
    assert wrong[-8:-4] != whole[-8:-4]


async def test_whoever_came_before_saves_a_later_one_the_reading(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("tinkergate.core.archives.MARK_BYTES", 50_000)
    files = Files({"a": bytes(i % 251 for i in range(900_000))}, 10_000)
    whole = await Files(files.contents).packed()
    marks = Marks(900_000)
    first = files.archive.read(files.read, marks=marks)
    got = 0
    async for stretch in first:
        got += len(stretch.data)
        if got > 700_000:
            break
    await first.aclose()
    # From a place before the last mark, from one after it, and from the end.
    for offset in (400_000, 690_000, got, len(whole) - 3):
        assert await files.packed(offset, marks=marks) == whole[offset:]
        assert files.bytes_read <= len(whole) - offset + 60_000
    # What a caller says is not what others go by.
    await files.packed(500_000, checksum=7, marks=marks)
    assert await files.packed(600_000, marks=marks) == whole[600_000:]
    assert files.bytes_read <= len(whole) - 600_000 + 60_000


def test_marks_are_bounded() -> None:
    marks = Marks(1 << 40)
    for position in range(0, 1 << 40, 1 << 28):
        marks.note(position, position % 97)
    assert len(marks._sums) <= MARKS + 1
    position, checksum = marks.before((1 << 39) + 5)
    assert 0 <= (1 << 39) + 5 - position <= 2 * (1 << 40) // MARKS
    assert checksum == position % 97
    kept = Checksums()
    first = kept.of("0", 10)
    assert kept.of("0", 10) is first
    for number in range(ARCHIVES_KEPT):
        kept.of(str(number + 1), 10)
    assert kept.of("0", 10) is not first


async def test_little_is_held_at_once() -> None:
    """However large the file is, and however small or large the pieces it comes in."""
    size, piece = 40 << 20, 1 << 20
    archive = Archive([Member("a", size)], 0)
    read = 0

    async def reader(_: str, offset: int) -> AsyncIterator[bytes]:
        nonlocal read
        for _ in range(offset, size, piece):
            read += piece
            yield bytes(piece)

    sent = 0
    async for stretch in archive.read(reader):
        sent += len(stretch.data)
        assert len(stretch.data) <= piece + 2 * BLOCK
        assert read - sent <= piece
    assert sent == archive.size


async def test_a_reader_that_fails_is_heard() -> None:
    async def reader(_: str, __: int) -> AsyncIterator[bytes]:
        yield b"ab"
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        _ = [part async for part in Archive([Member("a", 5)], 0).read(reader)]


async def test_whoever_leaves_lets_go_of_the_file() -> None:
    closed = False

    async def reader(_: str, __: int) -> AsyncIterator[bytes]:
        nonlocal closed
        try:
            while True:
                yield bytes(100)
        finally:
            closed = True

    reading = Archive([Member("a", 5000)], 0).read(reader)
    for _ in range(3):
        await anext(reading)
    await reading.aclose()
    assert closed
