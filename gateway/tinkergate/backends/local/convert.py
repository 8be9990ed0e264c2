"""Messages to the engine's arrays and back. Pure functions; no Python object per number."""

from __future__ import annotations

import itertools
import secrets
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from tinkergate.backends.losses import loss_capability
from tinkergate.engine.adapters import LoraSpec
from tinkergate.engine.drawing import DrawRule
from tinkergate.engine.losses import Example
from tinkergate.engine.optimizer import AdamSettings
from tinkergate.engine.sampling import (
    Likeliest,
    PromptAnswers,
    PromptQuestions,
    SampledTokens,
    SamplingRequest,
    Stops,
)
from tinkergate.engine.scorer import Scored, ScoringRequest
from tinkergate.engine.trainer import ForwardBackwardResult
from tinkergate.tensors import (
    array_from_tensor,
    arrays_from_batched,
    batched_from_arrays,
    tensor_from_array,
    token_bytes,
    tokens_from_bytes,
)
from tinkergate.v1 import (
    AdamParams,
    ArrayRecord,
    Chunk,
    ConfigValue,
    Datum,
    DType,
    ForwardBackwardOutput,
    LoraConfig,
    LossCapability,
    OptimStepResult,
    PromptAltTokens,
    SampledSequence,
    SampleRequest,
    SampleResponse,
    SamplingParams,
    ScoreRequest,
    ScoreResponse,
    SparseCsr,
    StopReason,
    Tensor,
    TopkLogprobs,
)
from tinkergate_kernels.losses import LOSSES

NO_LOGPROB = -99999.0
"""With token 0, an entry of a table of likeliest tokens that is not there."""

DEFAULT_LORA = LoraSpec(rank=32, alpha=32.0)


def tokens_from_chunks(chunks: Iterable[Chunk]) -> NDArray[np.int64]:
    """The token ids of a model input of text, (N,)."""
    parts = [tokens_from_bytes(chunk.encoded_text.tokens) for chunk in chunks]
    return np.concatenate(parts, dtype=np.int64)


def example_from_datum(datum: Datum) -> Example:
    """A training example. Its inputs are views into the message where they can be."""
    inputs = {name: array_from_tensor(tensor) for name, tensor in datum.loss_fn_inputs.items()}
    return Example(tokens_from_chunks(datum.model_input), inputs)


def settings_from_config(config: Mapping[str, ConfigValue]) -> dict[str, float | str]:
    """The settings of a loss."""
    return {
        key: value.text if value.HasField("text") else value.number for key, value in config.items()
    }


def adam_from_params(params: AdamParams) -> AdamSettings:
    """The settings of an AdamW step, with the defaults filled in."""
    return AdamSettings(**{field.name: value for field, value in params.ListFields()})


def spec_from_lora(config: LoraConfig) -> LoraSpec:
    """The adapter that is asked for, with the defaults filled in and a seed drawn if none is
    given."""
    given = {field.name: value for field, value in config.ListFields()}
    given.setdefault("seed", secrets.randbits(63))
    return LoraSpec(**{**vars(DEFAULT_LORA), **given})


def lora_from_spec(spec: LoraSpec) -> LoraConfig:
    """The adapter as it was made."""
    return LoraConfig(**vars(spec))


def loss_capabilities() -> list[LossCapability]:
    """The losses of the engine."""
    return [loss_capability(name) for name in LOSSES]


def output_from_result(result: ForwardBackwardResult) -> ForwardBackwardOutput:
    """The outcome of forward_backward. Arrays of one trailing shape go into one record."""
    records = [
        ArrayRecord(num_datums=len(arrays), fields={"logprobs": batched_from_arrays(arrays)})
        for _, group in itertools.groupby(result.logprobs, key=lambda array: array.shape[1:])
        for arrays in [list(group)]
    ]
    return ForwardBackwardOutput(
        loss_fn_output_type="ArrayRecord", loss_fn_outputs=records, metrics=result.metrics
    )


def step_from_metrics(metrics: Mapping[str, float]) -> OptimStepResult:
    """The outcome of optim_step."""
    return OptimStepResult(metrics=metrics)


def sampling_from_request(request: SampleRequest) -> SamplingRequest:
    """Sequences to draw."""
    params = request.sampling_params
    targets = None
    if request.HasField("target_prompt_logprobs"):
        targets = array_from_tensor(request.target_prompt_logprobs, fill=-1).astype(np.int64)
    return SamplingRequest(
        prompt=tokens_from_chunks(request.prompt.chunks),
        num_samples=request.num_samples or 1,
        max_tokens=params.max_tokens if params.HasField("max_tokens") else None,
        seed=params.seed if params.HasField("seed") else None,
        rule=DrawRule(
            temperature=params.temperature if params.HasField("temperature") else 1.0,
            top_k=max(params.top_k, 0),
            top_p=params.top_p if params.HasField("top_p") else 1.0,
        ),
        stops=stops_from_params(params),
        topk=request.topk_sample_logprobs,
        questions=PromptQuestions(
            logprobs=request.prompt_logprobs,
            last_n=(
                request.prompt_logprobs_last_n
                if request.HasField("prompt_logprobs_last_n")
                else None
            ),
            topk=request.topk_prompt_logprobs,
            targets=targets,
            alternatives=request.prompt_alt_tokens_k,
        ),
    )


def stops_from_params(params: SamplingParams) -> Stops:
    """What ends a sequence. Only an empty list switches the model's own end off."""
    match params.WhichOneof("stop"):
        case "stop_strs":
            strings = tuple(params.stop_strs.values)
            return Stops(eos=bool(strings), strings=strings)
        case "stop_tokens":
            tokens = frozenset(params.stop_tokens.values)
            return Stops(eos=bool(tokens), tokens=tokens)
        case _:
            return Stops()


def sequence_from_sampled(sampled: SampledTokens) -> SampledSequence:
    """A sequence that was drawn."""
    return SampledSequence(
        stop_reason=(
            StopReason.STOP_REASON_STOP if sampled.stopped else StopReason.STOP_REASON_LENGTH
        ),
        tokens=token_bytes(sampled.tokens),
        logprobs=_float_bytes(sampled.logprobs),
        topk_sampled_logprobs=None if sampled.topk is None else _table(sampled.topk),
    )


def response_from_answers(answers: PromptAnswers, request: SampleRequest) -> SampleResponse:
    """What was asked about the prompt; no sequences."""
    response = SampleResponse()
    if answers.logprobs is not None:
        response.prompt_logprobs = _float_bytes(answers.logprobs)
    if answers.topk is not None:
        response.topk_prompt_logprobs.CopyFrom(_table(_with_row_for_first(answers.topk)))
    if answers.targets is not None:
        response.target_prompt_logprobs.CopyFrom(
            _laid_out_like(request.target_prompt_logprobs, answers.targets)
        )
    if answers.alternatives is not None:
        response.prompt_alt_tokens.CopyFrom(
            PromptAltTokens(
                tokens=tensor_from_array(answers.alternatives.tokens),
                logprobs=tensor_from_array(answers.alternatives.logprobs),
            )
        )
    return response


def scoring_from_request(request: ScoreRequest) -> ScoringRequest:
    """Sequences to score."""
    arrays = arrays_from_batched(request.tokens)
    return ScoringRequest(
        tokens=np.concatenate([np.empty(0, np.int64), *arrays], dtype=np.int64),
        lengths=np.array([len(array) for array in arrays], np.int64),
        temperature=request.temperature if request.HasField("temperature") else 1.0,
        topk=request.topk,
    )


def response_from_scored(scored: Scored, lengths: NDArray[np.int64]) -> ScoreResponse:
    """The scores of sequences of these lengths."""
    ends = np.cumsum(lengths)
    cuts = ends[:-1]

    def ragged(array: NDArray[np.generic]) -> Sequence[NDArray[np.generic]]:
        return np.split(array, cuts) if len(lengths) else []

    response = ScoreResponse(logprobs=batched_from_arrays(ragged(scored.logprobs)))
    if scored.topk is not None:
        logprobs = scored.topk.logprobs.copy()
        logprobs[ends - lengths] = NO_LOGPROB
        response.topk_tokens.CopyFrom(batched_from_arrays(ragged(scored.topk.ids)))
        response.topk_logprobs.CopyFrom(batched_from_arrays(ragged(logprobs)))
    return response


def _float_bytes(array: NDArray[np.float32]) -> bytes:
    return tensor_from_array(array).dense


def _table(likeliest: Likeliest) -> TopkLogprobs:
    length, k = likeliest.ids.shape
    return TopkLogprobs(
        token_ids=token_bytes(likeliest.ids),
        logprobs=_float_bytes(likeliest.logprobs),
        k=k,
        length=length,
    )


def _with_row_for_first(likeliest: Likeliest) -> Likeliest:
    """The table of a prompt: there is nothing to say about its first token."""
    k = likeliest.ids.shape[1]
    return Likeliest(
        np.concatenate([np.zeros((1, k), np.int32), likeliest.ids]),
        np.concatenate([np.full((1, k), NO_LOGPROB, np.float32), likeliest.logprobs]),
    )


def _laid_out_like(asked: Tensor, answers: NDArray[np.float32]) -> Tensor:
    """`answers` (rows, K) in the layout of what was asked: dense, or the entries that a CSR tensor
    stores."""
    if asked.WhichOneof("encoding") != "sparse_csr":
        return tensor_from_array(answers)
    stored = asked.sparse_csr
    rows, columns = _entries(stored)
    return Tensor(
        sparse_csr=SparseCsr(
            values=_float_bytes(answers[rows, columns]),
            crow_indices=stored.crow_indices,
            col_indices=stored.col_indices,
        ),
        dtype=DType.DTYPE_FLOAT32,
        shape=asked.shape,
    )


def _entries(stored: SparseCsr) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The row and column of each stored element."""
    crow, columns = (
        array_from_tensor(Tensor(dense=data, dtype=DType.DTYPE_INT64)).astype(np.int64)
        for data in (stored.crow_indices, stored.col_indices)
    )
    return np.repeat(np.arange(len(crow) - 1), np.diff(crow)), columns
