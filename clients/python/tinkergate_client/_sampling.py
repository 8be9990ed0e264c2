"""Drawing sequences from a model, and scoring given ones with it."""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypedDict, Unpack

import grpc
import numpy as np
from numpy.typing import ArrayLike, NDArray

from tinkergate import v1
from tinkergate.tensors import (
    array_from_tensor,
    floats_from_bytes,
    tensor_from_array,
    tokens_from_bytes,
)
from tinkergate_client._calls import Patience
from tinkergate_client._connection import WORK_SECONDS, Connection
from tinkergate_client._datums import Tokens, model_input
from tinkergate_client._errors import error_from_call
from tinkergate_client._futures import CallFuture
from tinkergate_client._scoring import Score, ScoreOptions, Source, score_stream

Ids = NDArray[np.int32]
Logprobs = NDArray[np.float32]


class SampleOptions(TypedDict, total=False):
    """How to draw, and what to tell beside the tokens. What is absent is left to the gateway."""

    num_samples: int
    """How many sequences; 1 if absent."""
    max_tokens: int
    """The most tokens of each; up to the end of the model's context if absent."""
    temperature: float
    """Logits are divided by it; 0 takes the likeliest token; 1 if absent."""
    top_k: int
    """Draw from the k likeliest tokens only."""
    top_p: float
    """Draw from the smallest set of likeliest tokens whose probability reaches p."""
    seed: int
    """The same seed and request give the same tokens."""
    stop: str | Sequence[str] | Sequence[int]
    """Text or token ids that end a sequence, beside the model's own end-of-sequence token. An
    empty list switches even that off."""
    prompt_logprobs: bool
    """Tell the logprob of each prompt token."""
    prompt_logprobs_last_n: int
    """Tell those of the last n positions only."""
    topk_prompt_logprobs: int
    """Tell the k likeliest tokens of each prompt position."""
    topk_sample_logprobs: int
    """Tell the k likeliest tokens of each sampled position."""
    target_prompt_logprobs: ArrayLike
    """int (prompt length - 1, K): tell the logprobs of these tokens, row i for prompt position
    i + 1; -1 asks for nothing."""
    prompt_alt_tokens_k: int
    """Draw k tokens for each prompt position but the first."""
    record_stability_info: bool
    """Have the backend record what the stable_reinforce loss needs later."""


@dataclass(frozen=True)
class TopK:
    """The k likeliest tokens of each position, likeliest first. Token 0 with logprob -99999 means
    that there is none."""

    tokens: Ids
    """int32 (N, k)."""
    logprobs: Logprobs
    """float32 (N, k)."""


@dataclass(frozen=True)
class SampledSequence:
    """One sequence that was drawn."""

    tokens: Ids
    """int32 (N,); the token that ended the sequence is part of it."""
    logprobs: Logprobs | None
    """float32 (N,): of each token under logits / temperature, before top_k and top_p."""
    stop_reason: Literal["stop", "length"]
    """"stop" if a stop rule ended it, "length" if max_tokens or the model's context did."""
    topk: TopK | None = None
    """The likeliest tokens of each position, if asked for."""


@dataclass(frozen=True)
class SampleResult:
    """The sequences of one call, and what was asked about the prompt."""

    sequences: list[SampledSequence]
    """As many as asked for."""
    prompt_logprobs: Logprobs | None
    """float32 (prompt length,); NaN for the first and where none was asked for."""
    topk_prompt_logprobs: TopK | None
    """One row a prompt position."""
    target_prompt_logprobs: Logprobs | None
    """float32 in the shape asked for; 0 where nothing was asked."""
    prompt_alt_tokens: NDArray[np.int64] | None
    """int64 (prompt length - 1, k)."""
    prompt_alt_logprobs: Logprobs | None
    """float32 (prompt length - 1, k), at the request's temperature."""
    prompt_cache_hit_tokens: int
    """How many prompt tokens were found in a cache."""


class Sampler:
    """Draws from one fixed set of weights, and scores with it. Safe to use from many threads."""

    def __init__(self, connection: Connection, source: Source) -> None:
        self._connection = connection
        self._source = source
        # (sampler_id, seq_id) is a call's identity. A random block for each Sampler object keeps
        # programs that share a sampler apart without asking anybody.
        self._seq_ids = itertools.count(random.getrandbits(31) << 32)

    @property
    def sampler_id(self) -> str:
        """The sampler's id; empty if this samples straight from a path or a base model."""
        return self._source.sampler_id

    @property
    def model_path(self) -> str:
        """The path of the checkpoint; empty if the weights were not saved, or are a base model."""
        return self._source.model_path

    @property
    def base_model(self) -> str:
        """The base model, if this samples from one without an adapter."""
        return self._source.base_model

    def sample(
        self, prompt: Tokens | v1.ModelInput, **options: Unpack[SampleOptions]
    ) -> SampleResult:
        """Draw sequences and wait for all. Raises TinkergateError."""
        call = self.sample_later(prompt, **options)
        try:
            return call.result()
        except BaseException:
            call.cancel()
            raise

    def sample_later(
        self, prompt: Tokens | v1.ModelInput, **options: Unpack[SampleOptions]
    ) -> CallFuture[v1.SampleResponse, SampleResult]:
        """Begin to draw sequences: many calls at once are worked on together."""
        request = self._request(prompt, options)
        sample = self._connection.sampling.Sample
        call = self._connection.start(sample, request, timeout=WORK_SECONDS)
        return CallFuture(call, _read_response)

    def stream(
        self, prompt: Tokens | v1.ModelInput, **options: Unpack[SampleOptions]
    ) -> Iterator[tuple[int, SampledSequence]]:
        """Draw sequences, each given with its index as soon as it is finished. Ending the loop
        early stops the work. What is asked about the prompt is not told here. Raises
        TinkergateError."""
        request = v1.StreamSampleRequest(request=self._request(prompt, options))
        patience = Patience(self._connection.patience)
        seen: set[int] = set()
        while True:
            events = self._connection.sampling.StreamSample(
                request, metadata=self._connection.metadata
            )
            try:
                for event in events:
                    index = event.sequence.index
                    if event.HasField("sequence") and index not in seen:
                        seen.add(index)
                        yield index, _read_sequence(event.sequence.sequence)
                return
            except grpc.RpcError as failure:
                error = error_from_call(failure)
                delay = patience.delay_after(error)
                if delay is None:
                    raise error from None
                time.sleep(delay)
            finally:
                events.cancel()  # type: ignore[no-untyped-call]

    def score(self, sequences: Iterable[Tokens], **options: Unpack[ScoreOptions]) -> list[Score]:
        """The logprob of every token of every sequence given those before it. Raises
        TinkergateError."""
        return list(self.score_stream(sequences, **options))

    def score_stream(
        self, sequences: Iterable[Tokens], **options: Unpack[ScoreOptions]
    ) -> Iterator[Score]:
        """`score` for more than fits in memory: sequences are taken as scores are asked for, and
        scores come in the same order."""
        return score_stream(self._connection, self._source, sequences, options)

    def _request(self, prompt: Tokens | v1.ModelInput, options: SampleOptions) -> v1.SampleRequest:
        request = v1.SampleRequest(
            prompt=prompt if isinstance(prompt, v1.ModelInput) else model_input(prompt),
            num_samples=options.get("num_samples", 1),
            sampling_params=_sampling_params(options),
            prompt_logprobs=options.get("prompt_logprobs", False),
            prompt_logprobs_last_n=options.get("prompt_logprobs_last_n"),
            topk_prompt_logprobs=options.get("topk_prompt_logprobs", 0),
            topk_sample_logprobs=options.get("topk_sample_logprobs", 0),
            prompt_alt_tokens_k=options.get("prompt_alt_tokens_k", 0),
            record_stability_info=options.get("record_stability_info", False),
        )
        self._source.name_in(request)
        if self._source.sampler_id:
            request.seq_id = next(self._seq_ids)
        if (targets := options.get("target_prompt_logprobs")) is not None:
            request.target_prompt_logprobs.CopyFrom(
                tensor_from_array(np.asarray(targets, dtype=np.int64))
            )
        return request


def _sampling_params(options: SampleOptions) -> v1.SamplingParams:
    params = v1.SamplingParams(
        max_tokens=options.get("max_tokens"),
        seed=options.get("seed"),
        temperature=options.get("temperature"),
        top_k=options.get("top_k"),
        top_p=options.get("top_p"),
    )
    stop = options.get("stop")
    if stop is None:
        return params
    values: list[Any] = [stop] if isinstance(stop, str) else list(stop)
    if all(isinstance(value, str) for value in values):
        params.stop_strs.CopyFrom(v1.StopStrings(values=values))
    else:
        params.stop_tokens.CopyFrom(v1.StopTokens(values=values))
    return params


def _read_response(response: v1.SampleResponse) -> SampleResult:
    alternatives = response.prompt_alt_tokens if response.HasField("prompt_alt_tokens") else None
    return SampleResult(
        sequences=[_read_sequence(sequence) for sequence in response.sequences],
        prompt_logprobs=(
            floats_from_bytes(response.prompt_logprobs)
            if response.HasField("prompt_logprobs")
            else None
        ),
        topk_prompt_logprobs=(
            _read_topk(response.topk_prompt_logprobs)
            if response.HasField("topk_prompt_logprobs")
            else None
        ),
        target_prompt_logprobs=(
            array_from_tensor(response.target_prompt_logprobs)  # type: ignore[arg-type]
            if response.HasField("target_prompt_logprobs")
            else None
        ),
        prompt_alt_tokens=array_from_tensor(alternatives.tokens) if alternatives else None,  # type: ignore[arg-type]
        prompt_alt_logprobs=array_from_tensor(alternatives.logprobs) if alternatives else None,  # type: ignore[arg-type]
        prompt_cache_hit_tokens=response.prompt_cache_hit_tokens,
    )


def _read_sequence(sequence: v1.SampledSequence) -> SampledSequence:
    return SampledSequence(
        tokens=tokens_from_bytes(sequence.tokens),
        logprobs=floats_from_bytes(sequence.logprobs) if sequence.HasField("logprobs") else None,
        stop_reason=(
            "length" if sequence.stop_reason == v1.StopReason.STOP_REASON_LENGTH else "stop"
        ),
        topk=(
            _read_topk(sequence.topk_sampled_logprobs)
            if sequence.HasField("topk_sampled_logprobs")
            else None
        ),
    )


def _read_topk(table: v1.TopkLogprobs) -> TopK:
    shape = (table.length, table.k)
    return TopK(
        tokens_from_bytes(table.token_ids).reshape(shape),
        floats_from_bytes(table.logprobs).reshape(shape),
    )
