"""Rules for Score."""

from __future__ import annotations

import math

import numpy as np

from tinkergate.core.settings import CoreSettings
from tinkergate.core.validation.facts import Facts
from tinkergate.core.validation.report import Report
from tinkergate.core.validation.sampling import TABLE_ENTRY_BYTES, check_topk
from tinkergate.core.validation.tensors import DTYPE_NAMES, INTEGERS, ITEM_BYTES, TokenIds
from tinkergate.v1 import BatchedTensor, ScoreRequest

LOGPROB_BYTES = 4


def check_score(request: ScoreRequest, facts: Facts, settings: CoreSettings) -> None:
    """A Score request, but for its source. Raises INVALID."""
    report = Report()
    if request.HasField("temperature"):
        value = request.temperature
        if not (math.isfinite(value) and value > 0):
            report.add("temperature", f"is {value}; must be finite and greater than 0")
    check_topk(report, "topk", request.topk, facts)
    tokens = _check_tokens(report, request.tokens, facts)
    size = tokens * (LOGPROB_BYTES + TABLE_ENTRY_BYTES * max(0, request.topk))
    if not report.violations and size > settings.max_message_bytes:
        report.add(
            "tokens",
            f"has {tokens} tokens, whose scores take {size} bytes; an answer holds at most "
            f"{settings.max_message_bytes}",
        )
    report.raise_if_any()


def _check_tokens(report: Report, batch: BatchedTensor, facts: Facts) -> int:
    """The number of tokens of all sequences."""
    if batch.dtype not in INTEGERS:
        said = DTYPE_NAMES.get(batch.dtype, "not given")
        report.add("tokens.dtype", f"is {said}; must be int32 or int64")
        return 0
    if batch.trailing_shape:
        report.add("tokens.trailing_shape", f"is {list(batch.trailing_shape)}; tokens have no such")
        return 0
    packed = batch.data
    item = ITEM_BYTES[batch.dtype]
    if len(packed) % item or len(batch.offsets) % 8:
        report.add(
            "tokens",
            f"has {len(packed)} bytes of data and {len(batch.offsets)} of offsets;"
            f" must be multiples of {item} and 8",
        )
        return 0
    offsets = np.frombuffer(batch.offsets, "<i8")
    if offsets.size < 2:
        report.add("tokens.offsets", "has no sequences; needs at least one")
        return 0
    if offsets[0] != 0 or offsets[-1] != len(packed):
        report.add("tokens.offsets", f"must run from 0 to the {len(packed)} bytes of data")
        return 0
    lengths = np.diff(offsets)
    limit = facts.max_context_length * item or len(packed)
    for i in np.flatnonzero((lengths <= 0) | (lengths % item != 0) | (lengths > limit)).tolist():
        length = int(lengths[i])
        if length <= 0:
            report.add(f"tokens[{i}]", "has no tokens; needs at least one")
        elif length % item:
            report.add(f"tokens[{i}]", f"has {length} bytes; must be a multiple of {item}")
        else:
            report.add(
                f"tokens[{i}]",
                f"has {length // item} tokens; the model's context holds "
                f"at most {facts.max_context_length}",
            )
        if report.full:
            break
    if not report.violations:
        ids = TokenIds(report, batch.dtype, facts.vocab_size)
        ids.add("tokens", packed)
        ids.finish()
    return len(packed) // item
