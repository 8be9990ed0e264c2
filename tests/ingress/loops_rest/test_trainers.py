"""Trainers: order, keys, results, what is refused."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

FLAG = {"skip_token_normalization": True}


async def test_operations_run_by_their_numbers_whatever_the_order_they_come_in(
    loops: Any, make_datum: Any
) -> None:
    trainer = await loops.trainer()
    other = await loops.trainer()
    data = {"data": [make_datum()], "loss_fn_config": FLAG}
    step = {"adam_params": {"learning_rate": 1e-2}}
    plan = [("forward_backward", data), ("optim_step", step), ("forward", data)] * 2
    straight = [await trainer.result(op, body) for op, body in plan]
    begun = [(seq, await other.begin(*plan[seq - 2], seq_id=seq)) for seq in (7, 3, 2, 6, 4, 5)]
    results = {seq: await other.poll(operation) for seq, operation in begun}
    assert [results[seq]["result"] for seq in range(2, 8)] == straight


async def test_a_key_answers_the_same_operation_and_runs_it_once(
    loops: Any, make_datum: Any
) -> None:
    trainer = await loops.trainer()
    body = {"data": [make_datum()], "loss_fn_config": FLAG}
    first = await trainer.begin("forward_backward", body, seq_id=2, key="k" * 32)
    again = await trainer.begin("forward_backward", body, seq_id=2, key="k" * 32)
    assert first == again
    once = await trainer.poll(first)
    assert await trainer.poll(first) == once
    norm = await trainer.result("optim_step", {"adam_params": {}}, seq_id=3)

    other = await loops.trainer()
    await other.result("forward_backward", body)
    assert await other.result("optim_step", {"adam_params": {}}) == norm


async def test_a_poll_is_held_and_then_says_408(open_loops: Any, make_datum: Any) -> None:
    async with open_loops(long_poll=0.2) as loops:
        trainer = await loops.trainer()
        # Number 2 stays away, so number 3 waits.
        early = await trainer.begin("optim_step", {"adam_params": {}}, seq_id=3)
        answer = await trainer.get(f"operations/{early.replace('/', '%2F')}")
        assert answer.status_code == 408
        assert answer.json() == {"status": "pending"}
        await trainer.begin("forward_backward", {"data": [make_datum()]}, seq_id=2)
        assert (await trainer.poll(early))["status"] == "done"


async def test_what_is_refused_takes_its_turn(loops: Any, make_datum: Any) -> None:
    trainer = await loops.trainer()
    wrong = make_datum(weights=[1.0, 2.0])
    for body, words in (
        ({"data": [wrong]}, 'data[0].loss_fn_inputs["weights"]'),
        ({"data": "nothing"}, "data"),
        ({"data": [make_datum()], "loss_fn": "gspo"}, "loss_fn"),
        ({"data": [make_datum()], "top_k_logprobs": 1}, "top_k_logprobs"),
        ({"data": [{**make_datum(), "routed_experts_ref": {"uri": "bt://x"}}]}, "routed_experts"),
        ({"data": [make_datum()], "loss_fn_config": {"epsilon": 1}}, "epsilon"),
        ({"data": [make_datum()], "run_id": "s-1:train:9"}, "run_id"),
    ):
        answer = await trainer.post("forward_backward", body)
        if words == "run_id":
            # It is not said to be of this run, so it has no place here.
            assert answer.status_code == 422
            continue
        assert answer.status_code == 422, answer.text
        assert words in answer.json()["detail"]
        assert answer.json()["details"]["reason"] == "INVALID_FIELD"
        assert "x-baseten-error-source" not in answer.headers
    result = await trainer.result("optim_step", {"adam_params": {}}, seq_id=8)
    assert result["metrics"]["grad_norm:mean"] == 0.0


async def test_gradients_are_per_token_unless_sums_are_asked_for(
    loops: Any, make_datum: Any
) -> None:
    trainer = await loops.trainer()
    weighted = make_datum(weights=[0.0, 0.0, 1.0, 1.0, 2.0, 1.0])
    summed = await trainer.backward(weighted, loss_fn_config=FLAG)
    assert summed["metrics"] == {"loss": summed["loss"], "skip_token_normalization": 1.0}
    norm = (await trainer.step(learning_rate=0.0))["metrics"]["grad_norm:mean"]
    plain = await trainer.backward(weighted)
    assert plain["metrics"] == {"loss": summed["loss"]}
    step = (await trainer.step(learning_rate=0.0))["metrics"]
    assert step["normalization_tokens:sum"] == 4
    assert step["grad_norm:mean"] == pytest.approx(norm / 4, rel=1e-5)
    halves = await trainer.backward(weighted, loss_fn_config={"skip_token_normalization": False})
    assert halves["metrics"] == plain["metrics"]
    mixed = await trainer.begin(
        "forward_backward",
        {"data": [weighted], "loss_fn": "cross_entropy", "loss_fn_config": FLAG},
    )
    told = await trainer.poll(mixed)
    assert (told["status"], told["error_class"]) == ("error", "NormalizationMixedError")


async def test_targets_that_are_ignored_are_null_and_weigh_nothing(
    loops: Any, make_datum: Any
) -> None:
    trainer = await loops.trainer()
    whole = make_datum(weights=[0.0, 1.0, 0.0, 1.0, 1.0, 1.0])
    scored = await trainer.backward(whole, loss_fn_config=FLAG)
    norm = await trainer.step(learning_rate=0.0)
    ignored = make_datum()
    targets = ignored["loss_fn_inputs"]["target_tokens"]["data"]
    ignored["loss_fn_inputs"]["target_tokens"]["data"] = [-100, targets[1], -100, *targets[3:]]
    told = await trainer.backward(ignored, loss_fn_config=FLAG)
    assert await trainer.step(learning_rate=0.0) == norm
    assert told["loss"] == scored["loss"]
    row = scored["loss_fn_outputs"][0]["logprobs"]["data"]
    # A weight of 0 alone hides nothing.
    assert None not in row
    assert told["loss_fn_outputs"][0]["logprobs"] == {
        "data": [None, row[1], None, *row[3:]],
        "dtype": "float32",
        "shape": [6],
    }


async def test_many_targets_a_token_nested_or_flat(loops: Any, make_datum: Any) -> None:
    trainer = await loops.trainer()
    rows = [[9, 1], [200, 2], [31, -100], [77, 4], [4, 5], [18, 6]]
    weights = [[1.0, 0.5]] * 6
    nested = make_datum(
        target_tokens={"data": rows, "dtype": "int64", "shape": [6, 2]},
        weights={"data": weights, "dtype": "float32", "shape": [6, 2]},
    )
    flat = make_datum(
        target_tokens={"data": [x for row in rows for x in row], "dtype": "int64", "shape": [6, 2]},
        weights={"data": [x for row in weights for x in row], "dtype": "float32", "shape": [6, 2]},
    )
    told = [await trainer.backward(each, loss_fn_config=FLAG) for each in (nested, flat)]
    assert told[0] == told[1]
    logprobs = told[0]["loss_fn_outputs"][0]["logprobs"]
    assert logprobs["shape"] == [6, 2]
    assert [place for place, value in enumerate(logprobs["data"]) if value is None] == [5]


async def test_policy_losses(loops: Any, make_datum: Any) -> None:
    trainer = await loops.trainer()
    behaviour = [-3.0] * 6
    for loss_fn in ("importance_sampling", "ppo", "cispo", "dro", "dppo"):
        rows = make_datum(
            logprobs=behaviour, advantages=[0.0, 0.5, 0.5, 0.0, 0.5, 0.5], mask=[1.0] * 6
        )
        told = await trainer.backward(rows, loss_fn=loss_fn)
        logprobs = told["loss_fn_outputs"][0]["logprobs"]["data"]
        assert [place for place, value in enumerate(logprobs) if value == 0.0] == [0, 3]
        one = make_datum(logprobs=behaviour, advantages=[0.5])
        many = make_datum(logprobs=behaviour, advantages=[0.5] * 6)
        assert await trainer.backward(one, loss_fn=loss_fn) == await trainer.backward(
            many, loss_fn=loss_fn
        )
        await trainer.step(learning_rate=0.0)


async def test_pairs_have_one_loss_each(loops: Any, make_datum: Any) -> None:
    trainer = await loops.trainer()
    inputs = {"weights": [1.0] * 6, "ref_logprobs": [-2.0] * 6}
    pair = [make_datum(**inputs), make_datum(**inputs)]
    told = await trainer.backward(*pair, loss_fn="dpo")
    # Chosen and rejected are one text: the loss is log 2 a pair.
    assert told["loss"] == pytest.approx(0.6931471805599453, rel=1e-6)
    twice = await trainer.backward(*pair, *pair, loss_fn="dpo")
    assert twice["loss"] == pytest.approx(told["loss"], rel=1e-9)


async def test_without_targets_the_tokens_score_themselves(loops: Any, make_datum: Any) -> None:
    trainer = await loops.trainer()
    own = make_datum(target_tokens=None)
    told = (await trainer.backward(own))["loss_fn_outputs"][0]["logprobs"]["data"]
    given = (await trainer.backward(make_datum()))["loss_fn_outputs"][0]["logprobs"]["data"]
    assert told == [*given[:-1], 0.0]


async def test_init_resets_whatever_was_done(loops: Any, make_datum: Any) -> None:
    trainer = await loops.trainer()
    fresh = await trainer.result("forward", {"data": [make_datum()]})
    await trainer.backward(make_datum())
    await trainer.step()
    await trainer.result("save_state", {"name": "one", "ttl_seconds": None})
    assert await trainer.result("forward", {"data": [make_datum()]}) != fresh
    # A second client of the run counts from 1 again.
    assert await trainer.init(4, seq_id=1) == {"step": 0, "lora_rank": 4}
    told = await trainer.result("forward", {"data": [make_datum()]}, seq_id=2)
    assert told == fresh
    assert (await trainer.init(2, seq_id=1))["lora_rank"] == 2
    saved = await trainer.result("save_state", {"name": "two", "ttl_seconds": 60}, seq_id=2)
    assert saved["path"] == f"bt://loops:{trainer.run_id}/weights/two"
    listed = await loops.told("loops/checkpoints", run_id=trainer.run_id)
    assert [(c["checkpoint_id"], c["lora_adapter_config"]["r"]) for c in listed["checkpoints"]] == [
        ("two", 2),
        ("one", 4),
    ]
    # There is one run all the same, and one model.
    assert len((await loops.told("loops/runs"))["runs"]) == 1
    alive = [m for m in loops.gateway._book.live if not m.closing]
    assert len(alive) == 1


async def test_a_repeated_init_resets_once(loops: Any, make_datum: Any) -> None:
    trainer = await loops.trainer()
    await trainer.backward(make_datum())
    body = {"lora_rank": 4, "base_model": "micro"}
    begun = await asyncio.gather(
        *(trainer.begin("init_trainer_server", body, seq_id=1, key="k") for _ in range(4))
    )
    assert len(set(begun)) == 1
    assert (await trainer.poll(begun[0]))["result"] == {"step": 0, "lora_rank": 4}
    # One model before, one after.
    assert len(list(loops.gateway._book.newest_first())) == 2


async def test_the_version_is_the_number_of_steps_at_the_save(
    dedicated: Any, make_datum: Any
) -> None:
    trainer = await dedicated.trainer()
    assert (await trainer.publish("a"))["version"] == 0
    await trainer.backward(make_datum())
    # All submitted at once: each save tells what came before it.
    steps = [await trainer.begin("optim_step", {"adam_params": {}})]
    saves = [await trainer.begin("save_weights_for_sampler", {"name": "b"})]
    steps.append(await trainer.begin("optim_step", {"adam_params": {}}))
    saves.append(await trainer.begin("save_weights_for_sampler", {"name": "c"}))
    versions = [(await trainer.poll(save))["result"]["version"] for save in saves]
    assert versions == [1, 2]
    assert (await trainer.get("policy_version")).json() == {"policy_version": 2}
    path = {"path": f"bt://loops:{trainer.run_id}/weights/s"}
    await trainer.result("save_state", {"name": "s"})
    await trainer.step()
    assert await trainer.result("load_state_with_optimizer", path) == {"step": 2}
    assert await trainer.result("load_state", path) == {"step": 0}


async def test_unknown_operations_and_runs(loops: Any) -> None:
    trainer = await loops.trainer()
    other = await loops.trainer()
    operation = await trainer.begin("optim_step", {"adam_params": {}})
    for run, name in ((trainer, "nothing"), (other, operation)):
        answer = await run.get(f"operations/{name.replace('/', '%2F')}")
        assert answer.status_code == 404
    gone = await loops.ok(f"loops/runs/{trainer.run_id}/deactivate")
    assert gone["id"] == trainer.run_id
    # 404 would mean "still starting".
    assert (await trainer.post("optim_step", {"adam_params": {}})).status_code == 410
    health = await trainer.get("health")
    assert (health.status_code, health.headers["x-baseten-error-source"]) == (410, "06")
    assert (await trainer.get("health", **{"x-run-id": "x"})).status_code == 410
    assert (await loops.told(f"loops/runs/{trainer.run_id}"))["run"]["status"] == {
        "name": "INACTIVE"
    }
    # What was done is still told.
    assert (await trainer.poll(operation))["status"] == "done"


async def test_a_full_queue_is_a_failure_that_is_repeated(open_loops: Any, make_datum: Any) -> None:
    async with open_loops(core={"max_queued_operations": 2}) as loops:
        trainer = await loops.trainer()
        for seq_id in (3, 4, 5):
            answer = await trainer.post("optim_step", {"adam_params": {}}, seq_id=seq_id)
        assert answer.status_code == 502
        assert int(answer.headers["retry-after"]) >= 1
        assert answer.json()["details"]["reason"] == "QUEUE_FULL"
        await trainer.result("optim_step", {"adam_params": {}}, seq_id=2)


async def test_the_session_lives_by_health_probes(open_loops: Any, clock: Any) -> None:
    async with open_loops(clock=clock, core={"session_expires_after": 100.0}) as loops:
        trainer = await loops.trainer()
        for _ in range(4):
            clock.seconds += 60
            assert (await trainer.get("health?base_model=micro")).status_code == 200
            await loops.gateway.reap()
        clock.seconds += 101
        await loops.gateway.reap()
        answer = await trainer.post("optim_step", {"adam_params": {}})
        assert (answer.status_code, answer.json()["details"]["reason"]) == (410, "MODEL_NOT_READY")
        run = (await loops.told(f"loops/runs/{trainer.run_id}"))["run"]
        assert run["status"] == {"name": "INACTIVE"}
