"""Rules for CreateModel."""

from __future__ import annotations

import math

from tinkergate.core.validation.datums import check_config_value
from tinkergate.core.validation.facts import Abilities
from tinkergate.core.validation.names import parse_checkpoint_path
from tinkergate.core.validation.notes import check_metadata, check_request_id
from tinkergate.core.validation.report import Report
from tinkergate.errors import unsupported
from tinkergate.v1 import CreateModelRequest, LoraConfig, OptimizerConfig

ADAMW = "adamw"
MAX_NUMBER = 1 << 30


def check_create_model(request: CreateModelRequest) -> None:
    """What can be said of a CreateModel request before its backend is known."""
    report = Report()
    check_number(report, "model_seq_id", request)
    check_request_id(report, request.request_id)
    check_metadata(report, request.user_metadata)
    source = request.WhichOneof("source")
    if source is None:
        report.add("source", "is not given; must be base_model or checkpoint")
    elif source == "base_model" and not request.base_model:
        report.add("base_model", "is empty; must name a base model")
    elif source == "checkpoint" and request.HasField("lora_config"):
        report.add("lora_config", "is given with a checkpoint, whose adapter it would have to be")
    report.raise_if_any()
    if source == "checkpoint":
        parse_checkpoint_path("checkpoint.path", request.checkpoint.path)


def check_number(report: Report, field: str, request: object) -> None:
    """The caller's count of models or samplers: from 0."""
    if request.HasField(field):  # type: ignore[attr-defined]
        number = getattr(request, field)
        if not 0 <= number <= MAX_NUMBER:
            report.add(field, f"is {number}; must lie in 0..{MAX_NUMBER}")


def check_model_config(lora: LoraConfig, optimizer: OptimizerConfig, abilities: Abilities) -> None:
    """The adapter and the optimizer. Raises INVALID, or UNSUPPORTED for another optimizer than the
    backend has."""
    report = Report()
    _check_lora(report, lora, abilities.capabilities.max_lora_rank)
    kind = optimizer.type or ADAMW
    for key, value in optimizer.settings.items():
        field = f'optimizer_config.settings["{key}"]'
        check_config_value(report, field, value)
        if kind == ADAMW:
            report.add(field, f"is not a setting of {ADAMW}, which has none")
    report.raise_if_any()
    if kind not in abilities.optimizers:
        raise unsupported(
            f"the optimizer {kind!r}; it has: {', '.join(sorted(abilities.optimizers)) or 'none'}",
            abilities.backend,
        )


def _check_lora(report: Report, lora: LoraConfig, max_rank: int) -> None:
    if lora.HasField("rank"):
        if lora.rank < 1:
            report.add("lora_config.rank", f"is {lora.rank}; must be at least 1")
        elif max_rank and lora.rank > max_rank:
            report.add("lora_config.rank", f"is {lora.rank}; the backend allows at most {max_rank}")
    if lora.HasField("alpha") and not (math.isfinite(lora.alpha) and lora.alpha > 0):
        report.add("lora_config.alpha", f"is {lora.alpha}; must be finite and greater than 0")
    if (
        (lora.HasField("train_mlp") and not lora.train_mlp)
        and (lora.HasField("train_attn") and not lora.train_attn)
        and (lora.HasField("train_unembed") and not lora.train_unembed)
    ):
        report.add(
            "lora_config",
            "trains nothing; at least one of train_mlp, train_attn and train_unembed must be true",
        )
