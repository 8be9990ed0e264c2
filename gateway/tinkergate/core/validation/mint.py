"""Rules for what MinT adds: reverse KL, interpolation, rollout correction, and training and acting
of vision-language-action models."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from tinkergate.core.ids import CheckpointPath
from tinkergate.core.validation.facts import Abilities, Facts
from tinkergate.core.validation.inputs import InputRules
from tinkergate.core.validation.loss_tensors import TensorRules
from tinkergate.core.validation.names import check_name, parse_checkpoint_path
from tinkergate.core.validation.notes import check_request_id
from tinkergate.core.validation.report import Report
from tinkergate.errors import unsupported
from tinkergate.tensors import array_from_tensor
from tinkergate.v1 import (
    CheckpointType,
    Chunk,
    CreateModelRequest,
    ForwardBackwardReverseKlRequest,
    InterpolateCheckpointsRequest,
    ReverseKlDatum,
    VlaObservation,
    VlaTrainStepRequest,
)

OUTPUT_TYPES = (
    CheckpointType.CHECKPOINT_TYPE_UNSPECIFIED,
    CheckpointType.CHECKPOINT_TYPE_SAMPLER,
    CheckpointType.CHECKPOINT_TYPE_TRAINING,
)
"""What the checkpoint of an interpolation may be for."""


def check_rollout_correction(request: CreateModelRequest, abilities: Abilities) -> None:
    """The rollout correction of a CreateModel request, if it has one. Raises INVALID, or
    UNSUPPORTED."""
    if not request.HasField("rollout_correction"):
        return
    if not abilities.capabilities.rollout_correction:
        raise unsupported("rollout_correction", abilities.backend)
    report, correction = Report(), request.rollout_correction
    threshold, lower, cap = (
        correction.threshold,
        correction.lower_threshold,
        correction.weight_cap,
    )
    if not correction.ListFields():
        report.add("rollout_correction", "says nothing; must set one of its fields")
    if correction.HasField("threshold") and not (math.isfinite(threshold) and threshold >= 1):
        report.add("rollout_correction.threshold", f"is {threshold}; must be at least 1")
    if correction.HasField("lower_threshold") and not 0 <= lower <= 1:
        report.add("rollout_correction.lower_threshold", f"is {lower}; must lie in 0..1")
    if correction.HasField("weight_cap") and not (math.isfinite(cap) and cap > 0):
        report.add("rollout_correction.weight_cap", f"is {cap}; must be finite and greater than 0")
    report.raise_if_any()


def check_reverse_kl(
    report: Report, request: ForwardBackwardReverseKlRequest, facts: Facts
) -> None:
    """A ForwardBackwardReverseKl request. Raises UNSUPPORTED for what the backend lacks."""
    if not facts.abilities.capabilities.reverse_kl:
        raise unsupported("reverse KL", facts.abilities.backend)
    if not request.reference_model_path:
        report.add("reference_model_path", "is empty; must be a checkpoint or the base model")
    temperature = request.temperature
    if request.HasField("temperature") and not (math.isfinite(temperature) and temperature > 0):
        report.add("temperature", f"is {temperature}; must be finite and greater than 0")
    if not request.data:
        report.add("data", "is empty; needs at least one datum")
    inputs, tensors = InputRules(report, facts), TensorRules(report, facts)
    for index, datum in enumerate(request.data):
        if report.full:
            break
        _check_datum(report, f"data[{index}]", datum, inputs, tensors)
    inputs.finish()
    tensors.finish()


def _check_datum(
    report: Report, field: str, datum: ReverseKlDatum, inputs: InputRules, tensors: TensorRules
) -> None:
    student, reference = datum.student_input.chunks, datum.reference_input.chunks
    count = inputs.check(f"{field}.student_input.chunks", student)
    there = inputs.check(f"{field}.reference_input.chunks", reference)
    shapes = {
        name: tensors.check(f"{field}.{name}", getattr(datum, name), is_tokens=name != "weights")
        for name in ("target_tokens", "weights")
    }
    for name, shape in shapes.items():
        if shape is not None and count is not None and shape != (count,):
            report.add(
                f"{field}.{name}",
                f"has shape {list(shape)}; the student's input has {count} tokens, so must be "
                f"[{count}]",
            )
            return
    if count is None or there is None or shapes["weights"] is None:
        return
    rows = np.flatnonzero(array_from_tensor(datum.weights))
    if not len(rows):
        return
    needed = count - int(rows[0])
    if there < needed:
        report.add(
            f"{field}.reference_input",
            f"has {there} tokens; the first row whose weight is not 0 is {rows[0]} of {count}, so "
            f"must have at least {needed}",
        )
    elif (ours := _text(student)) is not None and (theirs := _text(reference)) is not None:
        following = (needed - 1) * _ID_BYTES
        if following and ours[-following:] != theirs[-following:]:
            report.add(
                f"{field}.reference_input",
                f"does not end with the {needed - 1} tokens that the student reads after row "
                f"{rows[0]}, its first whose weight is not 0",
            )


_ID_BYTES = 4
"""A packed token id."""


def _text(chunks: Sequence[Chunk]) -> bytes | None:
    """The packed tokens of an input of text; None if there is something else in it."""
    if any(chunk.WhichOneof("chunk") != "encoded_text" for chunk in chunks):
        return None
    return b"".join(chunk.encoded_text.tokens for chunk in chunks)


def check_interpolation(request: InterpolateCheckpointsRequest) -> list[CheckpointPath]:
    """An InterpolateCheckpoints request. Answers the sources' paths taken apart. Raises
    INVALID."""
    report = Report()
    count, given = len(request.source_paths), len(request.coefficients)
    if not count:
        report.add("source_paths", "is empty; needs at least one checkpoint")
    if given != count:
        report.add(
            "coefficients", f"has {given} entries; must have one for each of the {count} sources"
        )
    for index, value in enumerate(request.coefficients):
        if not math.isfinite(value):
            report.add(f"coefficients[{index}]", f"is {value}; must be finite")
    if request.output_name:
        check_name(report, "output_name", request.output_name)
    if request.output_type not in OUTPUT_TYPES:
        report.add("output_type", f"is {request.output_type}; must be SAMPLER or TRAINING")
    check_request_id(report, request.request_id)
    report.raise_if_any()
    return [
        parse_checkpoint_path(f"source_paths[{index}]", path)
        for index, path in enumerate(request.source_paths)
    ]


def check_vla_train_step(report: Report, request: VlaTrainStepRequest, facts: Facts) -> None:
    """A VlaTrainStep request. What is seen is the provider's to judge. Raises UNSUPPORTED."""
    if not facts.abilities.capabilities.vla:
        raise unsupported("training of vision-language-action models", facts.abilities.backend)
    if not request.loss_fn:
        report.add("loss_fn", "is empty; must name a loss")
    if not request.data:
        report.add("data", "is empty; needs at least one example")
    tensors = TensorRules(report, facts)
    for index, datum in enumerate(request.data):
        field = f"data[{index}]"
        check_observation(report, f"{field}.observation", datum.observation)
        shape = tensors.check(f"{field}.actions", datum.actions, is_tokens=False)
        if shape is not None and (len(shape) != 2 or 0 in shape):
            report.add(f"{field}.actions", f"has shape {list(shape)}; must be (horizon, dim)")
    tensors.finish()


def check_observation(report: Report, field: str, observation: VlaObservation) -> None:
    """What a vision-language-action model sees."""
    if not observation.model_input.chunks:
        report.add(f"{field}.model_input", "is empty; must hold images or text")
    for index, value in enumerate(observation.state):
        if not math.isfinite(value):
            report.add(f"{field}.state[{index}]", f"is {value}; must be finite")
