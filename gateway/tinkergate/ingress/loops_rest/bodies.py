"""Bodies of requests, read in a thread where that takes long."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

from starlette.requests import Request

from tinkergate.dialects.tinker.json_fields import Fields
from tinkergate.dialects.tinker.json_text import read_json
from tinkergate.ingress.http.bodies import THREAD_BYTES, read_body

Read = TypeVar("Read")


class Body:
    """The JSON object in the body of a request; an empty body is an empty object."""

    def __init__(self, fields: Fields, size: int) -> None:
        self.fields = fields
        self._size = size

    async def read(self, reader: Callable[[Fields], Read]) -> Read:
        """What `reader` makes of the object. Raises what it raises."""
        if self._size < THREAD_BYTES:
            return reader(self.fields)
        return await asyncio.to_thread(reader, self.fields)


async def body_of(request: Request) -> Body:
    """The body. Raises GatewayError (INVALID) for what is no JSON object."""
    content = await read_body(request)
    if not content:
        return Body(Fields({}), 0)
    if len(content) < THREAD_BYTES:
        return Body(Fields(read_json(content)), len(content))
    return Body(Fields(await asyncio.to_thread(read_json, content)), len(content))
