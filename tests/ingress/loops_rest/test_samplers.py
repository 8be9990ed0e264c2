"""Samplers of both kinds: whose a call is, keys, floors, echoes, giving up."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tinkergate.v1 import WaitOperationRequest


async def trained(loops: Any, make_datum: Any, steps: int = 1) -> Any:
    trainer = await loops.trainer()
    for _ in range(steps):
        await trainer.backward(make_datum())
        await trainer.step(learning_rate=0.1)
    return trainer


def completion(result: dict[str, Any], prompt: int = 3) -> list[int]:
    tokens: list[int] = result["choices"][0]["token_ids"]
    return tokens[prompt:]


async def test_a_choice_begins_with_the_prompt(loops: Any) -> None:
    result = await loops.drawn(await loops.sampler(), n=2, seed=5, temperature=1.0)
    assert result["usage"] == {
        "prompt_tokens": 3,
        "completion_tokens": 8,
        "total_tokens": 11,
        "prompt_tokens_details": {"cached_tokens": 0},
    }
    for choice in result["choices"]:
        assert choice["token_ids"][:3] == [7, 8, 9]
        assert choice["logprobs"]["tokens"] == choice["token_ids"]
        assert choice["logprobs"]["token_logprobs"][:3] == [None] * 3
        assert all(value < 0 for value in choice["logprobs"]["token_logprobs"][3:])
        assert choice["finish_reason"] == "length"
    assert result["choices"][0] != result["choices"][1]


async def test_prompt_logprobs_hold_the_token_itself_and_the_likeliest(loops: Any) -> None:
    sampler = await loops.sampler()
    plain = (await loops.drawn(sampler, prompt_logprobs=0))["choices"][0]["prompt_logprobs"]
    assert plain[0] is None
    assert [list(entry) for entry in plain[1:]] == [["8"], ["9"]]
    top = (await loops.drawn(sampler, prompt_logprobs=3))["choices"][0]["prompt_logprobs"]
    for entry, token in zip(top[1:], ("8", "9"), strict=True):
        assert token in entry
        likeliest = [value for value in entry.values() if "rank" in value]
        assert [value["rank"] for value in likeliest] == [1, 2, 3]
        logprobs = [value["logprob"] for value in likeliest]
        assert logprobs == sorted(logprobs, reverse=True)
    nothing = (await loops.drawn(sampler))["choices"][0]
    assert "prompt_logprobs" not in nothing


async def test_a_key_draws_once(loops: Any) -> None:
    sampler = await loops.sampler()
    call = {"temperature": 1.0, "key": "once"}
    answers = await asyncio.gather(*(loops.sample(sampler, **call) for _ in range(4)))
    (first,) = {answer.json()["operation_id"] for answer in answers}
    assert (await loops.sample(sampler, **call)).json()["operation_id"] == first
    assert (await loops.sample(sampler, temperature=1.0)).json()["operation_id"] != first
    assert await loops.poll_sample(sampler, first) == await loops.poll_sample(sampler, first)


async def test_shared_capacity_asks_whose_a_call_is(loops: Any, make_datum: Any) -> None:
    trainer = await trained(loops, make_datum)
    sampler = await loops.sampler()
    paired = await loops.sampler(run_id=trainer.run_id)
    assert paired == await loops.sampler(run_id=trainer.run_id)
    path = (await trainer.publish("p"))["path"]
    run, mine, pin = (
        {"x-run-id": trainer.run_id},
        {"x-sampler-id": sampler["id"]},
        {"x-checkpoint-path": path},
    )
    refused = (
        (sampler, {}, 400, "run_or_sampler_required"),
        (sampler, run | mine, 400, "run_or_sampler_conflict"),
        (sampler, {"x-sampler-id": paired["id"]}, 403, "run_mismatch"),
        (sampler, {"x-run-id": "s-0:train:0"}, 404, "run_not_found"),
        (paired, {"x-run-id": "s-0:train:0"}, 403, "run_mismatch"),
        (paired, {"x-run-id": "s-0:train:0"} | pin, 403, "run_mismatch"),
    )
    for at, headers, status, code in refused:
        answer = await loops.sample(at, headers=headers)
        assert (answer.status_code, answer.headers["x-baseten-error-code"]) == (status, code)
        assert answer.headers["x-baseten-error-source"] == "06"
    for headers, body in ((pin, {}), (run | pin, {"lora": path})):
        pinned = await loops.drawn(paired, headers=headers, **body)
        assert pinned["model"] == path
    base = await loops.drawn(paired, headers=run)
    assert base["model"] == "micro"
    assert completion(base) == completion(await loops.drawn(sampler))
    assert completion(base) != completion(pinned)
    for wrong, words in (({"lora": "bt://x"}, "lora"), ({"model": None}, "model")):
        answer = await loops.sample(sampler, **wrong)
        assert (answer.status_code, words in answer.json()["detail"]) == (422, True)


async def test_a_queued_call_is_cancelled(loops: Any) -> None:
    sampler = await loops.sampler()
    headers = {"x-sampler-id": sampler["id"]}
    long = await loops.sample(sampler, n=400, max_tokens=500, temperature=1.0)
    operation = long.json()["operation_id"]
    url = f"{sampler['base_url']}/operations/{operation.replace('/', '%2F')}/cancel"
    assert (await loops.client.post(url, headers=headers)).status_code == 200
    told = await loops.poll_sample(sampler, operation)
    assert (told["status"], told["error_class"]) == ("error", "CancelledError")
    assert (await loops.client.post(url, headers=headers)).status_code == 409
    short = (await loops.sample(sampler)).json()["operation_id"]
    await loops.poll_sample(sampler, short)
    done = f"{sampler['base_url']}/operations/{short.replace('/', '%2F')}/cancel"
    assert (await loops.client.post(done, headers=headers)).status_code == 409
    unknown = f"{sampler['base_url']}/operations/unknown"
    assert (await loops.client.get(unknown, headers=headers)).status_code == 404


async def test_too_much_at_once_is_told_with_a_time_to_wait(open_loops: Any) -> None:
    async with open_loops(core={"max_running_samples": 2}) as loops:
        sampler = await loops.sampler()
        await loops.sample(sampler, n=300, max_tokens=500, temperature=1.0)
        answer = await loops.sample(sampler, n=2)
        assert (answer.status_code, answer.json()["details"]["reason"]) == (503, "QUEUE_FULL")
        assert int(answer.headers["retry-after"]) >= 1


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"prompt": []}, "prompt"),
        ({"prompt": [9999]}, "prompt"),
        ({"n": 0}, "n"),
        ({"structured_outputs": {"regex": "a"}}, "structured_outputs"),
        ({"include_routed_experts": True}, "include_routed_experts"),
        ({"stop": ["a"], "stop_token_ids": [3]}, "stop_token_ids"),
        ({"temperature": -1.0}, "temperature"),
        ({"prompt_logprobs": -1}, "prompt_logprobs"),
    ],
)
async def test_bad_input_is_422(dedicated: Any, body: dict[str, Any], words: str) -> None:
    answer = await dedicated.sample(await dedicated.sampler(), **body)
    assert answer.status_code == 422, answer.text
    assert words in answer.json()["detail"]


async def test_dedicated_samplers_serve_the_newest_weights(dedicated: Any, make_datum: Any) -> None:
    trainer = await trained(dedicated, make_datum)
    sampler = await dedicated.sampler(run_id=trainer.run_id)
    assert sampler["base_url"].endswith("/sync")
    before = await dedicated.sample(sampler, headers={})
    assert (before.status_code, before.headers["x-trainers-policy-version"]) == (200, "0")
    published = await trainer.publish("policy")
    floor = {"x-min-policy-version": str(published["version"])}
    first = await dedicated.sample(sampler, headers=floor)
    assert first.headers["x-trainers-policy-version"] == "1"
    assert completion(first.json()) != completion(before.json())
    await trainer.backward(make_datum())
    await trainer.step(learning_rate=0.5)
    # Saved for the shelf, which changes nothing for the sampler.
    await trainer.result("save_weights_for_sampler", {"name": "kept", "bump_version": False})
    same = await dedicated.sample(sampler, headers=floor)
    assert completion(same.json()) == completion(first.json())
    # The same name again: a newer version under it.
    await trainer.publish("policy")
    second = await dedicated.sample(sampler, headers={"x-min-policy-version": "2"})
    assert second.headers["x-trainers-policy-version"] == "2"
    assert completion(second.json()) != completion(first.json())
    told = await dedicated.client.get(f"{sampler['base_url']}/trainers_policy_version")
    assert told.json() == {"policy_version": 2}
    models = await dedicated.client.get(f"{sampler['base_url']}/v1/models")
    path = f"bt://loops:{trainer.run_id}/sampler_weights/policy"
    assert [(m["id"], m["parent"]) for m in models.json()["data"]] == [
        ("micro", None),
        (path, "micro"),
    ]


async def test_a_floor_waits_for_what_is_on_its_way(dedicated: Any, make_datum: Any) -> None:
    trainer = await trained(dedicated, make_datum)
    sampler = await dedicated.sampler(run_id=trainer.run_id)
    behind = await dedicated.sample(sampler, headers={"x-min-policy-version": "1"})
    assert behind.status_code == 408
    body = {"name": "p", "bump_version": True}
    # Number 3 is parked until number 2 is there, and the sample call waits for it.
    await trainer.begin("save_weights_for_sampler", body, seq_id=5)
    waiting = asyncio.create_task(dedicated.sample(sampler, headers={"x-min-policy-version": "2"}))
    await asyncio.sleep(0.2)
    assert not waiting.done()
    await trainer.begin("optim_step", {"adam_params": {}}, seq_id=4)
    answer = await waiting
    assert (answer.status_code, answer.headers["x-trainers-policy-version"]) == (200, "2")


async def test_what_was_published_is_served_when_its_result_is_not_kept_any_more(
    open_loops: Any, make_datum: Any, clock: Any
) -> None:
    patient = {"session_expires_after": 1e6, "result_retention": 100.0}
    async with open_loops("dedicated", clock=clock, core=patient) as loops:
        trainer = await trained(loops, make_datum)
        sampler = await loops.sampler(run_id=trainer.run_id)
        await trainer.publish("first")
        clock.seconds += 101
        await loops.gateway.reap()
        floor = {"x-min-policy-version": "1"}
        served = await loops.sample(sampler, headers=floor)
        assert (served.status_code, served.headers["x-trainers-policy-version"]) == (200, "1")
        # One that nobody asks after until it is forgotten is in nobody's way.
        name = await trainer.begin(
            "save_weights_for_sampler", {"name": "second", "bump_version": True}
        )
        await loops.gateway.operations.wait(WaitOperationRequest(name=name))
        clock.seconds += 100_000
        await loops.gateway.reap()
        again = await loops.sample(sampler, headers=floor)
        assert (again.status_code, again.headers["x-trainers-policy-version"]) == (200, "1")


async def test_a_checkpoint_is_served_until_the_floor_is_reached(
    dedicated: Any, make_datum: Any
) -> None:
    trainer = await trained(dedicated, make_datum)
    sampler = await dedicated.sampler(run_id=trainer.run_id)
    pinned = (await trainer.publish("one"))["path"]
    headers = {"x-checkpoint-path": pinned, "x-min-policy-version": "2"}
    old = await dedicated.sample(sampler, headers=headers)
    assert "x-trainers-policy-version" not in old.headers
    await trainer.backward(make_datum())
    await trainer.step(learning_rate=0.5)
    await trainer.publish("two")
    new = await dedicated.sample(sampler, headers=headers)
    assert new.headers["x-trainers-policy-version"] == "2"
    assert completion(new.json()) != completion(old.json())


async def test_a_dedicated_sampler_has_a_deployment_that_can_be_ended(dedicated: Any) -> None:
    sampler = await dedicated.sampler()
    place = f"models/{sampler['model_id']}/deployments/{sampler['deployment_id']}"
    assert (await dedicated.told(place))["status"] == "ACTIVE"
    wake = sampler["base_url"].removesuffix("/sync") + "/wake"
    assert (await dedicated.client.post(wake)).status_code == 200
    await dedicated.ok(f"loops/samplers/{sampler['id']}/deactivate")
    assert (await dedicated.told(place))["status"] == "INACTIVE"
    assert (await dedicated.sample(sampler)).status_code == 410
    listed = (await dedicated.told("loops/samplers"))["samplers"]
    assert [(s["id"], s["status"]["name"]) for s in listed] == [(sampler["id"], "INACTIVE")]


async def test_a_sampler_outlives_the_gateway(open_loops: Any, make_datum: Any) -> None:
    async with open_loops("dedicated") as loops:
        trainer = await trained(loops, make_datum)
        path = (await trainer.publish("p"))["path"]
        sampler = await loops.sampler(model_path=path)
        paired = await loops.sampler(run_id=trainer.run_id)
        drawn = completion((await loops.sample(sampler)).json())
    async with open_loops("dedicated") as loops:
        for each in (sampler, paired):
            _, _, rest = each["base_url"].partition("//")
            each["base_url"] = "/" + rest.partition("/")[2]
        assert completion((await loops.sample(sampler)).json()) == drawn
        pin = {"x-checkpoint-path": path}
        assert completion((await loops.sample(paired, headers=pin)).json()) == drawn
        # What it served last is not known any more, and is not guessed.
        assert (await loops.sample(paired, headers={})).status_code == 410
        resumed = await loops.trainer(path=path)
        assert resumed.run_id != trainer.run_id
        await resumed.result("load_state", {"path": path})
