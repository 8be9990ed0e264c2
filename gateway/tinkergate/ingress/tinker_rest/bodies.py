"""JSON bodies of requests."""

from __future__ import annotations

import asyncio
from typing import Any

from starlette.requests import Request

from tinkergate.dialects.tinker.json_fields import Fields
from tinkergate.dialects.tinker.json_text import read_json
from tinkergate.ingress.http.bodies import THREAD_BYTES, read_body


async def json_fields(request: Request) -> Fields:
    """The JSON object in the body of a request; an empty body is an empty object. Raises
    GatewayError (INVALID) for anything else."""
    body = await read_body(request)
    if not body:
        return Fields({})
    value: Any
    if len(body) < THREAD_BYTES:
        value = read_json(body)
    else:
        value = await asyncio.to_thread(read_json, body)
    return Fields(value)
