"""The bytes behind signed links: archives of checkpoints, and their files."""

from __future__ import annotations

import base64
import re
from dataclasses import dataclass
from email.utils import formatdate

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from tinkergate.core.checkpoint_contents import Content
from tinkergate.core.checkpoint_files import CheckpointFiles
from tinkergate.core.gateway import Gateway
from tinkergate.ingress.http.signed_urls import EXPIRES, SIGNATURE, Link, SignedUrls
from tinkergate.v1 import Checkpoint

_RANGE = re.compile(r"bytes=(\d*)-(\d*)")


class Downloads:
    """Makes links to checkpoints and serves what is behind them. Under `prefix`, which ends with a
    slash, no key is asked for: the signature is checked here."""

    def __init__(self, gateway: Gateway, urls: SignedUrls, prefix: str) -> None:
        self._files: CheckpointFiles = gateway.checkpoint_files
        self._urls = urls
        self._prefix = prefix

    def archive_link(self, base_url: str, checkpoint: Checkpoint) -> Link:
        """A link to the .tar.gz of a checkpoint."""
        return self._urls.link(base_url, f"{self._place(checkpoint)}/archive")

    def file_link(self, base_url: str, checkpoint: Checkpoint, name: str) -> Link:
        """A link to one file of a checkpoint."""
        return self._urls.link(base_url, f"{self._place(checkpoint)}/files/{name}")

    def links(self, base_url: str) -> Links:
        """Links under `base_url` for the callers of other doors."""
        return Links(self, base_url)

    def _place(self, checkpoint: Checkpoint) -> str:
        return f"{self._prefix}{checkpoint.model_id}/{checkpoint.checkpoint_id}"

    def routes(self) -> list[Route]:
        """What answers the links, for GET and HEAD."""
        place = f"{self._prefix}{{model_id}}/{{kind}}/{{name}}"
        return [
            Route(f"{place}/archive", self._archive),
            Route(f"{place}/files/{{file:path}}", self._file),
        ]

    async def _archive(self, request: Request) -> Response:
        path = self._let_in(request)
        content = await self._files.archive(path)
        name = re.sub(r"[^A-Za-z0-9._-]+", "-", path.removeprefix("tinker://")) + ".tar.gz"
        return respond(request, content, name, "application/gzip")

    async def _file(self, request: Request) -> Response:
        file = str(request.path_params["file"])
        content = await self._files.file(self._let_in(request), file)
        return respond(request, content, file.rpartition("/")[2], "application/octet-stream")

    def _let_in(self, request: Request) -> str:
        """The checkpoint that a link is to. Raises GatewayError (DENIED)."""
        query = request.query_params
        self._urls.check(request.scope["path"], query.get(EXPIRES, ""), query.get(SIGNATURE, ""))
        parts = request.path_params
        return f"tinker://{parts['model_id']}/{parts['kind']}/{parts['name']}"


@dataclass(frozen=True)
class Links:
    """Makes links that begin with a URL that is known beforehand; see `CheckpointLinks`."""

    downloads: Downloads
    base_url: str

    def archive(self, checkpoint: Checkpoint) -> Link:
        """To the archive."""
        return self.downloads.archive_link(self.base_url, checkpoint)

    def file(self, checkpoint: Checkpoint, name: str) -> Link:
        """To one file."""
        return self.downloads.file_link(self.base_url, checkpoint, name)


def respond(request: Request, content: Content, filename: str, media_type: str) -> Response:
    """The content, or the one range of it that is asked for (RFC 9110, 14). `filename` is plain
    ASCII."""
    etag = f'"{content.etag}"'
    headers = {
        "etag": etag,
        "accept-ranges": "bytes",
        "last-modified": formatdate(content.create_time / 1e9, usegmt=True),
        "cache-control": "private",
    }
    if etag in (tag.strip() for tag in request.headers.get("if-none-match", "").split(",")):
        return Response(status_code=304, headers=headers)
    first, end, status = 0, content.size, 200
    asked = request.headers.get("range")
    if asked is not None and request.headers.get("if-range", etag) == etag:
        if (found := _range(asked, content.size)) is not None:
            first, end = found
            status = 206
        if first >= end and status == 206:
            headers["content-range"] = f"bytes */{content.size}"
            return Response(status_code=416, headers=headers)
    if status == 206:
        headers["content-range"] = f"bytes {first}-{end - 1}/{content.size}"
    if content.sha256:
        # Of the whole content, whatever part of it is sent (RFC 9530).
        headers["repr-digest"] = f"sha-256=:{base64.b64encode(content.sha256).decode()}:"
    headers["content-length"] = str(end - first)
    headers["content-disposition"] = f'attachment; filename="{filename}"'
    if request.method == "HEAD":
        return Response(status_code=status, headers=headers, media_type=media_type)
    return StreamingResponse(content.read(first, end), status, headers, media_type)


def _range(asked: str, size: int) -> tuple[int, int] | None:
    """Where the range begins and ends; None for several ranges and for what is none, which are
    answered by the whole."""
    match = _RANGE.fullmatch(asked.strip())
    if match is None or asked.strip() == "bytes=-":
        return None
    first, last = match.groups()
    if not first:
        return max(size - int(last), 0), size
    if last and int(last) < int(first):
        return None
    return int(first), min(int(last) + 1, size) if last else size
