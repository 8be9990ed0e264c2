"""Scoring by way of sample calls that draw one token and answer the prompt's logprobs, as the
official clients' compute_logprobs does."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import numpy as np
from numpy.typing import NDArray

from tinkergate.backends.failures import failure
from tinkergate.dialects.tinker.read_results import NO_LOGPROB
from tinkergate.errors import GatewayError, unsupported
from tinkergate.tensors import (
    arrays_from_batched,
    batched_from_arrays,
    floats_from_bytes,
    token_bytes,
    tokens_from_bytes,
)
from tinkergate.v1 import (
    Chunk,
    EncodedTextChunk,
    ModelInput,
    SampleRequest,
    SampleResponse,
    SamplingParams,
    ScoreRequest,
    ScoreResponse,
)

Draw = Callable[[SampleRequest], Awaitable[SampleResponse]]
"""Answers a sample call."""


class Scoring:
    """Scores sequences at a service."""

    def __init__(self, backend: str, draw: Draw, max_concurrent: int) -> None:
        """So many sequences are scored at the same time."""
        self._backend = backend
        self._draw = draw
        self._room = asyncio.Semaphore(max_concurrent)

    async def score(self, request: ScoreRequest) -> ScoreResponse:
        """Answer a score call. The first sequence that fails ends the others."""
        if request.HasField("temperature") and request.temperature != 1.0:
            # Prompt logprobs are those of temperature 1, whatever the call says.
            raise unsupported("scoring at a temperature other than 1", self._backend)
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [
                    group.create_task(self._one(request, tokens))
                    for tokens in arrays_from_batched(request.tokens)
                ]
        except ExceptionGroup as failed:
            known = [error for error in failed.exceptions if isinstance(error, GatewayError)]
            raise (known or failed.exceptions)[0] from None
        rows = [task.result() for task in tasks]
        response = ScoreResponse(logprobs=batched_from_arrays([row[0] for row in rows]))
        if request.topk:
            response.topk_tokens.CopyFrom(
                batched_from_arrays([row[1] for row in rows], dtype=np.int64)
            )
            response.topk_logprobs.CopyFrom(batched_from_arrays([row[2] for row in rows]))
        return response

    async def _one(
        self, request: ScoreRequest, tokens: NDArray[np.generic]
    ) -> tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.float32]]:
        """Logprobs, likeliest tokens and their logprobs of one sequence."""
        text = Chunk(encoded_text=EncodedTextChunk(tokens=token_bytes(tokens)))
        call = SampleRequest(
            prompt=ModelInput(chunks=[text]),
            num_samples=1,
            sampling_params=SamplingParams(max_tokens=1),
            prompt_logprobs=True,
            topk_prompt_logprobs=request.topk,
        )
        if (which := request.WhichOneof("source")) is not None:
            setattr(call, which, getattr(request, which))
        async with self._room:
            response = await self._draw(call)
        return self._row(response, tokens.size, request.topk)

    def _row(
        self, response: SampleResponse, length: int, k: int
    ) -> tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.float32]]:
        logprobs = floats_from_bytes(response.prompt_logprobs)
        if logprobs.size != length:
            raise self._broken(f"answered {logprobs.size} prompt logprobs for {length} tokens")
        ids = np.zeros((length, k), np.int64)
        values = np.full((length, k), NO_LOGPROB, np.float32)
        if k and response.HasField("topk_prompt_logprobs"):
            table = response.topk_prompt_logprobs
            columns = min(k, table.k)
            shape = (table.length, table.k)
            told = tokens_from_bytes(table.token_ids), floats_from_bytes(table.logprobs)
            if table.length != length or any(a.size != shape[0] * shape[1] for a in told):
                raise self._broken("answered likeliest tokens that do not fit")
            ids[:, :columns] = told[0].reshape(shape)[:, :columns]
            values[:, :columns] = told[1].reshape(shape)[:, :columns]
        elif k:
            raise self._broken("answered no likeliest tokens")
        return logprobs, ids, values

    def _broken(self, told: str) -> GatewayError:
        return failure(self._backend, "scoring", told)
