"""What a loss takes, and how what it does not take is refused."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from loss_cases import OTHER_SETTINGS, loss_case

from tinkergate_kernels.losses import LOSSES, Setting, evaluate


def test_what_there_is() -> None:
    assert {name: (spec.inputs, dict(spec.settings)) for name, spec in LOSSES.items()}.keys() == {
        "cross_entropy",
        "importance_sampling",
        "ppo",
        "cispo",
        "dro",
        "gspo",
        "dppo",
        "dpo",
        "grpo",
    }
    for name, spec in LOSSES.items():
        assert spec.name == name
        assert spec.formula
        assert spec.source
        assert all(setting.allows(setting.default) for setting in spec.settings.values())
        for key, default in spec.optional.items():
            assert default is not None or key in spec.settings
    assert [name for name, spec in LOSSES.items() if spec.paired] == ["dpo"]
    assert [name for name, spec in LOSSES.items() if spec.many_targets] == ["cross_entropy"]


def test_the_defaults_of_the_wire() -> None:
    defaults = {
        name: {key: each.default for key, each in spec.settings.items()}
        for name, spec in LOSSES.items()
    }
    clips = {"clip_low_threshold": 0.8, "clip_high_threshold": 1.2}
    assert defaults["ppo"] == defaults["cispo"] == defaults["gspo"] == clips
    assert defaults["dro"] == {"beta": 0.05}
    assert defaults["dpo"] == {"beta": 0.1, "label_smoothing": 0.0}
    assert defaults["dppo"] == {
        "dppo_mask_high": 0.2,
        "dppo_mask_low": 0.2,
        "adv_tau": 1.0,
        "kl_tau": 1e-3,
    }
    assert LOSSES["ppo"].filler("clip_low_threshold", {"clip_low_threshold": 0.7}) == 0.7
    assert LOSSES["cross_entropy"].filler("weights", {}) == 1.0


@pytest.mark.parametrize("name", list(LOSSES))
def test_every_setting_changes_the_loss(name: str) -> None:
    case = loss_case(name, (5,) * 20, optional=False, spread=1.0)
    plain = evaluate(name, case.logprobs, case.inputs, case.offsets)
    for key in LOSSES[name].settings:
        config = {key: OTHER_SETTINGS[key]}
        changed = evaluate(name, case.logprobs, case.inputs, case.offsets, config)
        assert float(changed.loss) != float(plain.loss), key


@pytest.mark.parametrize(
    ("setting", "good", "bad"),
    [
        (Setting(0.5), [0, 0.5, 1e9], [-1e-9, math.inf, math.nan, "1", None, True]),
        (Setting(0.8, 0.0, 1.0), [0.0, 1.0, 1], [1.0001, -0.1, -math.inf]),
    ],
)
def test_the_range_of_a_setting(setting: Setting, good: list[object], bad: list[object]) -> None:
    assert all(setting.allows(value) for value in good)
    assert not any(setting.allows(value) for value in bad)


BAD = [
    ({"name": "entropy"}, "name is 'entropy'; must be one of cross_entropy, "),
    ({"config": {"beta": 1.0}}, r"config\['beta'\] is not a setting of ppo; there are: clip_low"),
    (
        {"config": {"clip_low_threshold": 1.5}},
        r"config\['clip_low_threshold'\] is 1.5; must be a number in 0..1",
    ),
    (
        {"config": {"clip_high_threshold": 0.2}},
        r"config\['clip_high_threshold'\] is 0.2; must be a finite number of at least 1",
    ),
    ({"config": {"clip_high_threshold": "2"}}, r"is '2'; must be a finite number"),
    ({"logprobs": torch.zeros(3, 2)}, r"logprobs have shape \[3, 2\]; ppo takes one target"),
    ({"logprobs": torch.zeros(3, 2, 1)}, r"must be \[T\] or \[T, K\]"),
    ({"logprobs": torch.zeros(3).double()}, "logprobs is torch.float64; must be torch.float32"),
    ({"inputs": {"logprobs": torch.zeros(3)}}, r"inputs\['advantages'\] is missing; ppo needs it"),
    (
        {"advantages": torch.zeros(4)},
        r"inputs\['advantages'\] has shape \[4\]; must be that of logprobs, \[3\]",
    ),
    ({"advantages": torch.zeros(3).double()}, r"inputs\['advantages'\] is torch.float64"),
    ({"weights": torch.zeros(3)}, r"inputs\['weights'\] is not an input of ppo; there are: logp"),
    ({"offsets": torch.tensor([0, 2])}, "offsets go from 0 to 2; must rise from 0 to .*, 3"),
    ({"offsets": torch.tensor([0, 2, 1, 3])}, "offsets go from 0 to 3 and fall"),
    ({"offsets": torch.tensor([0.0, 3.0])}, r"offsets are torch.float32 \[2\]; must be"),
    ({"offsets": torch.zeros(0, dtype=torch.int64)}, r"offsets are torch.int64 \[0\]"),
]


@pytest.mark.parametrize(("change", "message"), BAD)
def test_bad_arguments_are_refused_by_name(change: dict[str, object], message: str) -> None:
    own = {"logprobs": torch.zeros(3), "advantages": torch.zeros(3)}
    arguments: dict[str, object] = {
        "name": "ppo",
        "logprobs": torch.zeros(3),
        "inputs": own,
        "offsets": torch.tensor([0, 3]),
        "config": {},
    }
    evaluate(**arguments)  # type: ignore[arg-type]
    for key, value in change.items():
        if key in arguments:
            arguments[key] = value
        else:
            arguments["inputs"] = own | {key: value}
    with pytest.raises(ValueError, match=message):
        evaluate(**arguments)  # type: ignore[arg-type]


def test_pairs_come_by_twos() -> None:
    inputs = {"weights": torch.ones(3), "ref_logprobs": torch.zeros(3)}
    with pytest.raises(ValueError, match="offsets are of 3 datums; dpo takes pairs"):
        evaluate("dpo", torch.zeros(3), inputs, torch.tensor([0, 1, 2, 3]))


def test_the_page_of_losses_is_that_of_the_registry() -> None:
    script = Path(__file__).parents[3] / "scripts" / "generate_losses.py"
    checked = subprocess.run(
        [sys.executable, str(script), "--check"], capture_output=True, text=True
    )
    assert checked.returncode == 0, checked.stderr
