"""MinT's own routes over HTTP, on a real socket, the embedded engine behind them: in the form that
mindlab-toolkit sends (wire section 14.5)."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from local_backend import BASE, make_backend

from tinkergate.core.gateway import Gateway
from tinkergate.ingress.http.door import HttpDoor
from tinkergate.ingress.http.settings import HttpSettings
from tinkergate.store import Store

TOKENS = [5, 6, 7, 8, 9, 10, 11]
BOTH = pytest.mark.parametrize("caller", ["full", "mint"], indirect=True)


class Caller:
    """A client of MinT's dialect."""

    def __init__(self, client: httpx.AsyncClient) -> None:
        self._client = client

    async def post(self, path: str, body: dict[str, Any], **more: Any) -> httpx.Response:
        return await self._client.post(f"/api/v1/{path}", json=body, **more)

    async def delete(self, path: str) -> httpx.Response:
        return await self._client.delete(f"/api/v1/{path}")

    async def result(self, path: str, body: dict[str, Any], **more: Any) -> dict[str, Any]:
        """What comes of a call whose answer is a future."""
        accepted = await self.post(path, body, **more)
        assert accepted.status_code == 200, accepted.text
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            request = {"request_id": accepted.json()["request_id"]}
            polled = await self.post("retrieve_future", request)
            if polled.status_code != 408:
                assert polled.status_code == 200, polled.text
                told: dict[str, Any] = polled.json()
                return told
        raise AssertionError("the future is not done")

    async def model(self, **more: Any) -> str:
        session = (await self.post("create_session", {"type": "create_session"})).json()
        body = {
            "session_id": session["session_id"],
            "model_seq_id": 0,
            "base_model": BASE,
            "lora_config": {"rank": 4, "seed": 1},
            **more,
        }
        model_id: str = (await self.result("create_model", body))["model_id"]
        return model_id

    async def train(self, model_id: str) -> None:
        data = {
            "model_input": text(TOKENS[:-1]),
            "loss_fn_inputs": {"target_tokens": tensor(TOKENS[1:], "int64")},
        }
        given = {"data": [data], "loss_fn": "cross_entropy"}
        body = {"model_id": model_id, "forward_backward_input": given}
        assert "metrics" in await self.result("forward_backward", body)
        step = {"model_id": model_id, "adam_params": {"learning_rate": 1e-2}}
        assert "error" not in await self.result("optim_step", step)


def text(tokens: list[int]) -> dict[str, Any]:
    return {"chunks": [{"type": "encoded_text", "tokens": tokens}]}


def tensor(numbers: list[Any], dtype: str) -> dict[str, Any]:
    return {"data": numbers, "shape": [len(numbers)], "dtype": dtype}


def reverse_kl(model_id: str, reference: str, **more: Any) -> dict[str, Any]:
    datum = {
        "student_input": text(TOKENS[:-1]),
        "reference_input": text([3, *TOKENS[1:-1]]),
        "target_tokens": tensor(TOKENS[1:], "int64"),
        "weights": tensor([0.0, 0.0, 1.0, 1.0, 1.0, 0.5], "float32"),
    }
    return {
        "model_id": model_id,
        "reference_model_path": reference,
        "data": [datum, datum],
        "temperature": 1.5,
        "seq_id": None,
        "type": "mint_forward_backward_reverse_kl",
        **more,
    }


def interpolation(paths: list[str], coefficients: list[float], **more: Any) -> dict[str, Any]:
    return {
        "source_paths": paths,
        "coefficients": coefficients,
        "output_path": None,
        "output_checkpoint_type": "sampler",
        "type": "mint_interpolate_checkpoints",
        **more,
    }


@pytest.fixture
async def caller(request: Any, micro_model_dir: Path, tmp_path: Path) -> AsyncIterator[Caller]:
    gateway = Gateway(
        [make_backend(micro_model_dir, tmp_path)], Store(f"sqlite:///{tmp_path}/gateway.db")
    )
    await gateway.start()
    door = HttpDoor(
        HttpSettings(listen="127.0.0.1:0"),
        data_dir=tmp_path,
        api_keys=["sk-mint-test"],
        profile=getattr(request, "param", "mint"),
    )
    address = await door.start(gateway)
    try:
        async with httpx.AsyncClient(
            base_url=f"http://{address}", headers={"x-api-key": "sk-mint-test"}, timeout=60
        ) as client:
            yield Caller(client)
    finally:
        await door.stop(1)
        await gateway.close(1)


@BOTH
async def test_reverse_kl(caller: Caller) -> None:
    model_id = await caller.model()
    await caller.train(model_id)
    told = await caller.result("mint/forward_backward_reverse_kl", reverse_kl(model_id, BASE))
    assert told["type"] == "mint_forward_backward_reverse_kl"
    losses = [output["loss"] for output in told["outputs"]]
    assert [loss["shape"] for loss in losses] == [[1], [1]]
    assert {loss["dtype"] for loss in losses} == {"float32"}
    total = sum(loss["data"][0] for loss in losses)
    assert total > 1e-4
    assert told["metrics"]["loss:sum"] == pytest.approx(total, rel=1e-5)
    assert all(name.count(":") == 1 for name in told["metrics"])

    saved = await caller.result("save_weights", {"model_id": model_id, "path": "teacher"})
    for scheme in ("tinker://", "mint://"):
        reference = saved["path"].replace("tinker://", scheme)
        again = await caller.result(
            "mint/forward_backward_reverse_kl", reverse_kl(model_id, reference)
        )
        # Only the first token of the prompts is another.
        assert again["metrics"]["loss:sum"] > 0


async def test_a_retry_adds_the_gradient_once(caller: Caller) -> None:
    model_id = await caller.model()
    await caller.train(model_id)
    body = reverse_kl(model_id, BASE)
    header = {"x-idempotency-key": "stainless-python-retry-1"}
    first, again = [
        await caller.post("mint/forward_backward_reverse_kl", body, headers=header)
        for _ in range(2)
    ]
    assert first.json() == again.json()
    other = await caller.post(
        "mint/forward_backward_reverse_kl", {**body, "temperature": 2}, headers=header
    )
    assert other.status_code == 400


@BOTH
async def test_interpolation(caller: Caller) -> None:
    model_id = await caller.model()
    paths = []
    for name in ("a", "b"):
        await caller.train(model_id)
        body = {"model_id": model_id, "path": name, "type": "save_weights_for_sampler"}
        paths.append((await caller.result("save_weights_for_sampler", body))["path"])
    told = await caller.result("mint/checkpoints/interpolate", interpolation(paths, [0.25, 0.75]))
    path = told.pop("path")
    assert path.startswith("tinker://")
    assert "/sampler_weights/" in path
    assert told == {
        "checkpoint_type": "sampler",
        "source_paths": paths,
        "coefficients": [0.25, 0.75],
        "has_rank_shards": False,
        "type": "mint_interpolate_checkpoints",
    }
    named = await caller.result(
        "mint/checkpoints/interpolate", interpolation([path], [1], output_path="best")
    )
    assert named["path"].endswith("/sampler_weights/best")


@pytest.mark.parametrize(
    ("path", "change", "field"),
    [
        ("mint/forward_backward_reverse_kl", {"temperature": "warm"}, "temperature"),
        ("mint/forward_backward_reverse_kl", {"temperature": -1}, "temperature"),
        ("mint/forward_backward_reverse_kl", {"data": [{}]}, "data[0].student_input"),
        ("mint/forward_backward_reverse_kl", {"data": []}, "data"),
        ("mint/forward_backward_reverse_kl", {"reference_model_path": "?"}, "reference_model_path"),
        ("mint/checkpoints/interpolate", {"coefficients": [1, 2]}, "coefficients"),
        ("mint/checkpoints/interpolate", {"coefficients": ["1"]}, "coefficients[0]"),
        ("mint/checkpoints/interpolate", {"source_paths": []}, "source_paths"),
        ("mint/checkpoints/interpolate", {"source_paths": ["x"]}, "source_paths[0]"),
        ("mint/checkpoints/interpolate", {"output_path": "a/b"}, "output_name"),
        (
            "mint/checkpoints/interpolate",
            {"output_checkpoint_type": "other"},
            "output_checkpoint_type",
        ),
    ],
)
async def test_what_is_wrong_is_named(
    caller: Caller, path: str, change: dict[str, Any], field: str
) -> None:
    body = interpolation(["tinker://s-1:train:0/weights/a"], [1.0])
    if "reverse_kl" in path:
        body = reverse_kl(await caller.model(), BASE)
    answer = await caller.post(path, {**body, **change})
    assert answer.status_code == 400, answer.text
    assert field in [violation["field"] for violation in answer.json()["violations"]]


async def test_a_rollout_correction_on_model_creation(caller: Caller) -> None:
    """The body of MinT's public script."""
    config = {
        "rollout_is": "sequence",
        "rollout_is_threshold": 1.1,
        "rollout_rs": "seq_sum_k1",
        "rollout_rs_threshold": "0.5_2.0",
        "bypass_mode": True,
        "loss_type": "reinforce",
    }
    model_id = await caller.model(rollout_correction_config=config)
    inputs = {
        "target_tokens": tensor([11, 12, 13, 14, 15], "int64"),
        "weights": tensor([0.0, 1.0, 1.0, 1.0, 1.0], "float32"),
        "logprobs": tensor([0.0] * 5, "float32"),
        "advantages": tensor([0.0, 1.0, -1.5, 0.7, -0.2], "float32"),
    }
    datum = {"model_input": text([10, 11, 12, 13, 14]), "loss_fn_inputs": inputs}
    given = {"data": [datum], "loss_fn": "importance_sampling"}
    body = {"model_id": model_id, "forward_backward_input": given}
    told = await caller.result("forward_backward", body)
    # Nothing is as likely as the script says that it was.
    assert told["metrics"]["masked_datums:sum"] == 1
    assert told["metrics"]["loss:sum"] == 0
    assert len(told["loss_fn_outputs"]) == 1


async def test_vision_language_action_models_are_refused_by_the_engine(caller: Caller) -> None:
    model_id = await caller.model()
    observation = {"model_input": text([1]), "state": [0.5]}
    example = {"observation": observation, "supervision": {"actions": [[0.0, 1.0], [1.0, 0.0]]}}
    body = {"model_id": model_id, "loss_fn": "flow_matching", "data": [example], "lr": 1e-4}
    for path, sent in (
        ("mint/vla/train_step", body),
        (
            "mint/action_sessions",
            {"session_id": model_id.rsplit(":", 2)[0], "base_model": BASE, "owner_id": "o"},
        ),
    ):
        answer = await caller.post(path, sent)
        assert answer.status_code == 400
        assert answer.json()["reason"] == "UNSUPPORTED"
        assert "local" in answer.json()["backend"]
    for answer in (
        await caller.post("mint/action_sessions/none/act", {"observation": observation}),
        await caller.post("mint/action_sessions/none/act_batch", {"observations": [observation]}),
        await caller.delete("mint/action_sessions/none"),
    ):
        assert answer.status_code == 404
        assert "action session" in answer.json()["detail"]
