"""A download on its way: the bytes so far in one file, and a note beside it that tells what they
are of, so that another run can go on."""

from __future__ import annotations

import hashlib
import json
import os
import sys
import zlib
from pathlib import Path
from typing import Any, Final, NamedTuple

import grpc

from tinkergate import v1
from tinkergate_client._errors import TinkergateError

NOTE_BYTES: Final = 64 << 20
"""How much is read until the note is written anew: what a killed program loses at most."""
_PIECE: Final = 1 << 20


class _SoFar(NamedTuple):
    """What was taken in, in one piece: an interrupt may come between any two steps, and the note
    that is written then must not tell a part of one and a part of another."""

    offset: int
    digest: hashlib._Hash
    """SHA-256, never changed."""
    checksum: int | None


class Part:
    """The bytes so far of a file or an archive. Use it in a `with` block: at its end the note says
    what is there. Raises OSError where the disk fails, and BlockingIOError if another program
    writes the same.

    The note tells the etag, the size, how far it came, the SHA-256 up to there, and once it is
    whole whether that was checked. By the SHA-256 it is found out if the bytes are not what was
    written, as after a loss of power.
    """

    def __init__(self, data: Path, *, is_archive: bool = False) -> None:
        """The bytes go to `data`, the note into `data`.json."""
        self.data = data
        self.note = data.with_name(f"{data.name}.json")
        self.etag = ""
        """Of what is being read; empty before it is known."""
        self.size: int | None = None
        """How much it will be; None before it is known."""
        self.is_resumed = False
        """Whether what is there is an earlier run's, and nobody has said yet that it goes on."""
        self._is_archive = is_archive
        self._expected = b""
        self._noted = 0
        self._verified: bool | None = None
        self._begin_sums()
        # Not through a link that somebody has put there.
        flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
        self._file = os.fdopen(os.open(data, flags, 0o666), "r+b", buffering=0)
        try:
            _lock(self._file.fileno(), data)
            self._take_up()
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Part:
        return self

    def __exit__(self, *_: object) -> None:
        if not self._file.closed:
            self._write_note()
            self._file.close()

    @property
    def offset(self) -> int:
        """How much is there."""
        return self._so_far.offset

    @property
    def checksum(self) -> int | None:
        """The CRC-32 of what an archive unpacks to so far."""
        return self._so_far.checksum

    @property
    def is_whole(self) -> bool:
        """Whether everything is there."""
        return self.size == self.offset

    def begin(self, header: v1.ReadHeader) -> None:
        """Take in what is being read: from now on that, and nothing else."""
        self.is_resumed = False
        self.etag = header.etag
        self.size = header.size_bytes
        self._expected = header.sha256
        self._write_note()

    def write(self, data: bytes, checksum: int | None) -> None:
        """Take in the next bytes, and what an archive unpacks to up to their end."""
        view = memoryview(data)
        while view:
            view = view[self._file.write(view) :]
        self._so_far = self._with(data, checksum)
        if self.offset - self._noted >= NOTE_BYTES:
            self._write_note()

    def restart(self) -> None:
        """Throw away what is there."""
        self._file.seek(0)
        self._file.truncate()
        self.etag, self.size = "", None
        self.is_resumed = False
        self._begin_sums()
        self._write_note()

    def finish(self) -> tuple[str, bool]:
        """Check the whole, and see that it stays. Answers the SHA-256 in hexadecimal, and whether
        it is known to be right: by what the backend says, or by an archive's own checksum. Raises
        TinkergateError (CHECKSUM_MISMATCH), and then has thrown it away."""
        right = not self._expected or self._so_far.digest.digest() == self._expected
        if self._is_archive:
            right = right and self._unpacker.eof and not self._unpacker.unused_data
        if not right:
            self.restart()
            raise _damaged(self.data)
        os.fsync(self._file.fileno())
        self._verified = self._is_archive or bool(self._expected)
        return self._so_far.digest.hexdigest(), self._verified

    def put(self, target: Path) -> None:
        """Make what is there the file `target`, in the place of one that is there."""
        self._file.close()
        self.data.replace(target)
        self.note.unlink(missing_ok=True)

    def _take_up(self) -> None:
        """Go on with what an earlier run left, if it is what its note says."""
        noted = read_note(self.note)
        offset, size, etag = noted.get("offset"), noted.get("size"), noted.get("etag")
        crc32 = noted.get("crc32")
        if (
            not (isinstance(offset, int) and isinstance(size, int) and isinstance(etag, str))
            or not 0 < offset <= size
            or (self._is_archive and not isinstance(crc32, int))
            or os.fstat(self._file.fileno()).st_size < offset
        ):
            self.restart()
            return
        left = offset
        try:
            while left and (piece := self._file.read(min(left, _PIECE))):
                self._so_far = self._with(piece, crc32)
                left -= len(piece)
        except TinkergateError:
            left = -1
        if left or self._so_far.digest.hexdigest() != noted.get("sha256"):
            self.restart()
            return
        self._file.truncate(offset)
        self.etag, self.size = etag, size
        self.is_resumed = True
        self._noted = offset

    def _begin_sums(self) -> None:
        self._so_far = _SoFar(0, hashlib.sha256(), None)
        self._unpacker = zlib.decompressobj(wbits=31)

    def _with(self, data: bytes, checksum: int | None) -> _SoFar:
        """What there is with some more bytes, which are checked as far as they can be."""
        digest = self._so_far.digest.copy()
        digest.update(data)
        if self._is_archive:
            try:
                self._unpacker.decompress(data)
            except zlib.error:
                self.restart()
                raise _damaged(self.data) from None
        return _SoFar(self._so_far.offset + len(data), digest, checksum)

    def _write_note(self) -> None:
        so_far = self._so_far
        told: dict[str, Any] = {
            "etag": self.etag,
            "size": self.size,
            "offset": so_far.offset,
            "sha256": so_far.digest.hexdigest(),
            "crc32": so_far.checksum,
            "verified": self._verified,
        }
        fresh = self.note.with_name(f"{self.note.name}.new")
        fresh.write_text(json.dumps(told))
        fresh.replace(self.note)
        self._noted = so_far.offset


def read_note(note: Path) -> dict[str, Any]:
    """What a note says; empty for one that is not there or says nothing."""
    try:
        told = json.loads(note.read_bytes())
    except (OSError, ValueError):
        return {}
    return told if isinstance(told, dict) else {}


def _lock(descriptor: int, data: Path) -> None:
    """Keep others from writing the same. Windows has no such locks; there the checks at the end
    tell what two programs have made of one file."""
    if sys.platform != "win32":
        import fcntl

        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            told = f"{data} is being written by another download"
            raise BlockingIOError(error.errno, told) from None


def _damaged(data: Path) -> TinkergateError:
    return TinkergateError(
        f"what was read for {data.name.removesuffix('.part')} is not what was sent: its checksum "
        "is another. It was thrown away; download it again",
        code=grpc.StatusCode.DATA_LOSS,
        reason="CHECKSUM_MISMATCH",
    )
