"""Training over REST: both bodies, order, repeats, and what is wrong."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import numpy as np
import pytest
import zstandard
from rest_bodies import PROTOBUF, datum, forward_backward

from tinkergate.dialects.tinker.inputs_json import datum_from_json
from tinkergate.dialects.tinker.wire_pb2 import TinkerForwardBackwardRequest
from tinkergate.tensors import arrays_from_batched
from tinkergate.v1 import ForwardBackwardOutput, GetModelRequest

TEXT = [5, 9, 200, 31, 77, 4, 18]
WEIGHTS = {"weights": {"data": [1, 0.5, -1, 0, 2, 1], "dtype": "float32", "shape": [6]}}


def protobuf_body(model_id: str, seq_id: int, **more: Any) -> bytes:
    request = TinkerForwardBackwardRequest(
        model_id=model_id,
        seq_id=seq_id,
        loss_fn="cross_entropy",
        data=[datum_from_json(datum(TEXT, **WEIGHTS), "d")],
        **more,
    )
    return request.SerializeToString()


def logprobs(result: dict[str, Any]) -> list[float]:
    told = result["loss_fn_outputs"][0]["logprobs"]
    assert told["dtype"] == "float32"
    assert told["shape"] == [len(told["data"])]
    return list(told["data"])


async def test_json_and_protobuf_and_zstd_are_one_request_to_the_bit(rest: Any) -> None:
    model = await rest.model()
    headers = {"content-type": PROTOBUF}
    zstd = {**headers, "content-encoding": "zstd"}
    body = protobuf_body(model, 2)
    compressed = zstandard.compress(protobuf_body(model, 3))

    futures = [
        await rest.ok("forward_backward", forward_backward(model, 1, datum(TEXT, **WEIGHTS))),
        await rest.ok("forward_backward", content=body, headers=headers),
        await rest.ok("forward_backward", content=compressed, headers=zstd),
    ]
    results = [(await rest.retrieve(f["request_id"])).json() for f in futures]
    packed = await rest.retrieve(futures[1]["request_id"], accept=PROTOBUF)

    assert results[0] == results[1] == results[2]
    assert results[0]["loss_fn_output_type"] == "ArrayRecord"
    expected = -np.dot(np.float64(logprobs(results[0])), np.float64(WEIGHTS["weights"]["data"]))
    assert results[0]["metrics"]["loss:sum"] == pytest.approx(expected, rel=1e-6)
    assert packed.headers["content-type"] == PROTOBUF
    output = ForwardBackwardOutput.FromString(packed.content)
    [record] = output.loss_fn_outputs
    [array] = arrays_from_batched(record.fields["logprobs"])
    assert array.tobytes() == np.array(logprobs(results[0]), np.float32).tobytes()
    assert dict(output.metrics) == results[0]["metrics"]


async def test_forward_gives_no_gradient_by_either_route(rest: Any) -> None:
    model = await rest.model()
    asked = forward_backward(model, 1, datum(TEXT))
    forward = {"forward_input": asked.pop("forward_backward_input"), **asked}
    headers = {"content-type": PROTOBUF}

    one = await rest.result("forward", forward)
    two = await rest.result(
        "forward_backward",
        None,
        content=protobuf_body(model, 2, forward_only=True),
        headers=headers,
    )
    step = await rest.result("optim_step", {"model_id": model, "seq_id": 3})

    assert logprobs(one) == logprobs(two)
    assert step["metrics"]["grad_norm:mean"] == 0.0


async def test_chunks_may_come_in_any_order_and_add_up(rest: Any) -> None:
    texts = [[1, 2, 3, 4], [9, 8, 7], [20, 30, 40, 50, 60]]
    whole, parts = await rest.model(0), await rest.model(1)
    step = {"adam_params": {"learning_rate": 0.01}, "type": "optim_step"}
    probe = [datum([100, 101, 102, 103])]

    await rest.ok("forward_backward", forward_backward(whole, 1, *map(datum, texts)))
    await rest.ok("optim_step", {"model_id": whole, "seq_id": 2, **step})
    together = await rest.result("forward_backward", forward_backward(whole, 3, *probe))
    for seq_id in (2, 3, 1):
        future = await rest.ok(
            "forward_backward", forward_backward(parts, seq_id, datum(texts[seq_id - 1]))
        )
        assert future["model_id"] == parts
    await rest.ok("optim_step", {"model_id": parts, "seq_id": 4, **step})
    apart = await rest.result("forward_backward", forward_backward(parts, 5, *probe))

    np.testing.assert_allclose(logprobs(together), logprobs(apart), atol=2e-5)


async def test_a_repeat_is_the_same_and_another_body_is_refused_for_good(rest: Any) -> None:
    model = await rest.model()
    body = forward_backward(model, 1)

    first, again = await asyncio.gather(*(rest.ok("forward_backward", body) for _ in range(2)))
    other = await rest.post("forward_backward", forward_backward(model, 1, datum([7, 8, 9])))

    assert first == again
    # 409 would be sent again for minutes.
    assert other.status_code == 400
    assert other.json()["reason"] == "IDEMPOTENCY_CONFLICT"


BAD = {
    "short": datum([1, 2, 3], weights={"data": [1.0], "dtype": "float32"}),
    "float": datum([1, 2], target_tokens={"data": [1.5], "dtype": "int64"}),
    "token": datum([1, 2, 99_999]),
    "nan": datum([1, 2], weights={"data": [float("nan")], "dtype": "float32"}),
}


@pytest.mark.parametrize(
    ("name", "field"),
    [
        ("short", 'data[0].loss_fn_inputs["weights"]'),
        ("float", "forward_backward_input.data[0].loss_fn_inputs.target_tokens.data[0]"),
        ("token", "99999"),
        ("nan", 'data[0].loss_fn_inputs["weights"]'),
    ],
)
async def test_a_bad_request_takes_its_turn_and_the_next_one_runs(
    rest: Any, name: str, field: str
) -> None:
    model = await rest.model()
    # NaN as Python writes it, which httpx refuses.
    body = json.dumps(forward_backward(model, 1, BAD[name])).encode()

    bad = await rest.ok("forward_backward", content=body)
    again = await rest.ok("forward_backward", content=body)
    good = await rest.result("forward_backward", forward_backward(model, 2))
    failure = await rest.retrieve(bad["request_id"])

    assert again == bad
    assert failure.status_code == 200
    assert failure.json()["category"] == "user"
    assert field in failure.json()["error"]
    assert good["metrics"]["loss:sum"] > 0


@pytest.mark.parametrize(
    ("route", "body", "words"),
    [
        ("optim_step", {"adam_params": {"learning_rate": "high"}}, "adam_params.learning_rate"),
        ("optim_step", {"optimizer_params": {"type": "dimuon", "learning_rate": 1}}, "dimuon"),
        ("optim_step", {"adam_params": {}, "optimizer_params": {"type": "x"}}, "give one"),
        ("load_weights", {"path": "tinker://nobody:train:0/weights/x"}, "nobody"),
        ("load_weights", {"path": 5}, "path: is 5; must be a text"),
        ("save_weights", {"path": "../up"}, "../up"),
        ("save_weights", {"path": "a", "ttl_seconds": -1}, "ttl_seconds"),
        ("save_weights_for_sampler", {"path": "a", "kind": "live"}, "kind: is 'live'"),
        ("save_weights_external", {}, "path: is not given"),
    ],
)
async def test_every_ordered_route_fails_in_its_turn(
    rest: Any, route: str, body: dict[str, Any], words: str
) -> None:
    model = await rest.model()

    failure = await rest.result(route, {"model_id": model, "seq_id": 1, **body})
    good = await rest.result("optim_step", {"model_id": model, "seq_id": 2})

    assert words in failure["error"]
    assert failure["category"] == "user"
    assert "metrics" in good


async def test_what_names_no_turn_is_refused_at_once(rest: Any) -> None:
    model = await rest.model()

    for body, field in (
        (forward_backward("s-0:train:0", 1), "s-0:train:0"),
        ({"model_id": model, "seq_id": "1"}, "forward_backward_input"),
        (forward_backward(model, 0), "seq_id"),
        (forward_backward(model, None, BAD["short"]), "weights"),
        ([], "body"),
    ):
        response = await rest.post("forward_backward", body)

        assert response.status_code in (400, 404)
        assert field in response.json()["detail"]
        assert int(response.headers["content-length"]) > 0
    garbled = await rest.post(
        "forward_backward", content=b"\xff\xff", headers={"content-type": PROTOBUF}
    )
    assert garbled.status_code == 400
    assert "do not decode" in garbled.json()["detail"]


async def test_saving_loading_and_starting_from_a_checkpoint(rest: Any) -> None:
    model = await rest.model()
    await rest.ok("forward_backward", forward_backward(model, 1))
    await rest.ok("optim_step", {"model_id": model, "seq_id": 2, "adam_params": None})
    saved = await rest.result("save_weights", {"model_id": model, "path": "ck", "seq_id": 3})
    again = await rest.result("save_weights", {"model_id": model, "path": "ck", "seq_id": 3})
    twice = await rest.result("save_weights", {"model_id": model, "path": "ck", "seq_id": 4})
    trained = await rest.result("forward_backward", forward_backward(model, 5))

    assert saved["path"] == f"tinker://{model}/weights/ck"
    assert again == saved
    assert twice["category"] == "user"
    future = await rest.ok(
        "load_weights",
        {
            "session_id": rest.session_id,
            "model_seq_id": 1,
            "path": saved["path"],
            "optimizer": True,
            "type": "load_weights",
        },
    )
    made = (await rest.retrieve(future["request_id"])).json()
    assert made == {"type": "load_weights", "model_id": f"{rest.session_id}:train:1"}
    info = await rest.ok("get_info", {"model_id": made["model_id"]})
    assert info["model_data"]["model_name"] == "micro"
    assert (info["is_lora"], info["lora_rank"]) == (True, 4)
    assert info["optimizer_config"] == {"type": "adamw"}
    resumed = await rest.result("forward_backward", forward_backward(made["model_id"], 1))
    assert logprobs(resumed) == logprobs(trained)
    fresh = await rest.model(2)
    loaded = await rest.result(
        "load_weights",
        {"model_id": fresh, "seq_id": 1, "path": saved["path"], "optimizer": False},
    )
    assert loaded["path"] == saved["path"]
    after = await rest.result("forward_backward", forward_backward(fresh, 2))
    assert logprobs(after) == logprobs(trained)


async def test_a_model_is_made_once_and_needs_an_adapter(rest: Any) -> None:
    body = {
        "session_id": await rest.session(),
        "model_seq_id": 0,
        "base_model": "tiny",
        "lora_config": {"rank": 4, "train_unembed": False},
        "optimizer_config": {"type": "adamw"},
        "user_metadata": {"note": {"a": 1}},
        "of_a_later_version": True,
    }

    first, again = await rest.ok("create_model", body), await rest.ok("create_model", body)
    without = await rest.post("create_model", {**body, "lora_config": None, "model_seq_id": 1})
    unknown = await rest.post("create_model", {**body, "base_model": "none", "model_seq_id": 1})
    result = (await rest.retrieve(first["request_id"])).json()

    assert first == again
    assert first["model_id"] == f"{rest.session_id}:train:0"
    assert result == {"type": "create_model", "model_id": first["model_id"]}
    assert without.status_code == 400
    assert "only LoRA" in without.json()["detail"]
    assert unknown.status_code == 404
    gone = await rest.result("unload_model", {"model_id": first["model_id"]})
    assert gone == {"type": "unload_model", "model_id": first["model_id"]}


async def test_rollout_correction_is_read(rest: Any) -> None:
    config = {"rollout_rs": "sequence", "rollout_rs_threshold": "0.5_2.0"}

    model = await rest.model(rollout_correction_config=config)
    refused = await rest.post(
        "create_model",
        {
            "session_id": rest.session_id,
            "base_model": "micro",
            "lora_config": {"rank": 4},
            "rollout_correction_config": {"rollout_is": "token"},
        },
    )

    made = (await rest.gateway.models.get(GetModelRequest(model_id=model))).model
    assert made.rollout_correction.threshold == 2.0
    assert made.rollout_correction.lower_threshold == 0.5
    assert "rollout_is" in refused.json()["detail"]


async def test_a_full_queue_is_told_by_429_and_takes_the_request_later(open_rest: Any) -> None:
    async with open_rest(core={"max_queued_operations": 3}) as rest:
        model = await rest.model()
        held = [await rest.post("optim_step", {"model_id": model, "seq_id": n}) for n in (3, 2, 4)]
        assert [response.status_code for response in held] == [200, 200, 429]
        assert float(held[2].headers["retry-after"]) >= 1
        await rest.result("optim_step", {"model_id": model, "seq_id": 1})

        assert await rest.result("optim_step", {"model_id": model, "seq_id": 4})


async def test_sessions_live_and_end(rest: Any) -> None:
    session = await rest.session()

    beat = await rest.ok("session_heartbeat", {"session_id": session})
    finish = {"reason": {"type": "success"}, "detail": "done"}
    ended = await rest.post(f"sessions/{session}/finish", finish)
    late = await rest.post("session_heartbeat", {"session_id": session})
    unknown = await rest.post("session_heartbeat", {"session_id": "s-none"})

    assert beat == {"type": "session_heartbeat"}
    assert ended.status_code == 200
    assert late.status_code == 410
    assert unknown.status_code == 404
