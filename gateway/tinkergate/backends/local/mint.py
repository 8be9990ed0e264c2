"""MinT's messages to the engine's shapes and back. Pure functions."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from tinkergate.backends.local.convert import tokens_from_chunks
from tinkergate.engine.distillation import Comparison
from tinkergate.engine.rollout_correction import RolloutCorrection
from tinkergate.engine.trainer import ReverseKlResult
from tinkergate.tensors import array_from_tensor, batched_from_arrays
from tinkergate.v1 import ArrayRecord, ForwardBackwardOutput, ReverseKlDatum
from tinkergate.v1 import RolloutCorrection as RolloutCorrectionMessage


def comparisons_from_data(data: Iterable[ReverseKlDatum]) -> list[Comparison]:
    """The texts of a reverse KL request."""
    return [
        Comparison(
            tokens_from_chunks(datum.student_input.chunks),
            tokens_from_chunks(datum.reference_input.chunks),
            array_from_tensor(datum.weights).astype(np.float32, copy=False),
        )
        for datum in data
    ]


def output_from_reverse_kl(result: ReverseKlResult) -> ForwardBackwardOutput:
    """The outcome of a reverse KL request: one loss a datum, float32 [1]."""
    losses = np.array(result.losses, np.float32)[:, None]
    record = ArrayRecord(num_datums=len(losses), fields={"loss": batched_from_arrays(list(losses))})
    return ForwardBackwardOutput(
        loss_fn_output_type="ArrayRecord", loss_fn_outputs=[record], metrics=result.metrics
    )


def correction_from_message(message: RolloutCorrectionMessage | None) -> RolloutCorrection | None:
    """What is to stay of rollouts, with the defaults filled in."""
    if message is None:
        return None
    return RolloutCorrection(**{field.name: value for field, value in message.ListFields()})
