"""Sampling over REST, and futures: polls, metadata, completion queues, giving up."""

from __future__ import annotations

import asyncio
import time
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from rest_bodies import PROTOBUF, datum, forward_backward
from starlette.requests import Request

from tinkergate.ingress.tinker_rest import sampling
from tinkergate.ingress.tinker_rest.futures import poll_limit
from tinkergate.tensors import floats_from_bytes, tokens_from_bytes
from tinkergate.v1 import FinishSessionRequest, SampleResponse

PROMPT = [5, 9, 200, 31]


def asking(seq_id: int | None = 0, tokens: list[int] = PROMPT, **more: Any) -> dict[str, Any]:
    params = {"max_tokens": 4, "seed": 1, "temperature": 1.0, "top_k": -1, "top_p": 1.0}
    return {
        "prompt": {"chunks": [{"tokens": tokens, "type": "encoded_text"}]},
        "sampling_params": {**params, "stop": [], **more.pop("sampling_params", {})},
        "num_samples": 2,
        "seq_id": seq_id,
        "type": "sample",
        **more,
    }


async def test_a_sample_in_json_is_the_one_in_protobuf(rest: Any) -> None:
    body = asking(
        sampling_session_id=await rest.sampler(),
        prompt_logprobs=True,
        topk_prompt_logprobs=3,
        topk_sample_logprobs=2,
        target_prompt_logprobs={"data": [9, -1, 31], "dtype": "int64", "shape": [3, 1]},
        of_a_later_version=True,
    )
    future = await rest.ok("asample", body)

    told = (await rest.retrieve(future["request_id"])).json()
    packed = await rest.retrieve(future["request_id"], accept=PROTOBUF)

    assert len(future["sample_sequence_ids"]) == 2
    assert len(set(future["sample_sequence_ids"])) == 2
    response = SampleResponse.FromString(packed.content)
    assert told["type"] == "sample"
    for sequence, wire in zip(told["sequences"], response.sequences, strict=True):
        assert sequence["stop_reason"] == "length"
        assert sequence["tokens"] == tokens_from_bytes(wire.tokens).tolist()
        logprobs = np.array(sequence["logprobs"], np.float32)
        assert logprobs.tobytes() == wire.logprobs
        assert len(sequence["topk_sampled_logprobs"]) == 4
    assert told["sequences"][0]["tokens"] != told["sequences"][1]["tokens"]
    [first, *rest_of_prompt] = told["prompt_logprobs"]
    assert first is None
    expected = floats_from_bytes(response.prompt_logprobs)[1:]
    np.testing.assert_array_equal(np.array(rest_of_prompt, np.float32), expected)
    assert told["topk_prompt_logprobs"][0] is None
    [best, *_] = told["topk_prompt_logprobs"][1]
    assert best[1] == max(pair[1] for pair in told["topk_prompt_logprobs"][1])
    assert [len(row) for row in told["topk_prompt_logprobs"][1:]] == [3, 3, 3]
    targets = told["target_prompt_logprobs"]
    assert targets["shape"] == [3, 1]
    assert targets["data"] == [rest_of_prompt[0], 0.0, rest_of_prompt[2]]


async def test_a_repeat_is_the_same_call_and_another_body_is_refused(rest: Any) -> None:
    body = asking(sampling_session_id=await rest.sampler())

    first, again = await asyncio.gather(*(rest.ok("asample", body) for _ in range(2)))
    other = await rest.post("asample", {**body, "num_samples": 3})

    assert first == again
    assert other.status_code == 400
    assert other.json()["reason"] == "IDEMPOTENCY_CONFLICT"


async def test_samplers_of_every_form_draw_the_same(rest: Any) -> None:
    model = await rest.model()
    await rest.ok("forward_backward", forward_backward(model, 1, datum(PROMPT)))
    await rest.ok(
        "optim_step", {"model_id": model, "seq_id": 2, "adam_params": {"learning_rate": 0.05}}
    )
    named = {"model_id": model, "path": "s", "seq_id": 3, "kind": "snapshot"}
    saved = await rest.result("save_weights_for_sampler", named)
    ephemeral = await rest.result(
        "save_weights_for_sampler",
        {"model_id": model, "sampling_session_seq_id": 5, "seq_id": 4},
    )

    assert saved["path"] == f"tinker://{model}/sampler_weights/s"
    assert ephemeral["path"] is None
    assert ephemeral["sampling_session_id"] == f"{rest.session_id}:sample:5"
    made = await rest.sampler(0, model_path=saved["path"])
    looked = (await rest.get(f"samplers/{made}")).json()
    assert looked == {"sampler_id": made, "base_model": "micro", "model_path": saved["path"]}
    drawn = []
    for source in (
        {"sampling_session_id": made},
        {"sampling_session_id": ephemeral["sampling_session_id"]},
        {"model_path": saved["path"]},
        {"base_model": "micro"},
    ):
        seq_id = 0 if "sampling_session_id" in source else None
        result = await rest.result("asample", asking(seq_id, **source))
        drawn.append([sequence["logprobs"] for sequence in result["sequences"]])
    assert drawn[0] == drawn[1] == drawn[2]
    assert drawn[3] != drawn[0]


@pytest.mark.parametrize(
    ("more", "field"),
    [
        ({"num_samples": 0}, "num_samples: is 0; must be at least 1"),
        ({"sampling_params": {"stop": [1, "a"]}}, "sampling_params.stop"),
        ({"sampling_params": {"temperature": -1}}, "temperature"),
        ({"sampling_params": {"seed": -1}}, "sampling_params.seed: is -1; must fit uint64"),
        ({"sampling_params": {"max_tokens": True}}, "sampling_params.max_tokens"),
        ({"tokens": [1, 70_000]}, "70000"),
        ({"prompt": None}, "prompt: is not given"),
        ({"topk_prompt_logprobs": "2"}, "topk_prompt_logprobs"),
    ],
)
async def test_a_bad_sample_is_refused_at_once(rest: Any, more: dict[str, Any], field: str) -> None:
    response = await rest.post("asample", asking(sampling_session_id=await rest.sampler(), **more))

    assert response.status_code == 400
    assert field in response.json()["detail"]


@pytest.mark.parametrize("stop", ["x", ["x", "y"], [7, 8], [], None])
async def test_every_form_of_stop_is_taken(rest: Any, stop: Any) -> None:
    body = asking(base_model="micro", sampling_params={"stop": stop})

    assert len((await rest.result("asample", body))["sequences"]) == 2


async def test_too_much_at_once_is_told_by_429_and_taken_later(open_rest: Any) -> None:
    async with open_rest(core={"max_running_samples": 2}) as rest:
        sampler = await rest.sampler()
        long = {"sampling_params": {"max_tokens": 60}, "sampling_session_id": sampler}
        first = await rest.ok("asample", asking(0, **long))

        refused = await rest.post("asample", asking(1, sampling_session_id=sampler))
        await rest.retrieve(first["request_id"])
        taken = await rest.post("asample", asking(1, sampling_session_id=sampler))

    assert refused.status_code == 429
    assert int(refused.headers["retry-after-ms"]) > 0
    assert taken.status_code == 200


async def test_a_poll_is_held_and_then_told_to_try_again(open_rest: Any) -> None:
    async with open_rest(long_poll=0.3) as rest:
        model = await rest.model()
        future = await rest.ok("forward_backward", forward_backward(model, 2))
        poll = {"request_id": future["request_id"], "allow_metadata_only": True}

        begin = time.monotonic()
        response = await rest.post("retrieve_future", poll)
        held = time.monotonic() - begin

        assert response.status_code == 408
        assert response.json() == {
            "type": "try_again",
            "request_id": future["request_id"],
            "queue_state": "active",
            "queue_state_reason": None,
        }
        assert held > 0.25
        # It wakes at once when there is a result.
        waiting = asyncio.create_task(rest.retrieve(future["request_id"]))
        await rest.ok("forward_backward", forward_backward(model, 1))
        assert (await waiting).json()["metrics"]["loss:sum"] > 0


async def test_a_poll_ends_before_its_caller_gives_up(open_rest: Any) -> None:
    async with open_rest(long_poll=1000.0) as rest:
        await check_early_end(rest)


async def check_early_end(rest: Any) -> None:
    model = await rest.model()
    future = await rest.ok("forward_backward", forward_backward(model, 2))

    # Without the header the door holds it for longer than this client waits.
    response = await rest.post(
        "retrieve_future",
        {"request_id": future["request_id"]},
        headers={"x-stainless-read-timeout": "1"},
    )

    assert response.status_code == 408


@pytest.mark.parametrize(
    ("said", "held"),
    [("", 30), ("45", 30), ("20", 15), ("8", 4), ("1", 0.5), ("0", 30), ("-1", 30), ("soon", 30)],
)
def test_how_long_a_poll_is_held(said: str, held: float) -> None:
    headers = [(b"x-stainless-read-timeout", said.encode())] if said else []
    request = Request({"type": "http", "headers": headers})
    assert poll_limit(request, 30.0) == held


async def test_large_results_are_announced_to_those_who_ask(rest: Any) -> None:
    body = asking(
        sampling_session_id=await rest.sampler(),
        tokens=list(range(3, 303)),
        topk_prompt_logprobs=512,
    )
    future = await rest.ok("asample", body)
    poll = {"request_id": future["request_id"], "allow_metadata_only": True}
    whole = {accept: await rest.retrieve(future["request_id"], accept) for accept in FORMS}

    for accept, complete in whole.items():
        told = (await rest.post("retrieve_future", poll, headers={"accept": accept})).json()

        assert told == {
            "status": "complete_metadata",
            "response_payload_size": len(complete.content),
        }
    assert len(whole[PROTOBUF].content) < len(whole["application/json"].content)


FORMS = (PROTOBUF, "application/json")


async def test_unknown_samples_are_gone_and_unknown_operations_not_found(rest: Any) -> None:
    sampler = await rest.sampler()

    for name, status in (
        (f"samplers/{sampler}/samples/77", 410),
        ("samples/none", 410),
        (f"models/{rest.session_id}:train:0/operations/1", 404),
        ("anything", 404),
    ):
        response = await rest.post("retrieve_future", {"request_id": name})

        assert response.status_code == status, name
        assert name in response.json()["detail"]


async def test_a_result_that_is_no_longer_kept_is_gone(open_rest: Any) -> None:
    async with open_rest(core={"result_byte_budget": 1}) as rest:
        model = await rest.model()
        first = await rest.ok("forward_backward", forward_backward(model, 1))
        await rest.result("forward_backward", forward_backward(model, 2))

        response = await rest.post("retrieve_future", {"request_id": first["request_id"]})

    assert response.status_code == 410


async def test_who_has_joined_a_sampler_is_forgotten_with_its_session(rest: Any) -> None:
    door = sampling._Sampling(SimpleNamespace(gateway=rest.gateway))  # type: ignore[arg-type]
    joined = await rest.sampler()
    for sampler in (joined, "s-of-another:sample:0"):
        assert next(door._clones[sampler]) == 1
    await rest.gateway.sessions.finish(FinishSessionRequest(session_id=rest.session_id))
    assert list(door._clones) == ["s-of-another:sample:0"]


async def test_completions_are_told_in_order_and_acknowledged(rest: Any) -> None:
    sampler = await rest.sampler()
    clone = await rest.ok("join_sampling_session", {"sampling_session_id": sampler})
    other = await rest.ok("join_sampling_session", {"sampling_session_id": sampler})
    assert clone["client_counter"] != other["client_counter"]
    block = clone["client_counter"]
    target = {
        "type": "sampling_session",
        "sampling_session_id": sampler,
        "cloned_sampler_id": block,
    }

    async def completions(cursor: int, **more: Any) -> dict[str, Any]:
        body = {
            "target": target,
            "prev_cursor": cursor,
            "retrieved_request_ids": more.pop("done", []),
            **more,
        }
        return dict(await rest.ok("retrieve_futures", body))

    assert await completions(0, timeout=0) == {"completions": [], "cursor": 0}
    seq_id = block * 1_000_000_000
    mine = await rest.ok("asample", asking(seq_id, sampling_session_id=sampler))
    await rest.ok("asample", asking(0, sampling_session_id=sampler))
    told = await completions(0)
    again = await completions(0, timeout=0)
    rest_of = await completions(told["cursor"], timeout=0)

    assert told == again
    [completion] = told["completions"]
    assert (completion["state"], completion["request_id"]) == ("finished", mine["request_id"])
    packed = await rest.retrieve(mine["request_id"], accept=PROTOBUF)
    assert completion["response_payload_uncompressed_size"] >= len(packed.content)
    assert rest_of == {"completions": [], "cursor": told["cursor"]}
    await completions(told["cursor"], timeout=0, done=[mine["request_id"]])
    gone = await rest.post("retrieve_future", {"request_id": mine["request_id"]})
    assert gone.status_code == 410


async def test_futures_are_given_up(rest: Any) -> None:
    model, sampler = await rest.model(), await rest.sampler()
    long = {"sampling_params": {"max_tokens": 500}, "sampling_session_id": sampler}
    sample = await rest.ok("asample", asking(0, num_samples=64, **long))
    parked = await rest.ok("optim_step", {"model_id": model, "seq_id": 2})

    for name in (sample["request_id"], parked["request_id"], "models/x/operations/1"):
        assert await rest.ok("cancel_future", {"request_id": name}) == {}

    for future in (sample, parked):
        failure = (await rest.retrieve(future["request_id"])).json()
        assert failure["category"] == "user"
        assert "cancelled" in failure["error"]
