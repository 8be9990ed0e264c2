"""The files of checkpoints at Loops, read from signed URLs (wire section 9.3)."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from urllib.parse import urlencode

from tinkergate.backends.downloads import Downloads
from tinkergate.backends.failures import failure
from tinkergate.backends.known_checkpoints import KnownCheckpoints
from tinkergate.backends.loops.control import Control
from tinkergate.backends.loops.service import Call, Service, body_of
from tinkergate.dialects.loops.read_results import StoredFile, files_from_json, page_after
from tinkergate.errors import ErrorReason, GatewayError, Kind, unsupported
from tinkergate.http import Answer, HttpClient
from tinkergate.v1 import CheckpointFile

PAGE_SIZE = 1000
MAX_FILES = 100_000
LISTING_LIFE = 300.0
"""For how long the URLs of a listing are used, in seconds."""
LISTINGS_KEPT = 16
_NOT_PRESIGNABLE = "NOT_PRESIGNABLE"


@dataclass(frozen=True)
class _Listing:
    files: dict[str, StoredFile]
    good_until: float


class UpstreamFiles:
    """Reads the files of checkpoints."""

    def __init__(
        self,
        service: Service,
        control: Control,
        client: HttpClient,
        checkpoints: KnownCheckpoints,
    ) -> None:
        self._service = service
        self._control = control
        self._downloads = Downloads(service.name, client, service.settings.retry_time)
        self._checkpoints = checkpoints
        self._listings: OrderedDict[str, _Listing] = OrderedDict()

    async def files(self, path: str) -> list[CheckpointFile]:
        """The files of a checkpoint, by name."""
        files = await self._listed(path, fresh=True)
        return sorted(
            (CheckpointFile(name=each.name, size_bytes=each.size_bytes) for each in files.values()),
            key=lambda file: file.name,
        )

    async def read(self, path: str, name: str, offset: int) -> AsyncGenerator[bytes, None]:
        """The bytes of one file from `offset` on."""
        file = self._named(await self._listed(path), path, name)

        async def renew() -> str:
            return self._named(await self._listed(path, fresh=True), path, name).url

        operation = f"downloading {name} of {path}"
        pieces = self._downloads.read(file.url, operation, offset, renew)
        async with aclosing(pieces):
            async for piece in pieces:
                yield piece

    def forget(self, path: str) -> None:
        """A checkpoint is gone, or another one has its path."""
        self._listings.pop(path, None)

    def _named(self, files: dict[str, StoredFile], path: str, name: str) -> StoredFile:
        if name not in files:
            raise failure(
                self._service.name,
                f"reading {path}",
                f"has no file {name!r}",
                kind=Kind.NOT_FOUND,
                reason=ErrorReason.ERROR_REASON_CHECKPOINT_NOT_FOUND,
            )
        return files[name]

    async def _listed(self, path: str, *, fresh: bool = False) -> dict[str, StoredFile]:
        """The files by their names. URLs are not to be had for ever."""
        loop = asyncio.get_running_loop()
        known = self._listings.get(path)
        if fresh or known is None or loop.time() > known.good_until:
            files = await self._asked(path)
            known = self._listings[path] = _Listing(files, loop.time() + LISTING_LIFE)
            while len(self._listings) > LISTINGS_KEPT:
                self._listings.popitem(last=False)
        return known.files

    async def _asked(self, path: str) -> dict[str, StoredFile]:
        stored = await self._control.checkpoint(self._checkpoints.find(path).upstream_path)
        source = Call(
            f"the source of {path}",
            self._control.route("checkpoints", stored.checkpoint_id, "source"),
            method="GET",
        )
        kind = await self._service.call(
            source, lambda answer: body_of(answer).fields("source").text("kind")
        )
        if kind != "s3":
            raise unsupported(f"reading checkpoints that are kept as {kind!r}", self._service.name)
        files: dict[str, StoredFile] = {}
        page: int | None = 0
        while page is not None:
            listed, page = await self._page(path, stored.checkpoint_id, page)
            for file in listed:
                if file.name in files:
                    raise self._service.broken(f"the files of {path}", f"has {file.name!r} twice")
                files[file.name] = file
            if len(files) > MAX_FILES:
                raise self._service.broken(f"the files of {path}", f"are more than {MAX_FILES}")
        if not files:
            raise self._service.broken(f"the files of {path}", "are none")
        return files

    async def _page(
        self, path: str, checkpoint_id: str, page: int
    ) -> tuple[list[StoredFile], int | None]:
        """One page of the list. The token of a page is how many files are before it."""
        query = urlencode({"page_size": PAGE_SIZE, "page_token": page})
        route = self._control.route("checkpoints", checkpoint_id, "files")
        call = Call(f"the files of {path}", f"{route}?{query}", method="GET")

        def read(answer: Answer) -> tuple[list[StoredFile], int | None]:
            files, token = files_from_json(body_of(answer))
            return files, page_after(token, page)

        try:
            return await self._service.call(call, read)
        except GatewayError as error:
            if error.metadata.get("upstream_reason") == _NOT_PRESIGNABLE:
                raise unsupported(
                    "reading checkpoints that have no signed URLs", self._service.name
                ) from None
            raise
