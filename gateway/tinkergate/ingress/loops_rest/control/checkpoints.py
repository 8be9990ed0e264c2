"""Checkpoints and their files (wire section 9)."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from tinkergate.errors import ErrorReason, GatewayError, Kind, invalid_field
from tinkergate.ingress.loops_rest.bodies import body_of
from tinkergate.ingress.loops_rest.context import CONTROL, Context
from tinkergate.ingress.loops_rest.control.forms import iso
from tinkergate.ingress.loops_rest.ids import checkpoint_id, checkpoint_of, place_of
from tinkergate.ingress.loops_rest.runs import loops_form
from tinkergate.ingress.tinker_rest.errors import json_response
from tinkergate.v1 import Checkpoint

PAGE = 1000
"""The most files of a page."""

_BY = ("run_id", "base_model", "checkpoint_path")


def routes(context: Context) -> list[Route]:
    """The routes."""
    checkpoints = _Checkpoints(context)
    base = f"{CONTROL}loops/checkpoints"
    return [
        Route(base, checkpoints.list_all, methods=["GET"]),
        Route(f"{base}/validate", checkpoints.validate, methods=["POST"]),
        Route(f"{base}/{{id}}/source", checkpoints.source, methods=["GET"]),
        Route(f"{base}/{{id}}/files", checkpoints.files, methods=["GET"]),
        Route(f"{base}/{{id}}/archive", checkpoints.archive, methods=["GET"]),
    ]


class _Checkpoints:
    def __init__(self, context: Context) -> None:
        self._context = context

    async def list_all(self, request: Request) -> Response:
        """The checkpoints of a run or of a base model, newest first, or the one of a path."""
        query = request.query_params
        given = [name for name in _BY if name in query]
        if len(given) != 1:
            raise invalid_field("run_id", f"one of {', '.join(_BY)} is needed, not {given}")
        wanted = query[given[0]]
        if given[0] == "checkpoint_path":
            canonical = await self._context.runs.canonical("checkpoint_path", wanted)
            found = [await self._context.runs.checkpoint(canonical)]
        else:
            found = [
                each
                for each in self._newest()
                if wanted == (_run_of(each) if given[0] == "run_id" else each.base_model)
            ]
        return json_response({"checkpoints": [_form(each) for each in found]})

    def _newest(self) -> list[Checkpoint]:
        """All checkpoints that their paths lead to: of those that a run saved under one name, the
        one of its newest model."""
        newest: dict[str, tuple[int, Checkpoint]] = {}
        for each in self._context.runs.checkpoints():
            path, place = loops_form(each), place_of(each.model_id)
            if path is not None and place is not None:
                known = newest.get(str(path))
                if known is None or place.generation > known[0]:
                    newest[str(path)] = (place.generation, each)
        return [checkpoint for _, checkpoint in newest.values()]

    async def validate(self, request: Request) -> Response:
        """{} for a checkpoint that is there, else 400."""
        fields = (await body_of(request)).fields
        try:
            path = fields.text("checkpoint_path")
            canonical = await self._context.runs.canonical("checkpoint_path", path)
            await self._context.runs.checkpoint(canonical)
        except GatewayError as error:
            return json_response({"detail": error.message}, 400)
        return json_response({})

    async def source(self, request: Request) -> Response:
        """Files have links here, whatever keeps them."""
        await self._checkpoint(request)
        return json_response({"source": {"kind": "s3"}})

    async def files(self, request: Request) -> Response:
        """A page of the files, by name, with links to them."""
        checkpoint = await self._checkpoint(request)
        size = _number(request, "page_size", PAGE)
        offset = _number(request, "page_token", 0)
        if size < 1:
            raise invalid_field("page_size", f"is {size}; must be at least 1")
        size = min(size, PAGE)
        _, files = await self._context.gateway.checkpoint_files.all(checkpoint.path)
        base = self._context.link_base(request)
        told = [
            {
                "url": self._context.downloads.file_link(base, checkpoint, file.name).url,
                "relative_file_name": file.name,
                "node_rank": 0,
                "size_bytes": file.size_bytes,
                "last_modified": iso(checkpoint.create_time),
            }
            for file in files[offset : offset + size]
        ]
        end = offset + size
        return json_response(
            {
                "presigned_urls": told,
                "next_page_token": end if end < len(files) else None,
                "total_count": len(files),
            },
            headers={"cache-control": "no-store"},
        )

    async def archive(self, request: Request) -> Response:
        """A link to all files in one archive. Loops has no such thing (wire section 13); who knows
        of it need not ask for pages."""
        checkpoint = await self._checkpoint(request)
        content = await self._context.gateway.checkpoint_files.archive(checkpoint.path)
        link = self._context.downloads.archive_link(self._context.link_base(request), checkpoint)
        told = {
            "url": link.url,
            "expires": link.expires.isoformat(),
            "size_bytes": content.size,
            "etag": content.etag,
        }
        return json_response({"archive": told}, headers={"cache-control": "no-store"})

    async def _checkpoint(self, request: Request) -> Checkpoint:
        wanted = request.path_params["id"]
        canonical = checkpoint_of(wanted)
        if canonical is None:
            raise GatewayError(
                Kind.NOT_FOUND,
                ErrorReason.ERROR_REASON_CHECKPOINT_NOT_FOUND,
                f"there is no checkpoint {wanted[:300]!r}",
            )
        return await self._context.runs.checkpoint(canonical)


def _run_of(checkpoint: Checkpoint) -> str:
    path = loops_form(checkpoint)
    return "" if path is None else path.run_id


def _form(checkpoint: Checkpoint) -> dict[str, object]:
    path = loops_form(checkpoint)
    assert path is not None
    lora = checkpoint.lora_config
    config: dict[str, object] = {"r": checkpoint.lora_rank}
    if lora.HasField("alpha"):
        config["lora_alpha"] = lora.alpha
    return {
        "id": checkpoint_id(checkpoint.path),
        "run_id": path.run_id,
        "checkpoint_id": path.name,
        "target": path.target,
        "checkpoint_type": "lora",
        "base_model": checkpoint.base_model,
        "lora_adapter_config": config,
        "size_bytes": checkpoint.size_bytes,
        "sync_status": "COMPLETE",
        "created_at": iso(checkpoint.create_time),
    }


def _number(request: Request, name: str, default: int) -> int:
    text = request.query_params.get(name, str(default))
    if not (text.isascii() and text.isdigit() and len(text) <= 9):
        raise invalid_field(name, f"is {text[:80]!r}; must be a number from 0")
    return int(text)
