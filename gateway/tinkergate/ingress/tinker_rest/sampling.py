"""Samplers, and drawing from them (wire sections 6.1 to 6.3)."""

from __future__ import annotations

import asyncio
import itertools
from collections import defaultdict

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from tinkergate.core.ids import session_of
from tinkergate.dialects.tinker.json_fields import Fields
from tinkergate.dialects.tinker.json_text import read_json
from tinkergate.dialects.tinker.read_requests import create_sampler_request
from tinkergate.dialects.tinker.read_sampling import sample_request
from tinkergate.ingress.http.bodies import THREAD_BYTES, read_body
from tinkergate.ingress.tinker_rest.bodies import json_fields
from tinkergate.ingress.tinker_rest.context import API, Context
from tinkergate.ingress.tinker_rest.errors import json_response
from tinkergate.v1 import GetSamplerRequest, SampleRequest


def routes(context: Context) -> list[Route]:
    """The routes."""
    sampling = _Sampling(context)
    return [
        Route(f"{API}/asample", sampling.sample, methods=["POST"]),
        Route(f"{API}/create_sampling_session", sampling.create, methods=["POST"]),
        Route(f"{API}/join_sampling_session", sampling.join, methods=["POST"]),
        Route(f"{API}/samplers/{{sampler_id}}", sampling.get, methods=["GET"]),
    ]


class _Sampling:
    def __init__(self, context: Context) -> None:
        self._gateway = context.gateway
        self._clones: defaultdict[str, itertools.count[int]] = defaultdict(
            lambda: itertools.count(1)
        )
        """How many clients have joined a sampler."""
        context.gateway.sessions.on_end.append(self._session_ended)

    def _session_ended(self, session_id: str) -> None:
        """The session's samplers are gone."""
        for sampler_id in [each for each in self._clones if session_of(each) == session_id]:
            del self._clones[sampler_id]

    async def sample(self, request: Request) -> Response:
        """Begins to draw. 429, on which clients wait, while too much is being drawn."""
        body = await read_body(request)
        if len(body) < THREAD_BYTES:
            asked = _read(body)
        else:
            asked = await asyncio.to_thread(_read, body)
        samples = asked.num_samples
        future = await self._gateway.sample_futures.submit(asked)
        return json_response(
            {
                "request_id": future.name,
                "sample_sequence_ids": [f"{future.name}:{index}" for index in range(samples)],
            }
        )

    async def create(self, request: Request) -> Response:
        """A sampler of a checkpoint or of a base model."""
        asked = create_sampler_request(await json_fields(request))
        created = await self._gateway.samplers.create(asked)
        return json_response(
            {
                "type": "create_sampling_session",
                "sampling_session_id": created.sampler.sampler_id,
            }
        )

    async def join(self, request: Request) -> Response:
        """A number of its own for another client of a sampler."""
        fields = await json_fields(request)
        sampler = await self._gateway.samplers.require(fields.text("sampling_session_id"))
        number = next(self._clones[sampler.message.sampler_id])
        return json_response({"type": "join_sampling_session", "client_counter": number})

    async def get(self, request: Request) -> Response:
        """What a sampler is."""
        asked = GetSamplerRequest(sampler_id=request.path_params["sampler_id"])
        sampler = (await self._gateway.samplers.get(asked)).sampler
        return json_response(
            {
                "sampler_id": sampler.sampler_id,
                "base_model": sampler.base_model,
                "model_path": sampler.model_path or None,
            }
        )


def _read(body: bytes) -> SampleRequest:
    return sample_request(Fields(read_json(body)))
