"""Rules for Sample and StreamSample."""

from __future__ import annotations

import math

from tinkergate.core.settings import CoreSettings
from tinkergate.core.validation.facts import Facts
from tinkergate.core.validation.inputs import InputRules
from tinkergate.core.validation.names import parse_checkpoint_path
from tinkergate.core.validation.report import Report
from tinkergate.core.validation.tensors import DTYPE_NAMES, INTEGERS, TokenIds
from tinkergate.errors import unsupported
from tinkergate.tensors import array_from_tensor
from tinkergate.v1 import DType, SampleRequest, SamplingParams, ScoreRequest, Tensor

MAX_STOPS = 256
MAX_STOP_CHARS = 4096
TABLE_ENTRY_BYTES = 8
"""A token id and its logprob."""


def check_source(request: SampleRequest | ScoreRequest) -> None:
    """What to sample from or score with."""
    report = Report()
    source = request.WhichOneof("source")
    if source is None:
        report.add("source", "is not given; must be sampler_id, base_model or model_path")
    elif not getattr(request, source):
        report.add(source, "is empty")
    elif source != "base_model" and request.backend:
        report.add("backend", f"is given with {source}, which has a backend already")
    if isinstance(request, SampleRequest) and request.HasField("seq_id"):
        if source != "sampler_id":
            report.add("seq_id", "is given without sampler_id; it counts the calls to a sampler")
        elif request.seq_id < 0:
            report.add("seq_id", f"is {request.seq_id}; must not be negative")
    report.raise_if_any()
    if source == "model_path":
        parse_checkpoint_path("model_path", request.model_path)


def check_sample(request: SampleRequest, facts: Facts, settings: CoreSettings) -> None:
    """What to draw. Raises INVALID, or UNSUPPORTED for what the backend lacks."""
    report = Report()
    inputs = InputRules(report, facts)
    length = inputs.check("prompt.chunks", request.prompt.chunks)
    inputs.finish()
    most = settings.max_samples_per_request
    if not 0 <= request.num_samples <= most:
        report.add("num_samples", f"is {request.num_samples}; must lie in 1..{most}")
    _check_params(report, request.sampling_params, facts)
    _check_prompt_questions(report, request, facts, length)
    _check_answer_size(report, request, facts, settings.max_message_bytes, length)
    report.raise_if_any()
    capabilities = facts.abilities.capabilities
    if request.record_stability_info and not capabilities.stability_info:
        raise unsupported("recording of stability information", capabilities.name)


def _check_params(report: Report, params: SamplingParams, facts: Facts) -> None:
    path = "sampling_params"
    if params.HasField("max_tokens") and params.max_tokens < 1:
        report.add(f"{path}.max_tokens", f"is {params.max_tokens}; must be at least 1")
    if not (math.isfinite(params.temperature) and params.temperature >= 0):
        report.add(
            f"{path}.temperature", f"is {params.temperature}; must be finite and not negative"
        )
    if params.top_k < -1:
        report.add(
            f"{path}.top_k", f"is {params.top_k}; must be at least 1, or 0 or -1 for all tokens"
        )
    if params.HasField("top_p") and not 0 < params.top_p <= 1:
        report.add(f"{path}.top_p", f"is {params.top_p}; must lie in (0, 1]")
    stops = params.WhichOneof("stop")
    if stops is None:
        return
    values = getattr(params, stops).values
    if len(values) > MAX_STOPS:
        report.add(
            f"{path}.{stops}.values", f"has {len(values)} entries; at most {MAX_STOPS} are allowed"
        )
        return
    for i, value in enumerate(values):
        field = f"{path}.{stops}.values[{i}]"
        if isinstance(value, int):
            if value < 0 or (facts.vocab_size and value >= facts.vocab_size):
                report.add(field, f"is {value}; token ids must lie in 0..{facts.vocab_size - 1}")
        elif not 0 < len(value) <= MAX_STOP_CHARS:
            report.add(field, f"has {len(value)} characters; must have 1 to {MAX_STOP_CHARS}")


def check_topk(report: Report, field: str, k: int, facts: Facts) -> None:
    """How many of the likeliest tokens to answer: 0 for none."""
    most = facts.vocab_size or (1 << 31) - 1
    if facts.abilities.capabilities.max_topk:
        most = min(most, facts.abilities.capabilities.max_topk)
    if not 0 <= k <= most:
        report.add(field, f"is {k}; must lie in 0..{most}")


def _check_prompt_questions(
    report: Report, request: SampleRequest, facts: Facts, length: int | None
) -> None:
    """What is asked about the prompt, which has `length` tokens."""
    for field in ("topk_prompt_logprobs", "topk_sample_logprobs", "prompt_alt_tokens_k"):
        check_topk(report, field, getattr(request, field), facts)
    if request.HasField("prompt_logprobs_last_n"):
        last = request.prompt_logprobs_last_n
        if not request.prompt_logprobs:
            report.add("prompt_logprobs_last_n", "is given without prompt_logprobs")
        if last < 1 or (length is not None and last > length - 1):
            rule = f"1..{length - 1}" if length else "1..prompt length - 1"
            report.add("prompt_logprobs_last_n", f"is {last}; must lie in {rule}")
    if request.HasField("target_prompt_logprobs"):
        _check_targets(report, request.target_prompt_logprobs, facts, length)


def _check_targets(report: Report, tensor: Tensor, facts: Facts, length: int | None) -> None:
    field = "target_prompt_logprobs"
    if tensor.dtype not in INTEGERS:
        said = DTYPE_NAMES.get(tensor.dtype, "not given")
        report.add(field, f"has dtype {said}; must be int64")
        return
    try:
        array = array_from_tensor(tensor, fill=-1, max_elements=1 << 24)
    except ValueError as error:
        report.add(field, str(error))
        return
    if array.ndim != 2 or (length is not None and array.shape[0] != length - 1):
        rows = "prompt length - 1" if length is None else length - 1
        report.add(field, f"has shape {list(array.shape)}; must be [{rows}, K]")
        return
    dtype = DType.DTYPE_INT64 if array.dtype.itemsize == 8 else DType.DTYPE_INT32
    ids = TokenIds(report, dtype, facts.vocab_size, lowest=-1)
    ids.add(field, array.tobytes())
    ids.finish()


def _check_answer_size(
    report: Report, request: SampleRequest, facts: Facts, limit: int, length: int | None
) -> None:
    """The tables that were asked for must fit into a message."""
    if length is None or report.violations:
        return
    params = request.sampling_params
    room = max(1, facts.max_context_length - length)
    drawn = min(params.max_tokens, room) if params.HasField("max_tokens") else room
    samples = max(1, request.num_samples)
    for field, rows in (
        ("topk_prompt_logprobs", length),
        ("prompt_alt_tokens_k", length),
        ("topk_sample_logprobs", samples * drawn),
    ):
        size = rows * getattr(request, field) * TABLE_ENTRY_BYTES
        if size > limit:
            report.add(
                field,
                f"is {getattr(request, field)}, which for {rows} tokens takes {size} bytes; "
                f"an answer holds at most {limit}",
            )
