"""The files of checkpoints at the service (wire section 15.3).

External weights are read from the signed URLs of their files. Any other checkpoint comes as an
archive, which is fetched and unpacked when its files are first asked for, and kept for a while.
Signed URLs are asked for without the key: they are somebody else's.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections import OrderedDict
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from urllib.parse import urljoin

from tinkergate.backends.downloads import Downloads
from tinkergate.backends.failures import failure, retry_after, unreachable
from tinkergate.backends.known_checkpoints import KnownCheckpoints
from tinkergate.backends.tinker.archives import UnpackedFile, unpack
from tinkergate.backends.tinker.errors import status_error
from tinkergate.backends.tinker.rest_paths import RestPath, rest_path
from tinkergate.backends.tinker.service import Call, Service
from tinkergate.dialects.tinker.json_fields import Fields
from tinkergate.dialects.tinker.json_text import read_json
from tinkergate.errors import ErrorReason, GatewayError, Kind
from tinkergate.http import Answer, AnswerLost, HttpClient, NotSent
from tinkergate.v1 import CheckpointFile

BUILDING_PAUSE = 5.0
"""How long to wait before asking again for an archive that is still being built, in seconds."""
BUILDING_TIME = 900.0
"""How long is asked for it."""
_PIECE = 1 << 20
_EXTERNAL = "external_weights/"
_REDIRECTS = frozenset({302, 303, 307})
_BUILDING = frozenset({409, 503})


@dataclass
class _Archive:
    """A checkpoint that was fetched."""

    folder: tempfile.TemporaryDirectory[str]
    files: Mapping[str, UnpackedFile]


class UpstreamFiles:
    """Reads the files of checkpoints."""

    def __init__(self, service: Service, client: HttpClient, checkpoints: KnownCheckpoints) -> None:
        self._service = service
        self._client = client
        self._downloads = Downloads(service.name, client, service.settings.retry_time)
        self._checkpoints = checkpoints
        self._archives: OrderedDict[str, _Archive] = OrderedDict()
        self._fetches: dict[str, asyncio.Task[_Archive]] = {}
        self._room = asyncio.Semaphore(max(service.settings.archives_kept, 1))

    async def files(self, path: str) -> list[CheckpointFile]:
        """The files of a checkpoint, by name."""
        rest = self._rest_path(path)
        if rest.checkpoint_id.startswith(_EXTERNAL):
            urls = await self._urls(rest, path)
            listed = [
                CheckpointFile(name=name, size_bytes=await self._size(url, path))
                for name, url in urls.items()
            ]
        else:
            archive = await self._archive(rest, path)
            listed = [
                CheckpointFile(name=name, size_bytes=file.size, sha256=file.sha256)
                for name, file in archive.files.items()
            ]
        return sorted(listed, key=lambda file: file.name)

    async def read(self, path: str, name: str, offset: int) -> AsyncGenerator[bytes, None]:
        """The bytes of one file from `offset` on."""
        rest = self._rest_path(path)
        if rest.checkpoint_id.startswith(_EXTERNAL):
            urls = await self._urls(rest, path)
            if name not in urls:
                raise self._no_file(path, name)
            async with aclosing(self._download(urls[name], path, offset)) as pieces:
                async for piece in pieces:
                    yield piece
            return
        archive = await self._archive(rest, path)
        if name not in archive.files:
            raise self._no_file(path, name)
        with archive.files[name].path.open("rb") as file:
            file.seek(offset)
            while piece := await asyncio.to_thread(file.read, _PIECE):
                yield piece

    def forget(self, path: str) -> None:
        """A checkpoint is gone, or another one has its path."""
        if (fetch := self._fetches.pop(path, None)) is not None:
            fetch.cancel()
        archive = self._archives.pop(path, None)
        if archive is not None:
            archive.folder.cleanup()

    async def close(self) -> None:
        """Remove what was fetched."""
        fetches = list(self._fetches.values())
        for fetch in fetches:
            fetch.cancel()
        if fetches:
            await asyncio.wait(fetches)
        while self._archives:
            self._archives.popitem()[1].folder.cleanup()

    def _rest_path(self, path: str) -> RestPath:
        known = self._checkpoints.find(path).upstream_path
        if (rest := rest_path(known)) is None:
            raise self._service.broken(f"reading {path}", f"has no route for {known!r}")
        return rest

    def _no_file(self, path: str, name: str) -> GatewayError:
        return failure(
            self._service.name,
            f"reading {path}",
            f"has no file {name!r}",
            kind=Kind.NOT_FOUND,
            reason=ErrorReason.ERROR_REASON_CHECKPOINT_NOT_FOUND,
        )

    async def _urls(self, rest: RestPath, path: str) -> dict[str, str]:
        call = Call(
            f"external_weights_urls of {path}", f"{rest.route}/external_weights_urls", method="GET"
        )

        def read(answer: Answer) -> dict[str, str]:
            urls = Fields(read_json(answer.body)).fields("urls")
            return {name: self._absolute(urls.text(name)) for name in urls.value}

        return await self._service.call(call, read)

    def _absolute(self, url: str) -> str:
        return urljoin(f"{self._service.settings.url}/", url)

    async def _size(self, url: str, path: str) -> int:
        """The size of what a URL holds. A signed URL may be good for GET only."""
        operation = f"asking for the size of a file of {path}"
        # The size is that of its own bytes, not of compressed ones.
        headers = {"range": "bytes=0-0", "accept-encoding": "identity"}
        try:
            async with self._client.stream("GET", url, headers=headers) as answer:
                if answer.status == 206:
                    return int(answer.headers["content-range"].rpartition("/")[2])
                if answer.status == 200:
                    return int(answer.headers["content-length"])
                if answer.status == 416:  # there is not even a first byte
                    return 0
                raise unreachable(self._service.name, operation, f"was answered {answer.status}")
        except (NotSent, AnswerLost, KeyError, ValueError) as error:
            raise unreachable(self._service.name, operation, f"failed: {error}") from None

    def _download(self, url: str, path: str, offset: int) -> AsyncGenerator[bytes, None]:
        """What a URL holds from `offset` on."""
        return self._downloads.read(url, f"downloading a file of {path}", offset)

    async def _archive(self, rest: RestPath, path: str) -> _Archive:
        """The archive, fetched once for all who want it. A caller that goes away does not end
        that: whoever comes back finds it further than before, or done."""
        if (archive := self._archives.get(path)) is not None:
            self._archives.move_to_end(path)
            return archive
        fetch = self._fetches.get(path)
        if fetch is None:
            fetch = asyncio.create_task(self._fetch(rest, path), name=f"fetching {path}")
            self._fetches[path] = fetch
            fetch.add_done_callback(partial(self._was_fetched, path))
        await asyncio.wait([fetch])
        if fetch.cancelled():
            raise unreachable(self._service.name, f"reading {path}", "was ended: it is gone")
        return fetch.result()

    async def _fetch(self, rest: RestPath, path: str) -> _Archive:
        async with self._room:
            return await self._fetched(await self._archive_url(rest, path), path)

    def _was_fetched(self, path: str, fetch: asyncio.Task[_Archive]) -> None:
        if self._fetches.get(path) is fetch:
            del self._fetches[path]
        if fetch.cancelled() or fetch.exception() is not None:
            return  # told to those who wait, if there are any
        self._archives[path] = fetch.result()
        while len(self._archives) > self._service.settings.archives_kept:
            # Whoever reads a file of it has it open.
            self._archives.popitem(last=False)[1].folder.cleanup()

    async def _archive_url(self, rest: RestPath, path: str) -> str:
        """Where the archive is, once it is built."""
        service = self._service
        call = Call(f"the archive of {path}", f"{rest.route}/archive", method="GET")
        pauses = service.pauses(BUILDING_TIME)
        while True:
            try:
                answer = await service.once(call)
            except (NotSent, AnswerLost) as error:
                asked, problem = None, unreachable(service.name, call.operation, str(error))
            else:
                if answer.status in _REDIRECTS and (url := answer.headers.get("location")):
                    return self._absolute(url)
                if answer.status == 200:
                    return self._absolute(Fields(read_json(answer.body)).text("url"))
                problem = status_error(service.name, call.operation, answer)
                if answer.status not in _BUILDING and answer.status < 500:
                    raise problem
                asked = retry_after(answer.headers) or BUILDING_PAUSE
            if not await pauses.trouble(asked):
                raise problem

    async def _fetched(self, url: str, path: str) -> _Archive:
        """An archive, downloaded and unpacked."""
        settings = self._service.settings
        scratch = settings.scratch_dir
        if scratch is not None:
            scratch.mkdir(parents=True, exist_ok=True)
        folder = tempfile.TemporaryDirectory(
            prefix="tinkergate-", dir=scratch, ignore_cleanup_errors=True
        )
        try:
            file = Path(folder.name) / "archive.tar.gz"
            size = 0
            with file.open("wb") as out:
                async with aclosing(self._download(url, path, 0)) as pieces:
                    async for piece in pieces:
                        size += len(piece)
                        if size > settings.max_archive_bytes:
                            raise self._service.broken(f"the archive of {path}", "is too large")
                        await asyncio.to_thread(out.write, piece)
            try:
                files = await asyncio.to_thread(
                    unpack, file, Path(folder.name), settings.max_archive_bytes
                )
            except ValueError as error:
                raise self._service.broken(f"the archive of {path}", str(error)) from None
            file.unlink()
        except BaseException:
            folder.cleanup()
            raise
        return _Archive(folder, files)
