"""`python -m tinkergate_kernels.bench`: what it prints, not how fast anything is."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from tinkergate_kernels.bench import __main__ as command
from tinkergate_kernels.bench import rivals, tasks
from tinkergate_kernels.bench.timing import medians

SMALL = ["--device", "cpu", "--rounds", "1", "--shape", "16", "8", "64"]
WITHOUT = [
    argument
    for name in ("torch.compile", "cut-cross-entropy", "liger-kernel")
    for argument in ("--without", name)
]


def test_every_public_function_is_timed_beside_its_rivals(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert command.main([*SMALL, *WITHOUT, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["shape"] == {"rows": 16, "width": 8, "vocab": 64}
    assert told["device"].startswith("the CPU path")
    results: list[dict[str, Any]] = told["results"]
    assert [result["dtype"] for result in results] == 6 * ["fp32"] + 5 * ["bf16"]
    names = " ".join(result["task"] for result in results)
    for function in ("linear_logprob", "linear_scores", "selective_logprob", "losses.evaluate"):
        assert function in names
    for result in results:
        assert result["broken"] == {}
        assert result["product_flops_per_second"] > 0
        assert result["copy_bytes_per_second"] > 0
        ways = result["ways"]
        assert ways["ours"]["times_ours"] == 1
        assert len(ways) >= 2
        for way in ways.values():
            assert way["milliseconds"] > 0
            share = {"share_of_product_rate", "share_of_copy_rate"} & way.keys()
            assert len(share) == 1


def test_shares_are_of_what_was_probed() -> None:
    from tinkergate_kernels.bench.timing import Rates

    task = tasks.Task("", {}, flops=6e9, bytes=1e9)
    way = command._way(task, Rates(flops=2e12, bytes=1e11), {"ours": 0.01, "other": 0.02}, "other")
    assert way == {
        "milliseconds": 20.0,
        "times_ours": 2.0,
        "share_of_product_rate": pytest.approx(0.15),
        "share_of_copy_rate": pytest.approx(0.5),
    }


def test_the_rivals_compute_the_same() -> None:
    device = torch.device("cpu")
    draw = torch.Generator().manual_seed(0)
    hidden, weight = torch.randn(9, 8, generator=draw), torch.randn(30, 8, generator=draw)
    targets = torch.randint(0, 30, (9,), generator=draw)
    wanted = tasks.linear_logprob(hidden, weight, targets)
    logprobs, entropy, best = tasks._plain_scores(hidden, weight, targets)
    scores = tasks.linear_scores(hidden, weight, targets, entropy=True, topk=tasks.TOP)
    torch.testing.assert_close(logprobs[:, 0], wanted, rtol=0, atol=1e-5)
    torch.testing.assert_close(entropy, scores.entropy, rtol=0, atol=1e-5)
    torch.testing.assert_close(best.values, scores.topk_logprobs, rtol=0, atol=1e-5)
    for name in ("log_softmax + gather", "F.cross_entropy"):
        found = rivals.from_states(device)[name](hidden, weight, targets)
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)
        found = rivals.from_logits()[name](hidden @ weight.T, targets)
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)


def test_what_does_not_run_is_told_and_the_rest_is_timed() -> None:
    def breaks() -> object:
        raise RuntimeError("no such card\nand more")

    times, broken = medians({"ours": lambda: None, "theirs": breaks}, torch.device("cpu"), 3)
    assert list(times) == ["ours"]
    assert broken == {"theirs": "RuntimeError: no such card"}


def test_a_kernel_that_does_not_run_fails_the_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def breaks(*arguments: object) -> torch.Tensor:
        raise RuntimeError("no kernel")

    monkeypatch.setattr(tasks, "selective_logprob", breaks)
    assert command.main([*SMALL, *WITHOUT, "--dtype", "fp32"]) == 1
    out = capsys.readouterr().out
    assert "ours                   does not run here: RuntimeError: no kernel" in out
    assert "linear_logprob, forward, fp32 (bare product" in out


@pytest.mark.parametrize("wrong", [["--rounds", "0"], ["--shape", "0", "8", "8"]])
def test_arguments_that_make_no_sense_are_refused(wrong: list[str]) -> None:
    with pytest.raises(SystemExit):
        command.main([*SMALL, *wrong])
