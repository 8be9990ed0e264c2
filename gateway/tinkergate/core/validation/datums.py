"""Rules for Forward and ForwardBackward: the loss, its settings, and the datums."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from tinkergate.core.validation.facts import Facts, LossRule
from tinkergate.core.validation.inputs import InputRules
from tinkergate.core.validation.loss_tensors import Shape, TensorRules
from tinkergate.core.validation.report import Report
from tinkergate.errors import unsupported
from tinkergate.v1 import (
    ConfigValue,
    Datum,
    ForwardBackwardRequest,
    ForwardRequest,
    LossSetting,
    Normalization,
    ProvenanceSpan,
)

TARGETS = "target_tokens"
WEIGHTS = "weights"


def check_forward(
    report: Report, request: ForwardRequest | ForwardBackwardRequest, facts: Facts
) -> None:
    """A Forward or ForwardBackward request. Raises UNSUPPORTED for what the backend lacks."""
    losses = facts.abilities.losses
    rule = losses.get(request.loss_fn)
    if rule is None:
        report.add(
            "loss_fn",
            f'is "{request.loss_fn}"; backend {facts.abilities.backend!r} has: '
            + (", ".join(sorted(losses)) or "none"),
        )
    else:
        if (
            rule.emulated
            and isinstance(request, ForwardBackwardRequest)
            and request.native_loss_only
        ):
            raise unsupported(
                f"the loss {request.loss_fn!r} itself; without native_loss_only the gateway "
                "computes it",
                facts.abilities.backend,
            )
        _check_config(report, request.loss_fn_config, rule)
        if rule.paired and len(request.data) % 2:
            report.add(
                "data",
                f"has {len(request.data)} datums; the loss takes pairs, even = chosen and odd = "
                "rejected, so must be an even number",
            )
    if isinstance(request, ForwardBackwardRequest):
        _check_normalization(report, request, facts, rule)
    if not request.data:
        report.add("data", "is empty; needs at least one datum")
    _DatumRules(report, facts, rule).check(request.data)


def _check_normalization(
    report: Report, request: ForwardBackwardRequest, facts: Facts, rule: LossRule | None
) -> None:
    if request.normalization not in Normalization.values():
        report.add("normalization", f"is {request.normalization}, which is no Normalization")
    if request.normalization != Normalization.NORMALIZATION_PER_TOKEN:
        return
    backend = facts.abilities.backend
    if not facts.abilities.capabilities.token_normalization:
        raise unsupported("gradients per token", backend)
    if rule is not None and rule.emulated:
        raise unsupported(
            f"gradients per token of the loss {request.loss_fn!r}, which the gateway computes: "
            "which tokens it is active on is not told",
            backend,
        )


def _check_config(report: Report, config: Mapping[str, ConfigValue], rule: LossRule) -> None:
    for key, value in config.items():
        field = f'loss_fn_config["{key}"]'
        if key not in rule.config_keys:
            known = ", ".join(sorted(rule.config_keys)) or "none"
            report.add(field, f"is not a setting of this loss; there are: {known}")
        check_config_value(report, field, value)
        if key in rule.settings:
            _check_setting(report, field, value, rule.settings[key])


def _check_setting(report: Report, field: str, value: ConfigValue, setting: LossSetting) -> None:
    """A setting whose value is known to be a number of some range."""
    low, high = setting.minimum, setting.maximum
    bounded = setting.HasField("maximum")
    rule = f"a number in {low:g}..{high:g}" if bounded else f"a number of at least {low:g}"
    if value.HasField("text"):
        report.add(field, f'is the text "{value.text}"; must be {rule}')
    elif math.isfinite(value.number) and (value.number < low or (bounded and value.number > high)):
        report.add(field, f"is {value.number:g}; must be {rule}")


def check_config_value(report: Report, field: str, value: ConfigValue) -> None:
    """A setting of a loss or an optimizer: a finite number or a text."""
    which = value.WhichOneof("value")
    if which is None:
        report.add(field, "has no value; must be a number or a text")
    elif which == "number" and not math.isfinite(value.number):
        report.add(field, f"is {value.number}; must be finite")


class _DatumRules:
    """Checks the datums of one request."""

    def __init__(self, report: Report, facts: Facts, rule: LossRule | None) -> None:
        self._report = report
        self._facts = facts
        self._rule = rule
        self._inputs = InputRules(report, facts)
        self._tensors = TensorRules(report, facts)
        self._good_names: set[tuple[str, ...]] = set()
        """Sets of inputs that were found good: all datums of a request have the same, as a rule."""

    def check(self, data: Sequence[Datum]) -> None:
        for i, datum in enumerate(data):
            if self._report.full:
                break
            self._check_datum(f"data[{i}]", datum)
        self._inputs.finish()
        self._tensors.finish()

    def _check_datum(self, field: str, datum: Datum) -> None:
        count = self._inputs.check(f"{field}.model_input", datum.model_input)
        tensors = datum.loss_fn_inputs
        names = tuple(tensors)
        if names not in self._good_names:
            self._check_names(field, names)
        target_shape: Shape | None = None
        if TARGETS in names:
            path = f'{field}.loss_fn_inputs["{TARGETS}"]'
            target_shape = self._tensors.check(path, tensors[TARGETS], is_tokens=True)
            if target_shape is not None and not self._is_target_shape(path, target_shape, count):
                target_shape = None
        for name in names:
            if name != TARGETS:
                path = f'{field}.loss_fn_inputs["{name}"]'
                shape = self._tensors.check(path, tensors[name], is_tokens=False)
                if shape is not None:
                    self._check_shape(path, name, shape, target_shape, count)
        if datum.model_input_spans:
            _check_spans(self._report, f"{field}.model_input_spans", datum.model_input_spans)
        if datum.loss_fn_input_spans:
            _check_spans(self._report, f"{field}.loss_fn_input_spans", datum.loss_fn_input_spans)

    def _check_names(self, field: str, names: tuple[str, ...]) -> None:
        if self._rule is None:
            return
        missing = sorted(self._rule.required.difference(names))
        unknown = sorted(set(names) - self._rule.allowed)
        known = ", ".join(sorted(self._rule.allowed)) or "none"
        for name in missing:
            self._report.add(f'{field}.loss_fn_inputs["{name}"]', "is missing; the loss needs it")
        for name in unknown:
            self._report.add(
                f'{field}.loss_fn_inputs["{name}"]',
                f"is not an input of this loss; there are: {known}",
            )
        if not missing and not unknown:
            self._good_names.add(names)

    def _is_target_shape(self, path: str, shape: Shape, count: int | None) -> bool:
        if len(shape) not in (1, 2) or (len(shape) == 2 and shape[1] < 1):
            self._report.add(path, f"has shape {list(shape)}; must be (N,) or (N, K)")
            return False
        if len(shape) == 2 and self._rule is not None and self._rule.single_target:
            self._report.add(
                path, f"has shape {list(shape)}; the loss takes one target a token, (N,)"
            )
            return False
        return self._has_rows(path, shape, count)

    def _has_rows(self, path: str, shape: Shape, count: int | None) -> bool:
        """Whether there is a row a token, if their number is known."""
        if count is None or (shape and shape[0] == count):
            return True
        self._report.add(
            path,
            f"has shape {list(shape)}; the model input has {count} tokens, so must its first "
            "extent be",
        )
        return False

    def _check_shape(
        self, path: str, name: str, shape: Shape, targets: Shape | None, count: int | None
    ) -> None:
        if targets is None:
            self._has_rows(path, shape, count)
        elif shape != targets and (name == WEIGHTS or shape != targets[:1]):
            self._report.add(
                path, f"has shape {list(shape)}; must be {list(targets)} like {TARGETS}"
            )


def _check_spans(report: Report, field: str, spans: Sequence[ProvenanceSpan]) -> None:
    for i, span in enumerate(spans):
        which = span.WhichOneof("span")
        if which is None:
            report.add(f"{field}[{i}]", "is empty; must say where the tokens came from")
            continue
        origin = span.prompt_tokens if which == "prompt_tokens" else span.sampled_tokens
        if origin.offset < 0:
            report.add(f"{field}[{i}].{which}.offset", f"is {origin.offset}; must not be negative")
        if origin.length < 1:
            report.add(f"{field}[{i}].{which}.length", f"is {origin.length}; must be at least 1")
