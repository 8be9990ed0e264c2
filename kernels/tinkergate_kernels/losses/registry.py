"""The losses by name: what each one is, what it takes, and where it comes from.

Notation, for each token t: lp is the log-probability of its target under the model in training, and
w, A, lq, ref are the inputs `weights`, `advantages`, `logprobs` (of the policy that sampled) and
`ref_logprobs` (of a frozen reference). r = exp(lp - lq) is the ratio, sg(x) is x without a
gradient, and the sum is over all tokens of all datums: no mean of any kind.

A token whose weight or advantage is 0 is masked. It adds exactly nothing to loss, gradient and
metrics, whatever else is said of it, infinities included; that holds for penalties too.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

LOW, HIGH = "clip_low_threshold", "clip_high_threshold"


@dataclass(frozen=True)
class Setting:
    """A number that a loss can be set by."""

    default: float
    minimum: float = 0.0
    maximum: float = math.inf

    @property
    def rule(self) -> str:
        """What a value must be, such as "must be a number of at least 0"."""
        if math.isinf(self.maximum):
            return f"must be a finite number of at least {self.minimum:g}"
        return f"must be a number in {self.minimum:g}..{self.maximum:g}"

    def allows(self, value: object) -> bool:
        """Whether it is such a number."""
        if isinstance(value, bool) or not isinstance(value, int | float):
            return False
        return math.isfinite(value) and self.minimum <= value <= self.maximum


@dataclass(frozen=True)
class LossSpec:
    """A loss: what it takes and what it says."""

    name: str
    formula: str
    """In the notation of the module."""
    source: str
    required: tuple[str, ...] = ()
    """Inputs that every datum must have, besides the target tokens, one number a token."""
    optional: Mapping[str, float | None] = field(default_factory=dict)
    """Inputs that a datum may leave out, with the number that then stands for each token; None
    is the setting of the same name."""
    settings: Mapping[str, Setting] = field(default_factory=dict)
    metrics: tuple[str, ...] = ()
    """What it says beside the loss, named `name:reduction`."""
    paired: bool = False
    """Whether datums come in pairs: even = chosen, odd = rejected."""
    many_targets: bool = False
    """Whether a token may have K targets, (N, K), the sum then being over those too."""

    @property
    def inputs(self) -> tuple[str, ...]:
        """All inputs, the required ones first."""
        return (*self.required, *self.optional)

    def faults(self, config: Mapping[str, object]) -> Iterable[tuple[str, str]]:
        """(key, what is wrong with it) for each setting that breaks a rule."""
        for key, value in config.items():
            setting = self.settings.get(key)
            if setting is None:
                known = ", ".join(self.settings) or "none"
                yield key, f"is not a setting of {self.name}; there are: {known}"
            elif not setting.allows(value):
                yield key, f"is {value!r}; {setting.rule}"

    def resolved(self, config: Mapping[str, object]) -> dict[str, float]:
        """Every setting, the defaults filled in. Raises ValueError for one that breaks a rule."""
        for key, told in self.faults(config):
            raise ValueError(f"config[{key!r}] {told}")
        given = {key: float(value) for key, value in config.items()}  # type: ignore[arg-type]
        return {key: setting.default for key, setting in self.settings.items()} | given

    def filler(self, name: str, settings: Mapping[str, float]) -> float:
        """The number for each token of a datum that leaves the optional input out."""
        number = self.optional[name]
        return settings[name] if number is None else number


_CLIPS = {LOW: Setting(0.8, 0.0, 1.0), HIGH: Setting(1.2, 1.0)}
_TOKEN_CLIPS = {LOW: None, HIGH: None}
_POLICY = ("logprobs", "advantages")
_RATIO = (
    "active_tokens:sum",
    "ratio:sum",
    "ratio:min",
    "ratio:max",
    "kl_k1:sum",
    "kl_k3:sum",
)
_CLIPPED = (*_RATIO, "clipped_tokens:sum")

_SPECS = (
    LossSpec(
        name="cross_entropy",
        formula="-sum w lp",
        source="Tinker's documentation, losses; w may be any real number, and is 1 where absent",
        optional={"weights": 1.0},
        many_targets=True,
    ),
    LossSpec(
        name="importance_sampling",
        formula="-sum w r A",
        source="Tinker's documentation, losses; w as in MinT's table, and 1 where absent",
        required=_POLICY,
        optional={"weights": 1.0},
        metrics=_RATIO,
    ),
    LossSpec(
        name="ppo",
        formula="-sum min(r A, clamp(r, clip_low_threshold, clip_high_threshold) A)",
        source="Schulman et al. 2017, arXiv:1707.06347, eq. 7; thresholds as in Tinker's "
        "documentation: bounds on the ratio, of the call or of each token",
        required=_POLICY,
        optional=_TOKEN_CLIPS,
        settings=_CLIPS,
        metrics=_CLIPPED,
    ),
    LossSpec(
        name="cispo",
        formula="-sum sg(clamp(r, clip_low_threshold, clip_high_threshold)) A lp",
        source="MiniMax-M1, arXiv:2506.13585; thresholds as for ppo",
        required=_POLICY,
        optional=_TOKEN_CLIPS,
        settings=_CLIPS,
        metrics=_CLIPPED,
    ),
    LossSpec(
        name="dro",
        formula="-sum (A lp - beta/2 (lp - lq)^2)",
        source="Richemond et al. 2024, arXiv:2405.19107, in the form of Tinker's documentation",
        required=_POLICY,
        settings={"beta": Setting(0.05)},
        metrics=_RATIO,
    ),
    LossSpec(
        name="gspo",
        formula="-sum min(s A, clamp(s, clip_low_threshold, clip_high_threshold) A), where for "
        "each datum s = exp(mean of lp - lq over its tokens with sequence_ratio_mask not 0), and "
        "each token keeps its own gradient: s exp(lp - sg(lp))",
        source="Zheng et al. 2025, arXiv:2507.18071, GSPO-token (section 4.3)",
        required=(*_POLICY, "sequence_ratio_mask"),
        settings=_CLIPS,
        metrics=_CLIPPED,
    ),
    LossSpec(
        name="dppo",
        formula="-sum (keep adv_tau A r - kl_tau (lp - lq)^2), where keep is 0 if A > 0 and "
        "exp(lp) - exp(lq) > dppo_mask_high, or if A < 0 and exp(lp) - exp(lq) < -dppo_mask_low, "
        "else 1",
        source="prime-rl's default loss, whose settings have these names and defaults: the mask of "
        "DPPO (binary total variation, arXiv:2602.04879) with the penalty of Kimi K2.5 "
        "(arXiv:2602.02276). Baseten has not published its own, so it may differ",
        required=_POLICY,
        settings={
            "dppo_mask_high": Setting(0.2),
            "dppo_mask_low": Setting(0.2),
            "adv_tau": Setting(1.0),
            "kl_tau": Setting(1e-3),
        },
        metrics=_CLIPPED,
    ),
    LossSpec(
        name="dpo",
        formula="sum over pairs of -(1 - label_smoothing) log sigmoid(beta h) - label_smoothing "
        "log sigmoid(-beta h), where h = sum over chosen w (lp - ref) - sum over rejected "
        "w (lp - ref)",
        source="Rafailov et al. 2023, arXiv:2305.18290, eq. 7; smoothing of Mitchell 2023 (cDPO)",
        required=("weights", "ref_logprobs"),
        settings={"beta": Setting(0.1), "label_smoothing": Setting(0.0, 0.0, 0.5)},
        metrics=(
            "pairs:sum",
            "correct_pairs:sum",
            "chosen_reward:sum",
            "rejected_reward:sum",
            "margin:sum",
            "margin:min",
            "margin:max",
        ),
        paired=True,
    ),
    LossSpec(
        name="grpo",
        formula="-sum (min(r A, clamp(r, clip_low_threshold, clip_high_threshold) A) - beta k3), "
        "where k3 = exp(ref - lp) - (ref - lp) - 1",
        source="DeepSeekMath, arXiv:2402.03300, eq. 3 and 4, as a plain sum: to have its means "
        "divide the advantages and beta",
        required=(*_POLICY, "ref_logprobs"),
        optional=_TOKEN_CLIPS,
        settings={**_CLIPS, "beta": Setting(0.04)},
        metrics=(*_CLIPPED, "kl_ref:sum"),
    ),
)

LOSSES: Mapping[str, LossSpec] = MappingProxyType({spec.name: spec for spec in _SPECS})
"""Every loss by its name."""
