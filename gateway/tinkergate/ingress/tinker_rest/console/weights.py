"""weights_info and copy_weights."""

from __future__ import annotations

from typing import Any

from google.protobuf.duration_pb2 import Duration
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from tinkergate.core.gateway import Gateway
from tinkergate.dialects.tinker.json_fields import Fields
from tinkergate.errors import GatewayError, invalid_field
from tinkergate.ingress.tinker_rest.bodies import json_fields
from tinkergate.ingress.tinker_rest.context import API, Context
from tinkergate.ingress.tinker_rest.errors import json_response
from tinkergate.v1 import (
    Checkpoint,
    CopyCheckpointRequest,
    CreateSessionRequest,
    FinishReason,
    FinishSessionRequest,
    GetCheckpointRequest,
    OptimizerConfig,
)

ACCESS_TOKEN = "x-tinker-weights-access-token"
IDEMPOTENCY_KEY = "x-idempotency-key"


def routes(context: Context) -> list[Route]:
    """Both."""
    gateway = context.gateway

    async def weights_info(request: Request) -> Response:
        fields = await json_fields(request)
        wanted = GetCheckpointRequest(path=fields.text("tinker_path"))
        found = await gateway.checkpoints.get(wanted)
        return json_response(_info(found.checkpoint))

    async def copy_weights(request: Request) -> Response:
        fields = await json_fields(request)
        if ACCESS_TOKEN in request.headers or "weights_access_token" in fields:
            raise invalid_field(
                "weights_access_token",
                "is given, and this gateway has none: whoever has a key may read everything",
            )
        wanted = _wanted(fields)
        if wanted.session_id:
            copied = await gateway.checkpoint_copies.copy(wanted)
        else:
            project = fields.text("destination_project_id")
            key = request.headers.get(IDEMPOTENCY_KEY, "")
            copied = await _copy_into_project(gateway, wanted, project, key)
        return json_response({"tinker_path": copied.checkpoint.path})

    return [
        Route(f"{API}/weights_info", weights_info, methods=["POST"]),
        Route(f"{API}/copy_weights", copy_weights, methods=["POST"]),
    ]


def _info(checkpoint: Checkpoint) -> dict[str, Any]:
    lora = checkpoint.lora_config
    info: dict[str, Any] = {
        "base_model": checkpoint.base_model,
        "is_lora": True,
        "lora_rank": lora.rank or checkpoint.lora_rank or None,
        "optimizer_config": optimizer_object(checkpoint.optimizer_config),
    }
    for part in ("train_unembed", "train_mlp", "train_attn"):
        # Absent where nobody knows, such as in an adapter that was made elsewhere.
        info[part] = getattr(lora, part) if lora.HasField(part) else None
    return info


def optimizer_object(config: OptimizerConfig) -> dict[str, Any]:
    """An optimizer: its type, and its settings beside it."""
    settings = {
        key: getattr(value, str(value.WhichOneof("value")))
        for key, value in config.settings.items()
    }
    return {**settings, "type": config.type or "adamw"}


def _wanted(fields: Fields) -> CopyCheckpointRequest:
    session = fields.optional_text("session_id") or ""
    number = fields.optional_integer("model_seq_id")
    if session and number is None:
        raise invalid_field("model_seq_id", "is not given; must be, with a session_id")
    seconds = fields.optional_integer("ttl_seconds", bits=32)
    if not session and "destination_project_id" not in fields:
        raise invalid_field(
            "destination_project_id", "is not given; must be, without session_id and model_seq_id"
        )
    return CopyCheckpointRequest(
        path=fields.text("source_path"),
        session_id=session,
        model_seq_id=number,
        ttl=None if seconds is None else Duration(seconds=seconds),
    )


async def _copy_into_project(
    gateway: Gateway, wanted: CopyCheckpointRequest, project: str, key: str
) -> Any:
    """Projects belong to sessions, so the copy gets a session of its own, which is finished once
    the copy is there. The same key finds the same session, and in it the same copy."""
    created = await gateway.sessions.create(
        CreateSessionRequest(project_id=project, request_id=f"copy {key}" if key else "")
    )
    session = created.session.session_id
    wanted.session_id, wanted.model_seq_id = session, 0
    finished = FinishSessionRequest(
        session_id=session, reason=FinishReason.FINISH_REASON_SUCCESS, detail="copied a checkpoint"
    )
    try:
        copied = await gateway.checkpoint_copies.copy(wanted)
    except GatewayError as error:
        if not error.retryable:
            finished.reason = FinishReason.FINISH_REASON_ERRORED
            finished.detail = error.message
            await gateway.sessions.finish(finished)
        raise
    await gateway.sessions.finish(finished)
    return copied
