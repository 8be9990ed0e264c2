"""Rules for the training requests of a model."""

from __future__ import annotations

import math

from tinkergate.backends.base import TrainingRequest
from tinkergate.core.validation.datums import check_config_value, check_forward
from tinkergate.core.validation.facts import Facts
from tinkergate.core.validation.mint import check_reverse_kl, check_vla_train_step
from tinkergate.core.validation.models import ADAMW, check_number
from tinkergate.core.validation.names import check_name, check_ttl, parse_checkpoint_path
from tinkergate.core.validation.notes import check_metadata, check_request_id
from tinkergate.core.validation.report import Report
from tinkergate.errors import unsupported
from tinkergate.v1 import (
    AdamParams,
    ForwardBackwardRequest,
    ForwardBackwardReverseKlRequest,
    ForwardRequest,
    LoadStateRequest,
    OptimStepRequest,
    SamplerWeightsKind,
    SaveStateRequest,
    SaveWeightsExternalRequest,
    SaveWeightsForSamplerRequest,
    VlaTrainStepRequest,
)


def check_training_request(request: TrainingRequest, facts: Facts, optimizer: str) -> None:
    """A training request for a model with these facts, made for this optimizer. Raises INVALID, or
    UNSUPPORTED for what the backend lacks."""
    report = Report()
    if request.HasField("seq_id") and request.seq_id < 1:
        report.add("seq_id", f"is {request.seq_id}; seq_ids start at 1")
    check_request_id(report, request.request_id)
    if isinstance(request, ForwardRequest | ForwardBackwardRequest):
        check_forward(report, request, facts)
    elif isinstance(request, OptimStepRequest):
        _check_optim_step(report, request, facts, optimizer)
    elif isinstance(request, SaveStateRequest):
        _check_save_state(report, request)
    elif isinstance(request, SaveWeightsForSamplerRequest):
        _check_save_weights(report, request, facts)
    elif isinstance(request, SaveWeightsExternalRequest):
        _check_save_external(report, request, facts)
    elif isinstance(request, ForwardBackwardReverseKlRequest):
        check_reverse_kl(report, request, facts)
    elif isinstance(request, VlaTrainStepRequest):
        check_vla_train_step(report, request, facts)
    report.raise_if_any()
    if isinstance(request, LoadStateRequest):
        parse_checkpoint_path("path", request.path)


def _check_optim_step(
    report: Report, request: OptimStepRequest, facts: Facts, optimizer: str
) -> None:
    if request.HasField("other"):
        for key, value in request.other.settings.items():
            check_config_value(report, f'other.settings["{key}"]', value)
        kind = request.other.type
        if not kind:
            report.add("other.type", "is empty; must name an optimizer")
        elif kind not in facts.abilities.optimizers:
            raise unsupported(f"the optimizer {kind!r}", facts.abilities.backend)
        elif kind != optimizer:
            report.add("other.type", f'is "{kind}"; the model was made for "{optimizer}"')
        return
    if optimizer != ADAMW:
        report.add("other", f'is absent; the model was made for "{optimizer}", not for Adam')
    _check_adam(report, request.adam)


def _check_adam(report: Report, adam: AdamParams) -> None:
    for name in ("learning_rate", "eps", "weight_decay", "grad_clip_norm"):
        value = getattr(adam, name)
        if not (math.isfinite(value) and value >= 0):
            report.add(f"adam.{name}", f"is {value}; must be finite and not negative")
    for name in ("beta1", "beta2"):
        value = getattr(adam, name)
        if not 0 <= value < 1:
            report.add(f"adam.{name}", f"is {value}; must lie in [0, 1)")


def _check_save_state(report: Report, request: SaveStateRequest) -> None:
    if request.name:
        check_name(report, "name", request.name)
    if request.HasField("ttl"):
        check_ttl(report, request.ttl)
    check_metadata(report, request.user_metadata)


def _check_save_weights(
    report: Report, request: SaveWeightsForSamplerRequest, facts: Facts
) -> None:
    if request.kind not in SamplerWeightsKind.values():
        report.add("kind", f"is {request.kind}, which is no SamplerWeightsKind")
    check_number(report, "sampler_seq_id", request)
    if request.name:
        check_name(report, "name", request.name)
        if request.HasField("ttl"):
            check_ttl(report, request.ttl)
        if request.HasField("sampler_seq_id"):
            report.add("sampler_seq_id", "is given with a name; only a nameless sampler has one")
        check_metadata(report, request.user_metadata)
    else:
        for field in ("ttl", "overwrite", "user_metadata"):
            given = request.HasField("ttl") if field == "ttl" else getattr(request, field)
            if given:
                report.add(field, "is given without a name; without one no checkpoint is kept")
    inflight = SamplerWeightsKind.SAMPLER_WEIGHTS_KIND_INFLIGHT
    if request.kind == inflight and not facts.abilities.capabilities.inflight_samplers:
        raise unsupported("samplers that follow training", facts.abilities.backend)


def _check_save_external(report: Report, request: SaveWeightsExternalRequest, facts: Facts) -> None:
    if not facts.abilities.capabilities.external_weights:
        raise unsupported("saving of external weights", facts.abilities.backend)
    if request.age_encryption_recipients:
        raise unsupported("encryption of weights for recipients of age", facts.abilities.backend)
    check_name(report, "name", request.name)
    if request.HasField("ttl"):
        check_ttl(report, request.ttl)
    check_metadata(report, request.user_metadata)
