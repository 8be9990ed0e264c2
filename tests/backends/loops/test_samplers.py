"""Samplers and sample calls, against a service that answers by script (wire sections 3 and 8)."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from local_backend import MODEL, ignore, run, sample, step, tokens_of
from loops_script import (
    ASKED,
    BASE,
    DEACTIVATED,
    MARKED,
    loops_script,
    told,
    unsourced,
)
from scripted_service import Reply
from tinker_upstream import make

from tinkergate.backends.base import SampleEvents
from tinkergate.backends.loops import readiness, samplers, sampling
from tinkergate.backends.loops import service as service_module
from tinkergate.errors import ErrorReason, GatewayError, Kind
from tinkergate.v1 import (
    SampleRequest,
    SamplingParams,
    SaveWeightsForSamplerRequest,
)

pytestmark = pytest.mark.usefixtures("impatience")


@pytest.mark.parametrize("status", [408, 500, 502, 504])
async def test_a_queued_call_is_posted_again(status: int) -> None:
    async with loops_script() as (script, service, backend):
        script.instead("/sample", told(status), told(status))
        assert tokens_of(await sample(backend, **ASKED)) == [[7, 8]]
        sent = service.of("/sampler/sampler1/sample")
        assert len({asked.headers["idempotency-key"] for asked in sent}) == 1
        assert len(sent) == 3


async def test_a_full_queue_is_waited_for_as_long_as_it_says() -> None:
    async with loops_script(retry_time=0.05) as (script, _, backend):
        script.instead("/sample", *[told(503, headers={"retry-after": "0.02"})] * 10)
        heard: list[str] = []
        events = SampleEvents(ignore, ignore, lambda _, words: heard.append(words))
        answer = await backend.sample(SampleRequest(**ASKED), events)
        assert tokens_of(answer) == [[7, 8]]
        assert any("503" in words for words in heard)


@pytest.mark.parametrize(
    ("reply", "kind"),
    [
        (told(400), Kind.INVALID),
        (told(422), Kind.INVALID),
        (told(503), Kind.UNAVAILABLE),
        (told(400, headers=MARKED), Kind.INVALID),
    ],
)
async def test_the_queue_refuses(reply: Reply, kind: Kind) -> None:
    async with loops_script() as (script, service, backend):
        script.instead("/sample", reply)
        with pytest.raises(GatewayError, match=f"answered {reply.status}") as raised:
            await sample(backend, **ASKED)
        assert raised.value.kind is kind
        assert len(service.of("/sampler/sampler1/sample")) == 1


async def test_a_queued_call_whose_result_is_lost_every_time_is_given_up() -> None:
    async with loops_script() as (script, service, backend):
        await make(backend)
        await run(backend, SaveWeightsForSamplerRequest(model_id=MODEL, sampler_seq_id=0))

        def lost(asked: Any) -> Reply | None:
            return told(404) if "/operations/" in asked.route else None

        script.instead("", *[lost] * 20)
        with pytest.raises(GatewayError, match="answered 404"):
            await sample(backend, sampler_id="s-1:sample:0", **unsourced())
        assert len(service.of("/sampler/of-run1/sample")) == sampling.LOST_TRIES


@pytest.mark.parametrize("dedicated", [False, True])
async def test_a_sampler_that_is_gone_is_made_again(dedicated: bool) -> None:
    async with loops_script(dedicated=dedicated) as (script, service, backend):
        await sample(backend, **ASKED)
        script.instead("/sample", told(404))
        assert tokens_of(await sample(backend, **ASKED)) == [[7, 8]]
        assert len(service.of("/v1/loops/samplers")) == 2
        # Once: what is refused again is no matter of that.
        script.instead("/sample", told(410), told(410))
        with pytest.raises(GatewayError, match="answered 410"):
            await sample(backend, **ASKED)
        assert len(service.of("/v1/loops/samplers")) == 3


async def test_a_sampler_that_is_gone_is_made_again_once_for_all_calls() -> None:
    async with loops_script(dedicated=True) as (script, service, backend):
        await sample(backend, **ASKED)
        script.instead("/sampler1/sync/sample", *[told(404)] * 4)
        answers = await asyncio.gather(*(sample(backend, **ASKED) for _ in range(4)))
        assert [tokens_of(answer) for answer in answers] == [[[7, 8]]] * 4
        assert len(service.of("/v1/loops/samplers")) == 2


async def test_what_is_known_of_samplers_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(samplers, "ECHOES_KEPT", 2)
    async with loops_script(samplers_kept=1) as (_, _, backend):
        await make(backend)
        for number in range(4):
            name = f"w{number}"
            await run(backend, SaveWeightsForSamplerRequest(model_id=MODEL, name=name))
            path = f"tinker://{MODEL}/sampler_weights/{name}"
            await sample(backend, model_path=path, **unsourced())
        assert len(backend._samplers._echoes) == 2
        assert len(backend._samplers._locks) == 1
        await backend.delete_checkpoint(path)
        assert not backend._samplers._locks


async def test_the_sampler_of_a_run_is_not_made_again() -> None:
    async with loops_script() as (script, service, backend):
        await make(backend)
        await run(backend, SaveWeightsForSamplerRequest(model_id=MODEL, sampler_seq_id=0))
        script.instead("/sample", told(404))
        with pytest.raises(GatewayError, match="answered 404"):
            await sample(backend, sampler_id="s-1:sample:0", **unsourced())
        assert len(service.of("/v1/loops/samplers")) == 1


async def test_a_dedicated_sampler_is_looked_after_again_after_a_while(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with loops_script(dedicated=True) as (script, service, backend):
        await sample(backend, **ASKED)
        monkeypatch.setattr(readiness, "AWAKE_TIME", 0.0)
        script.instead("/deployments/dep-sampler1", Reply({"status": "SCALED_TO_ZERO"}))
        await sample(backend, **ASKED)
        assert len(service.of("/sampler/sampler1/wake")) == 1


async def test_a_queued_call_that_nobody_waits_for_is_cancelled() -> None:
    async with loops_script() as (script, service, backend):
        polled = asyncio.Event()

        def pending(asked: Any) -> Reply | None:
            if "/operations/" not in asked.route or "cancel" in asked.route:
                return None
            polled.set()
            return told(408)

        script.instead("", *[pending] * 1000)
        call = asyncio.get_running_loop().create_task(sample(backend, **ASKED))
        await asyncio.wait_for(polled.wait(), 30)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
    [cancelled] = [asked for asked in service.asked if asked.route.endswith("/cancel")]
    assert cancelled.method == "POST"
    assert cancelled.headers["x-sampler-id"] == "sampler1"
    assert "idempotency-key" not in cancelled.headers


async def test_a_queued_call_that_is_given_up_is_cancelled() -> None:
    async with loops_script(retry_time=0.05) as (script, service, backend):

        def away(asked: Any) -> Reply | None:
            polled = "/operations/" in asked.route and "cancel" not in asked.route
            return told(502) if polled else None

        script.instead("", *[away] * 1000)
        with pytest.raises(GatewayError, match="answered 502"):
            await sample(backend, **ASKED)
    [cancelled] = [asked for asked in service.asked if asked.route.endswith("/cancel")]
    assert cancelled.method == "POST"


@pytest.mark.parametrize("dedicated", [False, True])
async def test_a_large_answer_is_read(dedicated: bool) -> None:
    drawn = list(range(100, 30_100))
    completion = {
        "choices": [
            {
                "index": n,
                "token_ids": drawn,
                "logprobs": {"tokens": drawn, "token_logprobs": [-0.5] * len(drawn)},
                "finish_reason": "length",
            }
            for n in range(4)
        ]
    }
    assert len(json.dumps(completion)) > service_module.THREAD_BYTES
    asked = {**ASKED, "num_samples": 4, "sampling_params": SamplingParams(max_tokens=30_000)}
    async with loops_script(dedicated=dedicated) as (script, _, backend):
        if dedicated:
            script.instead("/sample", Reply(completion))
        else:

            def polled(asked: Any) -> Reply | None:
                done = {"status": "done", "result": completion}
                return Reply(done) if "/operations/" in asked.route else None

            script.instead("", *[polled] * 20)
        answer = await sample(backend, **asked)
        assert tokens_of(answer) == [drawn] * 4


async def test_the_identity_of_calls_is_one_of_three() -> None:
    async with loops_script() as (_, service, backend):
        await make(backend)
        await run(backend, step())
        await run(backend, SaveWeightsForSamplerRequest(model_id=MODEL, sampler_seq_id=0))
        await run(backend, SaveWeightsForSamplerRequest(model_id=MODEL, name="w"))
        await sample(backend, **ASKED)
        rest = unsourced()
        await sample(backend, model_path=f"tinker://{MODEL}/sampler_weights/w", **rest)
        await sample(backend, sampler_id="s-1:sample:0", **rest)
        names = ("x-run-id", "x-sampler-id", "x-checkpoint-path", "x-min-policy-version")
        sent = [
            {name: asked.headers[name] for name in names if name in asked.headers}
            for asked in service.asked
            if asked.route.endswith("/sample")
        ]
        assert sent[0] == {"x-sampler-id": "sampler1"}
        path = "bt://loops:run1/sampler_weights/w"
        assert sent[1] == {"x-checkpoint-path": path}
        assert sent[2].keys() == {"x-run-id", "x-checkpoint-path"}
        unnamed = sent[2]["x-checkpoint-path"]
        assert unnamed.startswith("bt://loops:run1/sampler_weights/sampler-")
        bodies = [asked.json for asked in service.asked if asked.route.endswith("/sample")]
        assert [body["model"] for body in bodies] == [BASE] * 3
        assert [body.get("lora") for body in bodies] == [None, path, unnamed]


async def test_a_dedicated_call_waits_for_its_weights_and_tells_so() -> None:
    async with loops_script(dedicated=True) as (script, service, backend):
        await make(backend)
        await run(backend, step())
        await run(backend, SaveWeightsForSamplerRequest(model_id=MODEL, sampler_seq_id=0))
        script.instead("/sample", *[told(408)] * 3)
        heard: list[str] = []
        events = SampleEvents(ignore, ignore, lambda _, words: heard.append(words))
        rest = unsourced()
        await backend.sample(SampleRequest(sampler_id="s-1:sample:0", **rest), events)
        sent = service.of("/sampler/of-run1/sync/sample")
        assert len(sent) == 4
        assert sent[0].headers["x-min-policy-version"] == "1"
        assert sent[0].headers["x-run-id"] == "run1"
        assert not sent[0].json.keys() & {"model", "lora"}
        assert heard == ["sample of of-run1 was answered 408"]


async def test_a_dedicated_sampler_that_serves_newer_weights_is_refused() -> None:
    async with loops_script(dedicated=True) as (script, _, backend):
        await make(backend)
        await run(backend, step())
        await run(backend, SaveWeightsForSamplerRequest(model_id=MODEL, sampler_seq_id=0))
        rest = unsourced()

        def newer(asked: Any) -> Reply:
            completion = script.completion(asked.json)
            return Reply(completion, headers={"x-trainers-policy-version": "2"})

        script.instead("/sample", newer)
        with pytest.raises(GatewayError, match="serves version 2") as raised:
            await sample(backend, sampler_id="s-1:sample:0", **rest)
        assert raised.value.reason == ErrorReason.ERROR_REASON_CHECKPOINT_MISMATCH


@pytest.mark.parametrize("status", [400, 404, 502, 503])
async def test_a_dedicated_sampler_may_still_be_starting(status: int) -> None:
    async with loops_script(dedicated=True) as (script, _, backend):
        script.instead("/sample", *[told(status)] * 3)
        assert tokens_of(await sample(backend, **ASKED)) == [[7, 8]]


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        (told(400), "answered 400"),
        (told(500), "answered 500"),
        (told(504), "answered 504"),
        (Reply({"error": {"type": "BadRequestError", "message": "too long"}}, 400), "too long"),
        (told(400, headers=DEACTIVATED), "answered 400 631"),
    ],
)
async def test_a_dedicated_sampler_refuses(reply: Reply, words: str) -> None:
    async with loops_script(dedicated=True) as (script, service, backend):
        await sample(backend, **ASKED)
        script.instead("/sample", reply)
        with pytest.raises(GatewayError, match=words):
            await sample(backend, **ASKED)
        assert len(service.of("/sampler/sampler1/sync/sample")) == 2


async def test_a_dedicated_sampler_is_woken_and_waited_for() -> None:
    async with loops_script(dedicated=True) as (script, service, backend):
        script.instead(
            "/deployments/dep-sampler1",
            *(Reply({"status": state}) for state in ("SCALED_TO_ZERO", "WAKING_UP")),
            told(500),
        )
        heard: list[str] = []
        events = SampleEvents(ignore, ignore, lambda _, words: heard.append(words))
        await backend.sample(SampleRequest(**ASKED), events)
        assert len(service.of("/sampler/sampler1/wake")) == 1
        assert heard == [
            "sampler sampler1 is SCALED_TO_ZERO",
            "sampler sampler1 is WAKING_UP",
            "",
        ]
        # It is looked after once.
        before = len(service.asked)
        await sample(backend, **ASKED)
        assert len(service.asked) == before + 1


@pytest.mark.parametrize("state", ["DEPLOY_FAILED", "INACTIVE", "UNHEALTHY"])
async def test_a_dedicated_sampler_that_does_not_come_up_is_given_up(state: str) -> None:
    async with loops_script(dedicated=True) as (script, service, backend):
        script.instead("/deployments/dep-sampler1", Reply({"status": state}))
        with pytest.raises(GatewayError, match=f"is {state}"):
            await sample(backend, **ASKED)
        assert not service.of("/sampler/sampler1/sync/sample")


async def test_a_sampler_that_may_not_be_looked_after_is_taken_to_be_ready() -> None:
    async with loops_script(dedicated=True) as (script, _, backend):
        script.instead("/deployments/dep-sampler1", told(403))
        assert tokens_of(await sample(backend, **ASKED)) == [[7, 8]]


async def test_samplers_of_their_own_are_stopped_after_use() -> None:
    async with loops_script(dedicated=True, samplers_kept=1) as (_, service, backend):
        await make(backend)
        await run(backend, SaveWeightsForSamplerRequest(model_id=MODEL, name="w"))
        await sample(backend, **ASKED)
        rest = unsourced()
        await sample(backend, model_path=f"tinker://{MODEL}/sampler_weights/w", **rest)
    assert [a.route for a in service.asked if "deactivate" in a.route] == [
        "/v1/loops/samplers/sampler1/deactivate",
        "/v1/loops/samplers/sampler2/deactivate",
        "/v1/loops/runs/run1/deactivate",
    ]


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"topk_sample_logprobs": 2}, "topk_sample_logprobs"),
        ({"prompt_alt_tokens_k": 2}, "prompt_alt_tokens_k"),
        ({"prompt_logprobs": True, "prompt_logprobs_last_n": 1}, "prompt_logprobs_last_n"),
        ({"record_stability_info": True}, "record_stability_info"),
        ({"sampling_params": SamplingParams(max_tokens=1, stop_tokens={})}, "an empty list"),
        ({"sampling_params": SamplingParams(max_tokens=1, stop_strs={})}, "an empty list"),
    ],
)
async def test_what_loops_does_not_have_is_refused_unasked(
    fields: dict[str, Any], words: str
) -> None:
    async with loops_script() as (_, service, backend):
        with pytest.raises(GatewayError, match=f"does not support {words}") as raised:
            await sample(backend, **{**ASKED, **fields})
        assert raised.value.kind is Kind.UNSUPPORTED
        assert not service.of("/v1/loops/samplers")


async def test_without_a_word_tokens_are_drawn_to_the_end_of_the_context() -> None:
    async with loops_script() as (_, service, backend):
        await sample(backend, **{**ASKED, "sampling_params": SamplingParams()})
        [sent] = service.of("/sampler/sampler1/sample")
        assert sent.json["max_tokens"] == 512 - 3
    async with loops_script(models=("other",)) as (_, service, backend):
        asked = {**ASKED, "base_model": "other", "sampling_params": SamplingParams()}
        with pytest.raises(GatewayError, match="max_tokens: is not given"):
            await sample(backend, **asked)
