"""Results as Loops tells them (wire sections 4, 5, 8 and 9), as messages of the contract.

Whatever is not as documented raises GatewayError (INVALID) that names the field: who asked decides
what to make of an answer that makes no sense.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinkergate.dialects.loops.tensors_json import tensor_from_json
from tinkergate.dialects.tinker.json_fields import Fields, shown
from tinkergate.errors import invalid_field
from tinkergate.tensors import array_from_tensor
from tinkergate.v1 import SupportedModel

FloatArray = NDArray[np.float32]
LOGPROBS = "logprobs"


@dataclass(frozen=True)
class Run:
    """A run, which is a trainer (wire section 4.2)."""

    run_id: str
    base_model: str
    """The service's own spelling."""
    base_url: str
    deployment_id: str
    """Empty if it is serverless."""
    base_checkpoint: str
    name: str


@dataclass(frozen=True)
class SamplerFacts:
    """A sampler (wire section 4.3)."""

    sampler_id: str
    base_model: str
    base_url: str
    model_id: str
    """Empty if it is serverless."""
    deployment_id: str


@dataclass(frozen=True)
class StoredCheckpoint:
    """A checkpoint, as the service lists it (wire section 9.1)."""

    checkpoint_id: str
    """What routes call it, which is not its name."""
    name: str
    target: str
    base_model: str
    rank: int
    """0 if it is not told."""
    size_bytes: int


@dataclass(frozen=True)
class StoredFile:
    """A file of a checkpoint (wire section 9.3)."""

    name: str
    url: str
    size_bytes: int


def run_from_json(fields: Fields) -> Run:
    """A LoopsRun."""
    return Run(
        fields.text("id"),
        fields.text("base_model"),
        fields.text("base_url").rstrip("/"),
        fields.optional_text("deployment_id") or "",
        fields.optional_text("base_checkpoint") or "",
        fields.optional_text("name") or "",
    )


def sampler_from_json(fields: Fields) -> SamplerFacts:
    """A LoopsSampler."""
    model_id = fields.optional_text("model_id") or ""
    return SamplerFacts(
        fields.text("id"),
        fields.optional_text("base_model") or "",
        fields.text("base_url").rstrip("/"),
        model_id,
        fields.text("deployment_id") if model_id else "",
    )


def models_from_json(fields: Fields) -> list[SupportedModel]:
    """The base models of capabilities (wire section 4.5), but for those without a name. What is
    not said of one is taken to be possible; the tokenizer goes by the name."""
    models = []
    for index, value in enumerate(fields.items("supported_models")):
        model = Fields(value, f"supported_models[{index}]")
        if name := model.optional_text("model_name"):
            length = model.optional_integer("max_context_length")
            if length is None:
                length = model.optional_integer("max_enabled_seq_len") or 0
            enabled = model.flag("enabled", True)
            models.append(
                SupportedModel(
                    name=name,
                    max_context_length=length,
                    trainable=enabled,
                    sampleable=enabled,
                    tokenizer_id=name,
                )
            )
    return models


def checkpoints_from_json(fields: Fields) -> list[StoredCheckpoint]:
    """The checkpoints of a list."""
    found = []
    for index, value in enumerate(fields.items("checkpoints")):
        each = Fields(value, f"checkpoints[{index}]")
        adapter = each.optional_fields("lora_adapter_config")
        found.append(
            StoredCheckpoint(
                each.text("id"),
                each.optional_text("checkpoint_id") or "",
                each.optional_text("target") or "",
                each.optional_text("base_model") or "",
                (adapter.optional_integer("r") or 0) if adapter is not None else 0,
                each.optional_integer("size_bytes", bits=64) or 0,
            )
        )
    return found


def files_from_json(fields: Fields) -> tuple[list[StoredFile], int | None]:
    """A page of files, and the token of the next; None after the last."""
    files = []
    for index, value in enumerate(fields.items("presigned_urls")):
        each = Fields(value, f"presigned_urls[{index}]")
        name, size = each.text("relative_file_name"), each.integer("size_bytes", bits=64)
        files.append(StoredFile(name, each.text("url"), size))
    return files, fields.optional_integer("next_page_token", bits=64)


def logprobs_from_json(fields: Fields, shapes: Sequence[tuple[int, ...]]) -> list[FloatArray]:
    """The logprobs of the targets of each datum, of a result of forward or forward_backward of
    datums whose targets have these shapes. Positions that were not scored are 0."""
    rows = fields.items("loss_fn_outputs")
    if len(rows) != len(shapes):
        raise invalid_field("loss_fn_outputs", f"has {len(rows)} datums; {len(shapes)} were sent")
    found = []
    for index, (value, shape) in enumerate(zip(rows, shapes, strict=True)):
        row = Fields(value, f"loss_fn_outputs[{index}]")
        tensor = tensor_from_json(row.raw(LOGPROBS), row.path(LOGPROBS))
        array = np.asarray(array_from_tensor(tensor), np.float32)
        if array.shape != shape:
            raise invalid_field(
                row.path(LOGPROBS), f"has the shape {list(array.shape)}; the targets {list(shape)}"
            )
        found.append(np.where(np.isnan(array), np.float32(0), array))
    return found


def flag_metric(fields: Fields, name: str) -> bool:
    """Whether a metric is exactly 1."""
    metrics = fields.optional_fields("metrics")
    value: Any = None if metrics is None else metrics.value.get(name)
    return not isinstance(value, bool) and value == 1.0


def metrics_from_json(fields: Fields) -> dict[str, float]:
    """`metrics`, but for those that are no numbers: which there are is not documented, and a step
    is not to fail for them."""
    metrics = fields.optional_fields("metrics")
    values = {} if metrics is None else metrics.value
    return {
        name: float(value)
        for name, value in values.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }


def page_after(token: int | None, page: int) -> int | None:
    """The next page of a list, which must lie behind this one, or the list would never end."""
    if token is not None and token <= page:
        raise invalid_field("next_page_token", f"is {shown(token)}; must be more than {page}")
    return token
