"""The control plane and the start of trainers, against a service that answers by script (wire
sections 3 and 4)."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest
from local_backend import MODEL, run, sample, step
from loops_script import (
    ASKED,
    BASE,
    MARKED,
    loops_script,
    told,
)
from scripted_service import Reply
from tinker_upstream import make

from tinkergate.backends.base import ModelSpec
from tinkergate.backends.loops import readiness
from tinkergate.backends.loops.backend import LoopsBackend
from tinkergate.backends.loops.settings import LoopsSettings
from tinkergate.errors import GatewayError, Kind
from tinkergate.v1 import (
    LoraConfig,
    OptimizerConfig,
    QueueState,
    SaveWeightsForSamplerRequest,
)

pytestmark = pytest.mark.usefixtures("impatience")


@pytest.mark.parametrize("reply", [told(408), told(500), told(502), told(503), told(504)])
async def test_the_control_plane_is_asked_again(reply: Reply) -> None:
    async with loops_script() as (script, service, backend):
        script.instead("/sessions", reply, reply)
        await make(backend)
        assert len(service.of("/v1/loops/sessions")) == 3
        assert len(service.of("/v1/loops/trainers")) == 1


@pytest.mark.parametrize("reply", [told(400), told(401), told(403), told(404), told(422)])
async def test_the_control_plane_refuses(reply: Reply) -> None:
    async with loops_script() as (script, service, backend):
        script.instead("/trainers", reply)
        with pytest.raises(GatewayError, match=f"answered {reply.status}"):
            await make(backend)
        assert len(service.of("/v1/loops/trainers")) == 1
        assert not [a for a in service.asked if "deactivate" in a.route]


@pytest.mark.parametrize("status", [404, 409, 410])
async def test_a_session_that_has_ended_gets_a_successor(status: int) -> None:
    async with loops_script() as (script, service, backend):
        await make(backend)
        for what in ("/trainers", "/samplers"):
            script.instead(what, told(status))
            if what == "/trainers":
                await make(backend, "s-1:train:1")
            else:
                await run(backend, SaveWeightsForSamplerRequest(model_id=MODEL, sampler_seq_id=0))
        assert len(service.of("/v1/loops/sessions")) == 3
        assert len(service.of("/v1/loops/trainers")) == 3
        assert len(service.of("/v1/loops/samplers")) == 2
        # A fresh session that is refused too is not to blame.
        script.instead("/trainers", told(status), told(status))
        with pytest.raises(GatewayError, match=f"answered {status}"):
            await make(backend, "s-1:train:2")
        assert len(service.of("/v1/loops/trainers")) == 5


async def test_a_trainer_that_was_made_though_the_answer_says_otherwise_is_taken() -> None:
    async with loops_script() as (script, service, backend):

        def made(asked: Any) -> Reply:
            script.make_run(asked.json)
            return told(504)

        script.instead("/trainers", made)
        await make(backend)
        assert len(service.of("/v1/loops/trainers")) == 1
        assert len(service.of("/v1/loops/runs")) == 1


async def test_a_trainer_that_may_have_been_made_and_cannot_be_looked_for_is_told() -> None:
    async with loops_script() as (script, service, backend):
        script.instead("/trainers", told(504))
        script.instead("/runs", told(404))
        with pytest.raises(GatewayError, match="may or may not have been done") as raised:
            await make(backend)
        assert raised.value.kind is Kind.OUTCOME_UNKNOWN
        assert len(service.of("/v1/loops/trainers")) == 1


async def test_the_making_of_a_model_tells_why_it_waits() -> None:
    async with loops_script(dedicated=True) as (script, _, backend):
        script.instead(
            "/deployments/dep1",
            *(
                Reply({"deployment": {"status": {"name": name}}})
                for name in ("CREATED", "DEPLOYING", "DEPLOYING")
            ),
        )
        script.instead("/health", told(503), told(403), told(404))
        heard: list[tuple[Any, str]] = []
        spec = ModelSpec(
            MODEL,
            BASE,
            LoraConfig(),
            OptimizerConfig(),
            on_state=lambda state, words: heard.append((state, words)),
        )
        await backend.create_model(spec)
        assert [words for _, words in heard] == [
            "a trainer is being asked for",
            "trainer run1 is CREATED",
            "trainer run1 is DEPLOYING",
            "trainer run1 is DEPLOYING",
            "",
        ]
        assert heard[-1][0] == QueueState.QUEUE_STATE_ACTIVE


@pytest.mark.parametrize("state", ["FAILED", "STOPPED", "PREEMPTED"])
async def test_a_trainer_that_does_not_come_up_is_given_up_and_stopped(state: str) -> None:
    async with loops_script(dedicated=True) as (script, service, backend):
        script.instead("/deployments/dep1", Reply({"deployment": {"status": {"name": state}}}))
        script.always("/health", told(503))
        with pytest.raises(GatewayError, match=f"is {state}") as raised:
            await make(backend)
        assert raised.value.kind is Kind.UNAVAILABLE
    assert [a.route for a in service.asked if "deactivate" in a.route] == [
        "/v1/loops/runs/run1/deactivate"
    ]


async def test_a_trainer_is_not_waited_for_longer_than_is_set() -> None:
    async with loops_script(ready_time=0.05) as (script, _, backend):
        script.always("/health", told(503))
        with pytest.raises(GatewayError, match=r"is starting after 0\.05 s"):
            await make(backend)


async def test_a_trainer_that_the_gateway_of_loops_refuses_is_not_waited_for() -> None:
    async with loops_script() as (script, service, backend):
        script.always("/health", told(404, headers=MARKED))
        with pytest.raises(GatewayError, match="answered 404 run_or_sampler_required"):
            await make(backend)
        assert len([a for a in service.asked if "/health" in a.route]) == 1


async def test_an_adapter_of_another_rank_is_no_adapter() -> None:
    async with loops_script() as (script, _, backend):

        def other(asked: Any) -> Reply:
            script.results["k"] = {"step": 0, "lora_rank": 64}
            return Reply({"operation_id": "k"}, 202)

        script.instead("/init_trainer_server", other)
        with pytest.raises(GatewayError, match="made rank 64 where 4 was said"):
            await make(backend)


async def test_a_run_that_another_model_is_on_is_not_taken() -> None:
    async with loops_script() as (script, _, backend):
        await make(backend)
        script.instead("/trainers", Reply({"run": script.runs[0]}))
        with pytest.raises(GatewayError, match=f"answered run run1, which trains {MODEL}"):
            await make(backend, "s-1:train:1")
        await run(backend, step())


async def test_only_one_model_at_a_time_asks_for_an_earlier_trainer() -> None:
    async with loops_script(reuse_from_run_id="run0") as (_, service, backend):
        await make(backend)
        await make(backend, "s-1:train:1")
        await backend.unload_model(MODEL)
        await make(backend, "s-1:train:2")
        asked = [a.json.get("reuse_from_run_id") for a in service.of("/v1/loops/trainers")]
        assert asked == ["run0", None, "run0"]


async def test_models_that_are_made_at_once_do_not_ask_for_one_trainer() -> None:
    async with loops_script(reuse_from_run_id="run0") as (script, service, backend):
        script.instead("/trainers", told(422))
        results = await asyncio.gather(
            *(make(backend, f"s-1:train:{number}") for number in range(3)),
            return_exceptions=True,
        )
        asked = [a.json.get("reuse_from_run_id") for a in service.of("/v1/loops/trainers")]
        assert sorted(map(str, asked)) == ["None", "None", "run0"]
        assert sum(isinstance(result, GatewayError) for result in results) == 1
        # Whichever it was that failed, the next one may ask if nobody has it.
        for number in range(3):
            await backend.unload_model(f"s-1:train:{number}")
        await make(backend, "s-1:train:9")
        assert service.of("/v1/loops/trainers")[-1].json["reuse_from_run_id"] == "run0"


async def test_a_trainer_without_an_address_is_stopped_and_told() -> None:
    async with loops_script() as (script, service, backend):
        run = {"id": "run9", "base_model": BASE, "base_url": None, "deployment_id": None}
        script.instead("/trainers", Reply({"run": run}))
        with pytest.raises(GatewayError, match="base_url: is not given"):
            await make(backend)
        assert len(service.of("/v1/loops/trainers")) == 1
    assert len(service.of("/v1/loops/runs/run9/deactivate")) == 1


async def test_settings_are_told_to_the_service() -> None:
    settings = {
        "team": "ours",
        "availability_model": "spot",
        "replicas": 2,
        "max_seq_len": 128,
        "sampler_replicas": 3,
    }
    async with loops_script(**settings) as (_, service, backend):
        facts = await make(backend)
        assert facts.max_context_length == 128
        await run(backend, SaveWeightsForSamplerRequest(model_id=MODEL, sampler_seq_id=0))
        await sample(backend, **ASKED)
        [trainer] = service.of("/v1/teams/team-1/loops/trainers")
        body = trainer.json
        assert body.pop("name").startswith(MODEL)
        assert body == {
            "session_id": "session-1",
            "base_model": BASE,
            "lora_rank": 4,
            "replicas": 2,
            "availability_model": "spot",
            "seed": 1,
            "max_seq_len": 128,
        }
        assert [a.json for a in service.of("/v1/teams/team-1/loops/samplers")] == [
            {"session_id": "session-1", "run_id": "run1", "num_replicas": 3},
            {
                "session_id": "session-1",
                "availability_model": "spot",
                "base_model": BASE,
                "max_seq_length": 128,
                "num_replicas": 3,
            },
        ]


async def test_a_team_that_is_not_there_is_told_at_the_start() -> None:
    async with loops_script() as (_, service, _):
        settings = LoopsSettings("far", base_url=service.url, api_key="k", team="theirs")
        backend = LoopsBackend(settings)
        with pytest.raises(GatewayError, match="team is 'theirs'; the account has: ours"):
            await backend.start()
        await backend.close()


@pytest.mark.parametrize(
    ("lora", "exact", "told_so"),
    [
        ({"train_mlp": False}, False, "train_mlp = false"),
        ({"train_attn": False}, False, "train_attn = false"),
        ({"alpha": 16.0}, False, "a LoRA alpha other than 32"),
        ({}, True, "train_unembed = true"),
    ],
)
async def test_adapters_that_are_not_to_be_had_are_refused_unasked(
    lora: dict[str, Any], exact: bool, told_so: str
) -> None:
    async with loops_script() as (_, service, backend):
        config = LoraConfig(**lora)
        spec = ModelSpec(MODEL, BASE, config, OptimizerConfig(), exact_adapter=exact)
        with pytest.raises(GatewayError, match=told_so) as raised:
            await backend.create_model(spec)
        assert raised.value.kind is Kind.UNSUPPORTED
        assert not service.of("/v1/loops/trainers")


async def test_an_exact_adapter_is_made_where_it_is_to_be_had() -> None:
    async with loops_script() as (_, service, backend):
        config = LoraConfig(train_unembed=False)
        spec = ModelSpec(MODEL, BASE, config, OptimizerConfig(), exact_adapter=True)
        facts = await backend.create_model(spec)
        assert facts.notes == ()
        assert facts.lora_config.rank == service.of("/v1/loops/trainers")[0].json["lora_rank"] == 32


async def test_a_live_trainer_hears_that_it_is_in_use(caplog: pytest.LogCaptureFixture) -> None:
    async with loops_script(keepalive_interval=0.01) as (script, service, backend):
        await make(backend)
        warned = asyncio.Event()

        class Waiting(logging.Handler):
            def emit(self, record: logging.LogRecord) -> None:
                if "did not hear" in record.getMessage():
                    warned.set()

        handler = Waiting()
        logger = logging.getLogger(readiness.__name__)
        logger.addHandler(handler)
        try:
            script.always("/health", told(503))
            await asyncio.wait_for(warned.wait(), 30)
        finally:
            logger.removeHandler(handler)
        asked = [a for a in service.asked if "/health" in a.route]
        assert asked[-1].route == f"/run1/health?base_model={BASE}"
        assert asked[-1].headers["x-run-id"] == "run1"
        script.as_usual()
        await backend.unload_model(MODEL)
        assert any("did not hear" in record.getMessage() for record in caplog.records)
