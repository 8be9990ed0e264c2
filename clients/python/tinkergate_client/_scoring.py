"""Scoring many sequences: batches by token count, a bounded number of them in flight."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, TypedDict

import numpy as np
from numpy.typing import NDArray

from tinkergate.tensors import arrays_from_batched, batched_from_arrays
from tinkergate.v1 import SampleRequest, ScoreRequest, ScoreResponse
from tinkergate_client._connection import MESSAGE_BYTES, WORK_SECONDS, Connection
from tinkergate_client._datums import Tokens, token_array

BATCH_TOKENS = 8192
BATCHES_IN_FLIGHT = 4
_BATCH_SEQUENCES = 1024


class ScoreOptions(TypedDict, total=False):
    """How to score."""

    temperature: float
    """Logits are divided by it; 1 if absent."""
    topk: int
    """Tell the k likeliest tokens of each position too."""
    batch_tokens: int
    """The most tokens of one request, unless one sequence has more; 8192 if absent."""
    in_flight: int
    """The most requests at once; 4 if absent."""


@dataclass(frozen=True)
class Score:
    """The scores of one sequence."""

    logprobs: NDArray[np.float32]
    """float32 (N,): of each token given those before it; NaN for the first."""
    topk_tokens: NDArray[np.int32] | None = None
    """int32 (N, k): the likeliest tokens of each position, likeliest first."""
    topk_logprobs: NDArray[np.float32] | None = None
    """float32 (N, k)."""


@dataclass(frozen=True)
class Source:
    """What to sample or score with: one of the three names."""

    sampler_id: str = ""
    base_model: str = ""
    model_path: str = ""
    backend: str = ""
    """The backend that is to serve a base model; empty leaves the choice to the gateway."""

    def __post_init__(self) -> None:
        if sum(map(bool, (self.sampler_id, self.base_model, self.model_path))) != 1:
            raise ValueError("give one of sampler_id, base_model and model_path")

    def name_in(self, request: SampleRequest | ScoreRequest) -> None:
        """Write the source into a request."""
        if self.sampler_id:
            request.sampler_id = self.sampler_id
        elif self.base_model:
            request.base_model = self.base_model
        else:
            request.model_path = self.model_path
        request.backend = self.backend


def score_stream(
    connection: Connection, source: Source, sequences: Iterable[Tokens], options: ScoreOptions
) -> Iterator[Score]:
    """The scores of `sequences`, in order, taken from the iterable as they are needed."""
    topk = options.get("topk", 0)
    in_flight = options.get("in_flight", BATCHES_IN_FLIGHT)
    # An answer has a token id and a logprob for each of the k, and must fit into a message.
    batch_tokens = min(
        options.get("batch_tokens", BATCH_TOKENS), MESSAGE_BYTES // 2 // (8 * topk + 4)
    )
    if in_flight < 1 or batch_tokens < 1:
        raise ValueError(f"in_flight and batch_tokens must be positive; got {options}")
    pending: deque[Future[ScoreResponse]] = deque()
    try:
        for batch in _batches(sequences, batch_tokens):
            if len(pending) == in_flight:
                yield from _read(pending.popleft().result())
            request = ScoreRequest(
                tokens=batched_from_arrays(batch, dtype=np.int64),
                temperature=options.get("temperature"),
                topk=topk,
            )
            source.name_in(request)
            score = connection.scoring.Score
            pending.append(connection.start(score, request, timeout=WORK_SECONDS))
        while pending:
            yield from _read(pending.popleft().result())
    finally:
        for call in pending:
            call.cancel()


def _batches(sequences: Iterable[Tokens], batch_tokens: int) -> Iterator[list[NDArray[np.int32]]]:
    batch: list[NDArray[np.int32]] = []
    size = 0
    for sequence in sequences:
        tokens: NDArray[Any] = token_array(sequence)
        if batch and (size + tokens.size > batch_tokens or len(batch) == _BATCH_SEQUENCES):
            yield batch
            batch, size = [], 0
        batch.append(tokens.astype(np.int32))
        size += tokens.size
    if batch:
        yield batch


def _read(response: ScoreResponse) -> Iterator[Score]:
    logprobs = arrays_from_batched(response.logprobs)
    if not response.HasField("topk_tokens"):
        yield from (Score(values) for values in logprobs)  # type: ignore[arg-type]
        return
    tokens = arrays_from_batched(response.topk_tokens)
    values = arrays_from_batched(response.topk_logprobs)
    yield from map(Score, logprobs, tokens, values)  # type: ignore[arg-type]
