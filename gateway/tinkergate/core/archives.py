"""Archives of files, made while they are read.

A .tar.gz whose deflate blocks are stored as they are (RFC 1951, 3.2.4): adapters are floating-point
numbers, of which compression takes a tenth at most, and at a fraction of the speed of a network. In
return the size is known before a byte is read, nothing is kept in memory or on disk, and the same
files give the same bytes, so that a download can go on where it broke off.
"""

from __future__ import annotations

import struct
import tarfile
import zlib
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import Final

_GZIP_HEADER: Final = b"\x1f\x8b\x08\x00" + bytes(4) + b"\x00\xff"
"""Deflate, no name, no time, of no system in particular (RFC 1952)."""
_TRAILER_BYTES: Final = 8
_BLOCK: Final = 65_535
"""What one stored block can hold."""
_BLOCK_HEADER: Final = struct.Struct("<BHH")
"""Whether it is the last; the length; its complement."""
_END: Final = bytes(2 * tarfile.BLOCKSIZE)
"""What a tar file ends with."""

ReadMember = Callable[[str], AsyncIterator[bytes]]


@dataclass(frozen=True)
class Member:
    """A file to be packed."""

    name: str
    size: int


class Archive:
    """A .tar.gz of `members`, in that order, at the top level of the archive."""

    def __init__(self, members: Sequence[Member], mtime: int) -> None:
        """`mtime` is the time that all files get, in seconds since 1970."""
        self._members = tuple(members)
        self._mtime = mtime
        self._tar_size = len(_END) + sum(
            len(self._header(member)) + member.size + _padding(member.size)
            for member in self._members
        )
        blocks = -(-self._tar_size // _BLOCK)
        self.size = (
            len(_GZIP_HEADER) + blocks * _BLOCK_HEADER.size + self._tar_size + _TRAILER_BYTES
        )
        """Of the whole archive, in bytes."""

    def _header(self, member: Member) -> bytes:
        """A file's header; a name that is too long for it takes some more blocks."""
        info = tarfile.TarInfo(member.name)
        info.size, info.mtime, info.mode = member.size, self._mtime, 0o644
        return info.tobuf(tarfile.PAX_FORMAT)

    async def read(self, offset: int, read_member: ReadMember) -> AsyncIterator[bytes]:
        """The bytes of the archive from `offset` on. The files are read from their beginning all
        the same, because the checksum at the end is of all of them."""
        skip = offset
        async for piece in self._pieces(read_member):
            if skip >= len(piece):
                skip -= len(piece)
            else:
                yield piece[skip:] if skip else piece
                skip = 0

    async def _pieces(self, read_member: ReadMember) -> AsyncIterator[bytes]:
        yield _GZIP_HEADER
        checksum, left, waiting = 0, self._tar_size, bytearray()
        async for piece in self._tar(read_member):
            checksum = zlib.crc32(piece, checksum)
            waiting += piece
            blocks = bytearray()
            start = 0
            while (length := min(_BLOCK, left)) and len(waiting) - start >= length:
                left -= length
                blocks += _BLOCK_HEADER.pack(not left, length, length ^ 0xFFFF)
                blocks += memoryview(waiting)[start : start + length]
                start += length
            if start:
                del waiting[:start]
                yield bytes(blocks)
        yield struct.pack("<II", checksum, self._tar_size & 0xFFFFFFFF)

    async def _tar(self, read_member: ReadMember) -> AsyncIterator[bytes]:
        for member in self._members:
            yield self._header(member)
            if member.size:
                async for piece in read_member(member.name):
                    yield piece
            yield bytes(_padding(member.size))
        yield _END


def _padding(size: int) -> int:
    return -size % tarfile.BLOCKSIZE
