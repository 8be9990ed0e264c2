"""Archives of files, made while they are read.

A .tar.gz whose deflate blocks are stored as they are (RFC 1951, 3.2.4): adapters are floating-point
numbers, of which compression takes a tenth at most, and at a fraction of the speed of a network. In
return the size is known before a byte is read, nothing is kept in memory or on disk, the same files
give the same bytes, and every byte but the last eight is of one place in the files: a part of an
archive is made of that part of them.

The last eight bytes hold a checksum of all that is packed. Whoever reads an archive to its end from
the middle needs the sum of what comes before: the caller may know it, or an earlier reader may have
come that far (`Checksums`); else the files are read from their beginning.
"""

from __future__ import annotations

import struct
import tarfile
import zlib
from collections import OrderedDict
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Final, NamedTuple

_GZIP_HEADER: Final = b"\x1f\x8b\x08\x00" + bytes(4) + b"\x00\xff"
"""Deflate, no name, no time, of no system in particular (RFC 1952)."""
_TRAILER: Final = struct.Struct("<II")
"""The checksum and the size of what is packed."""
_BLOCK: Final = 65_535
"""What one stored block can hold."""
_BLOCK_HEADER: Final = struct.Struct("<BHH")
"""Whether it is the last; the length; its complement."""
_END: Final = bytes(2 * tarfile.BLOCKSIZE)
"""What a tar file ends with."""

MARK_BYTES: Final = 16 << 20
"""How far apart the places are of which a checksum is kept, at least."""
MARKS: Final = 512
"""How many of them are kept of one archive."""
ARCHIVES_KEPT: Final = 64
"""Of how many archives."""

ReadMember = Callable[[str, int], AsyncIterator[bytes]]
"""The bytes of a file from an offset on."""


@dataclass(frozen=True)
class Member:
    """A file to be packed."""

    name: str
    size: int


class Stretch(NamedTuple):
    """Some bytes of an archive."""

    data: bytes
    checksum: int
    """The CRC-32 of what the archive unpacks to up to their end; 0 where it is not known because
    the archive is not read to its end."""


class _Segment(NamedTuple):
    """A stretch of the tar file."""

    begin: int
    size: int
    source: bytes | str
    """The bytes, or the file that holds them."""


class Archive:
    """A .tar.gz of `members`, in that order, at the top level of the archive."""

    def __init__(self, members: Sequence[Member], mtime: int) -> None:
        """`mtime` is the time that all files get, in seconds since 1970."""
        self._segments: list[_Segment] = []
        self._tar_size = 0
        for member in members:
            self._add(_header(member, mtime))
            self._add(member.name, member.size)
            self._add(bytes(-member.size % tarfile.BLOCKSIZE))
        self._add(_END)
        blocks = -(-self._tar_size // _BLOCK)
        self._trailer = len(_GZIP_HEADER) + blocks * _BLOCK_HEADER.size + self._tar_size
        self.size = self._trailer + _TRAILER.size
        """Of the whole archive, in bytes."""

    def _add(self, source: bytes | str, size: int | None = None) -> None:
        length = len(source) if size is None else size
        self._segments.append(_Segment(self._tar_size, length, source))
        self._tar_size += length

    async def read(
        self,
        read_member: ReadMember,
        offset: int = 0,
        end: int | None = None,
        *,
        checksum: int | None = None,
        marks: Marks | None = None,
    ) -> AsyncGenerator[Stretch, None]:
        """The bytes of the archive from `offset` to before `end`, or to its own end.

        `checksum` is that of the stretch that ended at `offset`, if the caller knows it. `marks`
        are those of this archive: they are looked up, and what is read itself is added.
        """
        end = self.size if end is None else min(end, self.size)
        left = max(end - offset, 0)
        if marks is None or checksum is not None:
            # Nobody else is to trust what a caller says.
            marks = Marks(self._tar_size)
        first, sent = self._place(offset)
        to_the_end = end > self._trailer
        start, total = first, checksum or 0
        if to_the_end and checksum is None:
            start, total = marks.before(first)
        if offset < len(_GZIP_HEADER) and left:
            data = _GZIP_HEADER[offset:][:left]
            left -= len(data)
            yield Stretch(data, total)
        stop = self._tar_size if to_the_end else self._place(end)[0]
        async with aclosing(self._tar(start, stop, read_member)) as pieces:
            async for piece in pieces:
                begin, start = start, start + len(piece)
                if to_the_end:
                    total = zlib.crc32(piece, total)
                    marks.note(start, total)
                if start <= first:
                    continue
                data = self._packed(memoryview(piece)[max(first - begin, 0) :], start, sent)
                sent = 0
                if len(data) > left:
                    data = data[:left]
                left -= len(data)
                yield Stretch(data, total)
        if to_the_end:
            trailer = _TRAILER.pack(total, self._tar_size & 0xFFFFFFFF)
            yield Stretch(trailer[max(offset - self._trailer, 0) :][:left], total)
        elif left:
            # What ends within the header of a block.
            yield Stretch(self._block_header(stop)[sent:][:left], total)

    def _place(self, offset: int) -> tuple[int, int]:
        """Where in the tar file the archive is at `offset`; and, at the beginning of a block, how
        much of the block's header comes before."""
        body = min(max(offset - len(_GZIP_HEADER), 0), self._trailer - len(_GZIP_HEADER))
        block, within = divmod(body, _BLOCK_HEADER.size + _BLOCK)
        position = block * _BLOCK + max(within - _BLOCK_HEADER.size, 0)
        return position, min(within, _BLOCK_HEADER.size)

    def _packed(self, view: memoryview, end: int, sent: int) -> bytes:
        """A piece of the tar file, which ends at `end`, in its blocks; but for the first `sent`
        bytes of the first block's header, if a block begins with it."""
        position = end - len(view)
        parts: list[bytes | memoryview] = []
        while view:
            within = position % _BLOCK
            if not within:
                parts.append(self._block_header(position)[sent:])
            sent = 0
            part = view[: _BLOCK - within]
            parts.append(part)
            position += len(part)
            view = view[len(part) :]
        return b"".join(parts)

    def _block_header(self, position: int) -> bytes:
        left = self._tar_size - position
        length = min(left, _BLOCK)
        return _BLOCK_HEADER.pack(left <= _BLOCK, length, length ^ 0xFFFF)

    async def _tar(
        self, start: int, stop: int, read_member: ReadMember
    ) -> AsyncGenerator[bytes, None]:
        """The tar file from `start` to before `stop`."""
        for begin, size, source in self._segments:
            first, last = max(start - begin, 0), min(stop - begin, size)
            if first >= last:
                continue
            if isinstance(source, bytes):
                yield source[first:last]
                continue
            left = last - first
            async with aclosing(read_member(source, first)) as pieces:  # type: ignore[type-var]
                async for piece in pieces:
                    yield piece[:left] if len(piece) > left else piece
                    left -= len(piece)
                    # Who reads a file to its end learns whether that is where it was said to be.
                    if left <= 0 and last < size:
                        break


class Marks:
    """What an archive's contents add up to up to some places: as many as `MARKS`, spread over the
    whole."""

    def __init__(self, tar_size: int) -> None:
        self._spacing = max(MARK_BYTES, -(-tar_size // MARKS))
        self._sums: dict[int, tuple[int, int]] = {}
        self._last = (0, 0)

    def note(self, position: int, checksum: int) -> None:
        """The contents add up to `checksum` up to `position`."""
        self._sums.setdefault(position // self._spacing, (position, checksum))
        self._last = max(self._last, (position, checksum))

    def before(self, position: int) -> tuple[int, int]:
        """The last place up to `position` of which the sum is known, and the sum."""
        known = [(0, 0), self._last, *self._sums.values()]
        return max(mark for mark in known if mark[0] <= position)


class Checksums:
    """The marks of the archives that were read last, by their etags."""

    def __init__(self) -> None:
        self._marks: OrderedDict[str, Marks] = OrderedDict()

    def of(self, etag: str, size: int) -> Marks:
        """The marks of an archive of `size` bytes."""
        marks = self._marks.setdefault(etag, Marks(size))
        self._marks.move_to_end(etag)
        while len(self._marks) > ARCHIVES_KEPT:
            self._marks.popitem(last=False)
        return marks


def _header(member: Member, mtime: int) -> bytes:
    """A file's header; a name that is too long for it takes some more blocks."""
    info = tarfile.TarInfo(member.name)
    info.size, info.mtime, info.mode = member.size, mtime, 0o644
    return info.tobuf(tarfile.PAX_FORMAT)
