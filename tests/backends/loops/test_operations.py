"""Operations of trainers and their results, against a service that answers by script (wire
sections 3 and 5): what is asked again, what is refused, and what leaves the model in doubt."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import pytest
from local_backend import MODEL, batch, ignore, run, sample, step
from loops_script import (
    DEACTIVATED,
    LOAD,
    MARKED,
    SAVED,
    LoopsScript,
    loops_script,
    told,
    unsourced,
)
from scripted_service import Reply
from tinker_upstream import make

from tinkergate.backends.base import LoadedState
from tinkergate.backends.loops import trainer as trainer_module
from tinkergate.backends.loops import training_operations
from tinkergate.backends.loops.backend import LoopsBackend
from tinkergate.dialects.loops.write_requests import parts_of
from tinkergate.errors import ErrorReason, GatewayError, Kind
from tinkergate.tensors import tensor_from_array
from tinkergate.v1 import ForwardRequest, SaveWeightsForSamplerRequest

pytestmark = pytest.mark.usefixtures("impatience")


@pytest.mark.parametrize(
    "reply",
    [
        told(408),
        told(500),
        told(502),
        told(504),
        told(429, headers={"retry-after": "0.01"}),
        told(503, headers={"retry-after": "0.01"}),
        Reply({"operation_id": ""}, 202),
        Reply({"operation_id": "x", "schema_version": 2}, 202),
        Reply({"operation_id": "x"}, 200),
        Reply(b"<html>", 202),
    ],
    ids=lambda reply: f"{reply.status}",
)
async def test_an_operation_is_posted_again_under_its_key(reply: Reply) -> None:
    async with loops_script() as (script, service, backend):
        await make(backend)
        script.instead("/optim_step", reply, reply)
        await run(backend, step())
        first, *others = service.of("/run1/optim_step")
        assert len(others) == 2
        assert all(other.body == first.body for other in others)
        assert {each.headers["idempotency-key"] for each in (first, *others)} == {
            first.headers["idempotency-key"]
        }
        assert script.done["optim_step"] == 1


@pytest.mark.parametrize(
    ("reply", "kind"),
    [
        (told(400), Kind.INVALID),
        (told(401), Kind.INTERNAL),
        (told(403), Kind.DENIED),
        (told(404), Kind.NOT_FOUND),
        (told(410), Kind.NOT_FOUND),
        (told(413), Kind.INVALID),
        (told(422), Kind.INVALID),
        (told(400, headers=MARKED), Kind.INVALID),
        (told(408, headers=MARKED), Kind.UNAVAILABLE),
    ],
    ids=lambda each: str(getattr(each, "status", "")),
)
async def test_a_refusal_fails_the_operation_and_the_model_lives_on(
    reply: Reply, kind: Kind
) -> None:
    async with loops_script() as (script, service, backend):
        await make(backend)
        script.instead("/optim_step", reply)
        with pytest.raises(GatewayError, match=r"optim_step of model .* so it is") as raised:
            await run(backend, step())
        assert raised.value.kind is kind
        assert raised.value.metadata["upstream_status"] == str(reply.status)
        await run(backend, step())
        # A number is used once, as the official client does.
        numbers = [asked.json["seq_id"] for asked in service.of("/run1/optim_step")]
        assert numbers == [2, 3]
        assert script.done["optim_step"] == 1


async def test_a_trainer_that_shuts_down_takes_nothing_more() -> None:
    async with loops_script() as (script, service, backend):
        await make(backend)
        await run(backend, SAVED)
        script.instead("/forward_backward", told(503))
        with pytest.raises(GatewayError, match="answered 503") as raised:
            await run(backend, batch())
        # It may have been done before the answer was given.
        assert raised.value.kind is Kind.OUTCOME_UNKNOWN
        with pytest.raises(GatewayError, match="LoadState") as raised:
            await run(backend, batch())
        assert raised.value.kind is Kind.PRECONDITION
        assert len(service.of("/run1/forward_backward")) == 1
        await run(backend, LOAD)
        await run(backend, batch())
        assert len(service.of("/run2/forward_backward")) == 1


@pytest.mark.parametrize("status", [400, 404])
async def test_a_trainer_may_still_be_starting_until_it_has_accepted_something(
    status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with loops_script() as (script, service, backend):
        script.instead("/init_trainer_server", *[told(status)] * 3)
        await make(backend)
        assert len(service.of("/run1/init_trainer_server")) == 4
        monkeypatch.setattr(trainer_module, "STARTING_TIME", 0.2)
        script.always("/init_trainer_server", told(status))
        with pytest.raises(GatewayError, match=f"answered {status}"):
            await make(backend, "s-1:train:7")


@pytest.mark.parametrize(
    "reply",
    [
        Reply({"detail": "no"}, 400, MARKED),
        Reply({"detail": "no"}, 404, DEACTIVATED),
        Reply({"type": "BadRequestError", "message": "no"}, 400),
        Reply({"error": {"type": "BadRequestError", "message": "no"}}, 400),
    ],
)
async def test_what_is_marked_is_no_matter_of_starting(reply: Reply) -> None:
    async with loops_script() as (script, service, backend):
        script.always("/init_trainer_server", reply)
        with pytest.raises(GatewayError, match=f"answered {reply.status}.*: no"):
            await make(backend)
        assert len(service.of("/run1/init_trainer_server")) == 1
    assert len([a for a in service.asked if a.route.endswith("/run1/deactivate")]) == 1


@pytest.mark.parametrize(
    "reply",
    [
        told(408),
        Reply({"status": "pending"}),
        Reply({"anything": "else"}),
        told(429, headers={"retry-after": "0.01"}),
        told(500),
        told(502),
        told(504),
        told(503, headers={"retry-after": "0.01"}),
        Reply(b"<html>"),
    ],
)
async def test_a_result_is_asked_for_until_it_is_there(reply: Reply) -> None:
    async with loops_script() as (script, _, backend):
        await make(backend)

        def once(asked: Any) -> Reply | None:
            return reply if "/operations/" in asked.route else None

        script.instead("", *[once] * 3)
        await run(backend, step())
        assert script.done["optim_step"] == 1


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410, 422, 503])
async def test_a_result_that_is_not_to_be_had_is_an_unknown_outcome(status: int) -> None:
    async with loops_script() as (script, _, backend):
        await make(backend)
        submission = await backend.submit(step(), ignore)
        script.instead("", told(status))
        with pytest.raises(GatewayError, match="may or may not have been done") as raised:
            await submission.result
        assert raised.value.kind is Kind.OUTCOME_UNKNOWN
        with pytest.raises(GatewayError, match="LoadState"):
            await run(backend, step())
        assert script.done["optim_step"] == 1


async def test_a_forward_whose_result_is_gone_harms_nothing() -> None:
    async with loops_script() as (script, _, backend):
        await make(backend)
        request = ForwardRequest(model_id=MODEL, data=batch().data, loss_fn="cross_entropy")
        submission = await backend.submit(request, ignore)
        script.instead("", told(404))
        with pytest.raises(GatewayError) as raised:
            await submission.result
        assert raised.value.kind is Kind.NOT_FOUND
        await run(backend, step())


async def test_a_save_whose_result_is_gone_leaves_the_model_as_it_was() -> None:
    async with loops_script() as (script, _, backend):
        await make(backend)
        submission = await backend.submit(SAVED, ignore)
        script.instead("", told(404))
        with pytest.raises(GatewayError, match="the checkpoint may be there") as raised:
            await submission.result
        assert raised.value.kind is Kind.OUTCOME_UNKNOWN
        await run(backend, step())


async def _failing(script: LoopsScript, backend: LoopsBackend, error: dict[str, Any]) -> Any:
    submission = await backend.submit(batch(), ignore)
    script.instead("", Reply({"status": "error", **error}))
    with pytest.raises(GatewayError) as raised:
        await submission.result
    return raised.value


@pytest.mark.parametrize("status", [404, 410, 503])
async def test_a_load_into_a_trainer_that_is_gone_is_made_good_on_a_fresh_one(status: int) -> None:
    async with loops_script() as (script, service, backend):
        await make(backend)
        await run(backend, SAVED)
        script.instead("/run1/load_state_with_optimizer", told(status))
        assert await run(backend, LOAD) == LoadedState(7)
        await run(backend, step())
        assert len(service.of("/run2/optim_step")) == 1
        assert [a.route for a in service.asked if "deactivate" in a.route] == [
            "/v1/loops/runs/run1/deactivate"
        ]


async def test_a_load_that_is_refused_stays_refused() -> None:
    async with loops_script() as (script, service, backend):
        await make(backend)
        await run(backend, SAVED)
        script.instead("/run1/load_state_with_optimizer", told(422))
        with pytest.raises(GatewayError, match="answered 422"):
            await run(backend, LOAD)
        assert len(script.runs) == 1
        assert not [a for a in service.asked if "deactivate" in a.route]


async def test_figures_of_a_step_that_are_no_numbers_are_left_out() -> None:
    async with loops_script() as (script, _, backend):
        await make(backend)
        submission = await backend.submit(step(), ignore)
        metrics = {"grad_norm": 0.5, "note": "x", "nothing": None, "steps": 3, "flag": True}
        script.results[script.keys["optim_step"]] = {"metrics": metrics}
        result = await submission.result
        assert dict(result.metrics) == {"grad_norm": 0.5, "steps": 3.0}  # type: ignore[union-attr]


async def test_late_news_of_an_old_trainer_says_nothing_of_the_fresh_one() -> None:
    async with loops_script() as (script, service, backend):
        await make(backend)
        await run(backend, SAVED)
        script.pending.add("run1")
        saving = SaveWeightsForSamplerRequest(model_id=MODEL, sampler_seq_id=0)
        saved = await backend.submit(saving, ignore)
        lost = await backend.submit(step(), ignore)
        del script.results[script.keys["optim_step"]]
        script.instead("/forward_backward", told(503))
        with pytest.raises(GatewayError, match="answered 503"):
            await backend.submit(batch(), ignore)
        await run(backend, LOAD)
        assert not [a for a in service.asked if "deactivate" in a.route]
        script.pending.clear()
        await saved.result
        with pytest.raises(GatewayError, match="has forgotten it"):
            await lost.result
        await run(backend, step())
        await sample(backend, sampler_id="s-1:sample:0", **unsourced())
        await backend.close_sampler("s-1:sample:0")
    stopped = sorted(a.route for a in service.asked if "deactivate" in a.route)
    assert stopped == ["/v1/loops/runs/run1/deactivate", "/v1/loops/runs/run2/deactivate"]


async def test_an_operation_that_fails_for_what_it_was_sent_is_the_callers_fault() -> None:
    async with loops_script() as (script, _, backend):
        await make(backend)
        error = await _failing(script, backend, {"error": "bad", "error_class": "ValueError"})
        assert error.kind is Kind.INVALID
        assert error.reason == ErrorReason.ERROR_REASON_BACKEND_REFUSED
        assert error.metadata["error_class"] == "ValueError"
        assert error.metadata["upstream_request_id"] in error.message
        assert "failed: ValueError: bad" in error.message
        await run(backend, step())


async def test_an_operation_that_fails_half_way_leaves_the_model_in_doubt() -> None:
    async with loops_script() as (script, _, backend):
        await make(backend)
        error = await _failing(script, backend, {"error": "oom", "error_class": "OutOfMemory"})
        assert error.kind is Kind.OUTCOME_UNKNOWN
        assert error.reason == ErrorReason.ERROR_REASON_BACKEND_FAILED
        with pytest.raises(GatewayError, match=r"LoadState.*oom"):
            await run(backend, step())
        assert not script.done["optim_step"]


async def test_a_loss_that_is_computed_here_adds_nothing_to_a_model_that_came_into_doubt() -> None:
    async with loops_script() as (script, service, backend):
        await make(backend)
        script.pending.add("run1")
        before = await backend.submit(batch(), ignore)
        del script.results[script.keys["forward_backward"]]
        asked = batch()
        asked.loss_fn = "importance_sampling"
        for each in asked.data:
            length = len(each.loss_fn_inputs["target_tokens"].dense) // 8
            for name in ("logprobs", "advantages"):
                each.loss_fn_inputs[name].CopyFrom(tensor_from_array(np.ones(length, np.float32)))
        after = asyncio.get_running_loop().create_task(backend.submit(asked, ignore))
        while not service.of("/run1/forward"):  # noqa: ASYNC110 - the service has no event for it
            await asyncio.sleep(0.005)
        forward = script.results.pop(script.keys["forward"])
        polled = f"/operations/{script.keys['forward']}"
        script.instead(polled, *[told(408)] * 1000)
        script.pending.clear()
        with pytest.raises(GatewayError, match="has forgotten it"):
            await before.result
        script.results[script.keys["forward"]] = forward
        script.as_usual()
        with pytest.raises(GatewayError, match="LoadState"):
            await after
        assert script.done["forward_backward"] == 1


@pytest.mark.parametrize("when", ["posted", "done"])
async def test_a_batch_of_which_a_part_failed_leaves_the_model_in_doubt(
    when: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = 4096 + 600
    monkeypatch.setattr(training_operations, "parts_of", lambda data: parts_of(data, small))
    async with loops_script() as (script, service, backend):
        await make(backend)
        if when == "posted":
            script.instead("/forward_backward", lambda _: None, told(422))
        else:
            failed = Reply({"status": "error", "error": "bad", "error_class": "ValueError"})
            wrong = {"done": False}

            def second(asked: Any) -> Reply | None:
                if "/operations/" not in asked.route or wrong["done"]:
                    return None
                wrong["done"] = True
                return failed

            script.instead("", *[second] * 20)
        with pytest.raises(GatewayError, match=r"of its \d+ parts one failed") as raised:
            await run(backend, batch(count=6))
        assert raised.value.kind is Kind.OUTCOME_UNKNOWN
        with pytest.raises(GatewayError, match="LoadState"):
            await run(backend, step())
        assert len(service.of("/run1/forward_backward")) >= 2


@pytest.mark.parametrize("metrics", [{}, {"skip_token_normalization": 0.5}, None])
async def test_sums_that_are_not_acknowledged_are_no_sums(metrics: Any) -> None:
    async with loops_script() as (script, _, backend):
        await make(backend)
        submission = await backend.submit(batch(), ignore)
        key, result = next(reversed(script.results.items()))
        script.results[key] = {**result, "metrics": metrics}
        with pytest.raises(GatewayError, match="did not acknowledge") as raised:
            await submission.result
        assert raised.value.kind is Kind.UNSUPPORTED
        with pytest.raises(GatewayError, match="LoadState"):
            await run(backend, step())


async def test_a_result_that_makes_no_sense_is_an_unknown_outcome() -> None:
    async with loops_script() as (script, _, backend):
        await make(backend)
        submission = await backend.submit(batch(), ignore)
        script.results[next(reversed(script.results))] = {"loss_fn_outputs": []}
        with pytest.raises(GatewayError, match="has 0 datums; 3 were sent") as raised:
            await submission.result
        assert raised.value.kind is Kind.OUTCOME_UNKNOWN


async def test_positions_that_were_not_scored_are_zero() -> None:
    async with loops_script() as (script, _, backend):
        await make(backend)
        submission = await backend.submit(batch(), ignore)
        result = script.results[next(reversed(script.results))]
        result["loss_fn_outputs"][0]["logprobs"]["data"][0] = None
        output = await submission.result
        [record] = output.loss_fn_outputs  # type: ignore[union-attr]
        assert record.fields["logprobs"].data[:4] == b"\0\0\0\0"
