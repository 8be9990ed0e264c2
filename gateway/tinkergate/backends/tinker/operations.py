"""What each training operation is on the wire: the request, and how its result is read (wire
sections 5 and 13)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tinkergate.backends.base import TrainingRequest
from tinkergate.backends.known_checkpoints import KnownCheckpoints
from tinkergate.backends.tinker.models import UpstreamModel
from tinkergate.backends.tinker.service import Call, Effect
from tinkergate.backends.tinker.settings import Dialect
from tinkergate.dialects.tinker.json_fields import Fields
from tinkergate.dialects.tinker.json_text import read_json
from tinkergate.dialects.tinker.read_results import (
    is_protobuf,
    metrics_from_json,
    output_from_json,
    output_from_protobuf,
    reverse_kl_output_from_json,
    step_from_json,
)
from tinkergate.dialects.tinker.write_requests import (
    forward_backward_json,
    forward_backward_protobuf,
    load_json,
    optim_step_json,
    reverse_kl_json,
    save_json,
    vla_train_step_json,
)
from tinkergate.errors import unsupported
from tinkergate.http import Answer
from tinkergate.v1 import (
    ForwardBackwardOutput,
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
    VlaTrainStepResult,
)

LOOK = (
    "nobody can tell what the model has gone through, so it takes no more operations until "
    "LoadState gives it the weights of a checkpoint, which makes a fresh model there; checkpoints "
    "that were saved before are sound"
)
"""What to do when the outcome of a training operation is unknown."""


@dataclass(frozen=True)
class Saved:
    """The service's result of a save."""

    path: str
    """The service's own; empty if it made a sampler at once."""
    sampler_id: str
    size_bytes: int


@dataclass(frozen=True)
class WireOperation:
    """A training operation on the wire."""

    call: Call
    request_type: str
    """What X-Tinker-Request-Type calls it."""
    read: Callable[[Answer], Any]
    changes_model: bool
    """Whether the model is another one after it."""
    numbered: bool = True
    """Whether it has a seq_id."""
    protobuf: bool = False
    """Whether its result is asked for in protobuf."""


def wire_operation(
    request: TrainingRequest,
    model: UpstreamModel,
    dialect: Dialect,
    checkpoints: KnownCheckpoints,
    *,
    compress: bool,
    save_name: str | None = None,
    sampler_seq: int | None = None,
) -> WireOperation:
    """The operation of a request. `save_name` is the service's name of what is saved;
    `sampler_seq` numbers a sampler that is made without a name. Raises GatewayError (UNSUPPORTED)
    for what the dialect does not have."""
    mint = dialect == "mint"
    sent_once = Effect.ONCE if mint else Effect.NUMBERED
    of_model = f"of model {model.model_id}"
    seq = model.next_seq
    match request:
        case ForwardRequest() | ForwardBackwardRequest():
            return _forward_backward(request, model, mint=mint, compress=compress)
        case OptimStepRequest():
            call = Call(
                f"optim_step {of_model}",
                "optim_step",
                optim_step_json(request, model.upstream_id, seq),
                effect=sent_once,
                look=LOOK,
            )
            return WireOperation(call, "OptimStep", _read_step, changes_model=True)
        case LoadStateRequest():
            path = checkpoints.find(request.path).upstream_path
            call = Call(
                f"load_weights {of_model}",
                "load_weights",
                load_json(model.upstream_id, seq, path, optimizer=request.with_optimizer),
                effect=sent_once,
                look=LOOK,
            )
            return WireOperation(call, "LoadWeights", _read_nothing, changes_model=True)
        case SaveStateRequest():
            more: dict[str, object] = {"overwrite": request.overwrite}
            return _save("save_weights", "SaveWeights", model, save_name, more)
        case SaveWeightsForSamplerRequest():
            more = {} if mint else {"kind": _sampler_kind(request)}
            if sampler_seq is not None:
                more["sampling_session_seq_id"] = sampler_seq
            kind = "save_weights_for_sampler"
            return _save(kind, "SaveWeightsForSampler", model, save_name, more)
        case SaveWeightsExternalRequest():
            if mint:
                raise unsupported("external weights", dialect)
            more = {}
            if request.age_encryption_recipients:
                more["age_encryption_recipients"] = list(request.age_encryption_recipients)
            return _save("save_weights_external", "SaveWeightsExternal", model, save_name, more)
        case ForwardBackwardReverseKlRequest() | VlaTrainStepRequest():
            if not mint:
                raise unsupported(type(request).__name__.removesuffix("Request"), dialect)
            return _mint_operation(request, model, checkpoints)


def _forward_backward(
    request: ForwardRequest | ForwardBackwardRequest,
    model: UpstreamModel,
    *,
    mint: bool,
    compress: bool,
) -> WireOperation:
    forward = isinstance(request, ForwardRequest)
    seq, datums = model.next_seq, len(request.data)
    # MinT speaks JSON, and has a route of its own for what later SDKs call forward_only.
    body = (
        forward_backward_json(request, model.upstream_id, seq)
        if mint
        else forward_backward_protobuf(request, model.upstream_id, seq)
    )
    call = Call(
        f"{'forward' if forward else 'forward_backward'} of model {model.model_id}",
        "forward" if mint and forward else "forward_backward",
        body,
        effect=Effect.ONCE if mint and not forward else Effect.NUMBERED,
        look=LOOK,
        compress=compress and not mint,
    )

    def read(answer: Answer) -> ForwardBackwardOutput:
        if is_protobuf(answer.headers.get("content-type", "")):
            return output_from_protobuf(answer.body, datums)
        return output_from_json(answer.body, datums)

    return WireOperation(
        call,
        "Forward" if forward else "ForwardBackward",
        read,
        changes_model=not forward,
        protobuf=not mint,
    )


def _save(
    route: str,
    request_type: str,
    model: UpstreamModel,
    name: str | None,
    more: dict[str, object],
) -> WireOperation:
    # A time to live is the gateway's business: it may be changed later, and nobody would tell the
    # service.
    call = Call(
        f"{route} of model {model.model_id}",
        route,
        save_json(route, model.upstream_id, model.next_seq, name, more),
        effect=Effect.NUMBERED,
        look="the checkpoint may be there; the model is as it was",
    )
    return WireOperation(call, request_type, _read_saved, changes_model=False)


def _sampler_kind(request: SaveWeightsForSamplerRequest) -> str:
    inflight = request.kind == SamplerWeightsKind.SAMPLER_WEIGHTS_KIND_INFLIGHT
    return "inflight" if inflight else "snapshot"


def _mint_operation(
    request: ForwardBackwardReverseKlRequest | VlaTrainStepRequest,
    model: UpstreamModel,
    checkpoints: KnownCheckpoints,
) -> WireOperation:
    if isinstance(request, VlaTrainStepRequest):
        call = Call(
            f"vla/train_step of model {model.model_id}",
            "mint/vla/train_step",
            vla_train_step_json(request, model.upstream_id),
            effect=Effect.ONCE,
            look=LOOK,
        )
        return WireOperation(call, "MintVlaTrainStep", _read_vla, True, numbered=False)
    datums = len(request.data)
    reference = request.reference_model_path
    if reference in checkpoints:
        reference = checkpoints.find(reference).upstream_path
    call = Call(
        f"forward_backward_reverse_kl of model {model.model_id}",
        "mint/forward_backward_reverse_kl",
        reverse_kl_json(request, model.upstream_id, reference),
        effect=Effect.ONCE,
        look=LOOK,
    )

    def read(answer: Answer) -> ForwardBackwardOutput:
        return reverse_kl_output_from_json(answer.body, datums)

    return WireOperation(call, "MintForwardBackwardReverseKL", read, True, numbered=False)


def _read_step(answer: Answer) -> Any:
    return step_from_json(answer.body)


def _read_nothing(answer: Answer) -> None:
    Fields(read_json(answer.body))


def _read_vla(answer: Answer) -> VlaTrainStepResult:
    return VlaTrainStepResult(metrics=metrics_from_json(Fields(read_json(answer.body))))


def _read_saved(answer: Answer) -> Saved:
    fields = Fields(read_json(answer.body))
    path = fields.optional_text("path") or ""
    sampler_id = fields.optional_text("sampling_session_id") or ""
    if not path and not sampler_id:
        fields.raw("path")
    return Saved(path, sampler_id, fields.optional_integer("size_bytes", bits=64) or 0)
