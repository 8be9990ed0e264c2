"""Links to the archive of a checkpoint, and to its files one by one."""

from __future__ import annotations

from email.utils import format_datetime

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from tinkergate.ingress.http.downloads import Downloads
from tinkergate.ingress.tinker_rest.console.checkpoints import CHECKPOINT
from tinkergate.ingress.tinker_rest.console.queries import path_of
from tinkergate.ingress.tinker_rest.context import DOWNLOADS, Context
from tinkergate.ingress.tinker_rest.errors import json_response


def routes(context: Context) -> list[Route]:
    """archive and external_weights_urls, and what their links lead to."""
    files = context.gateway.checkpoint_files
    downloads = Downloads(context.gateway, context.urls, DOWNLOADS)

    async def archive(request: Request) -> Response:
        checkpoint, _ = await files.all(path_of(request))
        link = downloads.archive_link(context.link_base(request), checkpoint)
        told = {"url": link.url, "expires": link.expires.isoformat()}
        headers = {
            "expires": format_datetime(link.expires, usegmt=True),
            "cache-control": "no-store",
        }
        if _wants_json(request):
            return json_response(told, headers=headers)
        # Clients of the first kind take the address from here and nothing else will do.
        return json_response(told, 302, headers | {"location": link.url})

    async def file_links(request: Request) -> Response:
        checkpoint, held = await files.all(path_of(request))
        base_url = context.link_base(request)
        # Made first, so that it ends no later than the others, of which there may be none.
        expires = downloads.archive_link(base_url, checkpoint).expires
        links = {file.name: downloads.file_link(base_url, checkpoint, file.name) for file in held}
        urls = {name: link.url for name, link in links.items()}
        told = {"urls": urls, "expires": expires.isoformat()}
        return json_response(told, headers={"cache-control": "no-store"})

    return [
        Route(f"{CHECKPOINT}/archive", archive),
        Route(f"{CHECKPOINT}/external_weights_urls", file_links),
        *downloads.routes(),
    ]


def _wants_json(request: Request) -> bool:
    """0.25 asks for JSON and takes the link from it; 0.22 asks for the archive, in a second header
    of the same name beside its usual one for JSON, and must be sent on."""
    accepted = ", ".join(request.headers.getlist("accept"))
    return "application/json" in accepted and "gzip" not in accepted
