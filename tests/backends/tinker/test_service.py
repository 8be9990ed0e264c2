"""Keys, flags, polls and sessions against a service whose answers are written here: those that our
own gateway never gives."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import jwt
import numpy as np
import pytest
import zstandard
from local_backend import MODEL, batch, run, step
from scripted_service import Asked, Reply, ScriptedService
from tinker_upstream import make

from tinkergate.backends import pauses
from tinkergate.backends.tinker.auth import Credentials
from tinkergate.backends.tinker.backend import TinkerBackend
from tinkergate.backends.tinker.settings import TinkerSettings
from tinkergate.dialects.tinker.wire_pb2 import TinkerForwardBackwardRequest
from tinkergate.errors import GatewayError, Kind
from tinkergate.tensors import batched_from_arrays
from tinkergate.v1 import ArrayRecord, ForwardBackwardOutput, QueueState


def token(life: float) -> str:
    return jwt.encode({"exp": time.time() + life}, "a key of the service's own" * 2)


class Answers:
    """A service that says yes to everything, but for what a test changes."""

    def __init__(self, **flags: Any) -> None:
        self.changes: dict[str, list[Reply]] = {}
        """Answers to be given first, by route."""
        self.flags = flags
        self.heard_keys: list[str] = []

    def __call__(self, asked: Asked) -> Reply:
        self.heard_keys.append(asked.headers["x-api-key"])
        if queued := self.changes.get(asked.route):
            return queued.pop(0)
        match asked.route:
            case "client/config":
                return Reply(self.flags)
            case "auth/token":
                return Reply({"jwt": token(3600)})
            case "create_session":
                return Reply({"session_id": "far-s"})
            case "get_info":
                return Reply({"model_id": "far-m", "model_data": {"tokenizer_id": "t"}})
            case "retrieve_future":
                return self.result(asked)
            case route:
                return Reply({"request_id": route, "model_id": "far-m"})

    def result(self, asked: Asked) -> Reply:
        match asked.headers["x-tinker-request-type"]:
            case "CreateModel":
                return Reply({"model_id": "far-m"})
            case "ForwardBackward":
                arrays = [np.zeros(4, np.float32)] * 3
                record = ArrayRecord(fields={"logprobs": batched_from_arrays(arrays)}, num_datums=3)
                output = ForwardBackwardOutput(loss_fn_outputs=[record], metrics={"loss:sum": 1})
                headers = {"content-type": "application/x-protobuf"}
                return Reply(output.SerializeToString(), headers=headers)
            case _:
                return Reply({"metrics": {"grad_norm:mean": 2.0}})


@pytest.fixture(autouse=True)
def impatience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pauses, "FIRST_PAUSE", 0.01)


async def opened(service: ScriptedService, **settings: Any) -> TinkerBackend:
    given = {"api_key": "tml-k", "retry_time": 3.0, **settings}
    backend = TinkerBackend(TinkerSettings("far", base_url=service.url, **given))
    await backend.start()
    return backend


async def test_a_key_of_tinker_is_sent_as_it_is_unless_the_service_exchanges_keys() -> None:
    for exchanges in (False, True):
        answers = Answers(pjwt_auth_enabled=exchanges)
        async with ScriptedService(answers) as service:
            backend = await opened(service)
            await make(backend)
            assert len(service.of("auth/token")) == exchanges
            secret = [key for key in answers.heard_keys if key == "tml-k"]
            assert len(secret) == (2 if exchanges else len(answers.heard_keys))
            await backend.close()


async def test_a_key_of_mint_is_exchanged_unless_the_service_has_no_exchange() -> None:
    for status in (200, 404):
        answers = Answers()
        if status == 404:
            answers.changes["auth/token"] = [Reply({"detail": "no such route"}, 404)]
        async with ScriptedService(answers) as service:
            backend = await opened(service, dialect="mint", api_key="sk-k")
            await make(backend)
            assert (answers.heard_keys[-1] == "sk-k") == (status == 404)
            await backend.close()


async def test_a_token_that_is_refused_is_exchanged_and_the_call_made_again_once() -> None:
    answers = Answers(pjwt_auth_enabled=True)
    denied = {"www-authenticate": 'Bearer error="invalid_token"'}
    answers.changes["optim_step"] = [Reply({"detail": "too old"}, 401, denied)]
    async with ScriptedService(answers) as service:
        backend = await opened(service)
        await make(backend)
        assert (await run(backend, step())).metrics["grad_norm:mean"] == 2
        assert len(service.of("auth/token")) == 2
        assert len(service.of("optim_step")) == 2
        answers.changes["optim_step"] = [Reply({"detail": "no"}, 401)] * 2
        with pytest.raises(GatewayError, match="does not take the gateway's key"):
            await run(backend, step())
        await backend.close()


async def test_a_token_is_exchanged_before_it_ends() -> None:
    now = 1000.0
    exchanged = 0

    async def exchange(key: str) -> str:
        nonlocal exchanged
        assert key == "k"
        exchanged += 1
        return jwt.encode({"exp": now + 900}, "s" * 32)

    credentials = Credentials("k", exchange, now=lambda: now)
    assert await credentials.current() == "k"
    credentials.exchanging = True
    first = await credentials.current()
    assert await credentials.current() == first
    now += 599
    assert await credentials.current() == first
    now += 2
    assert len({first, *await asyncio.gather(*(credentials.current() for _ in range(5)))}) == 2
    assert exchanged == 2
    assert not credentials.refused("k")
    assert credentials.refused(await credentials.current())
    await credentials.current()
    assert exchanged == 3


async def test_training_is_protobuf_and_compressed_where_the_service_asks_for_it() -> None:
    for compresses in (False, True):
        async with ScriptedService(Answers(proto_compress_fwdbwd=compresses)) as service:
            backend = await opened(service)
            await make(backend)
            request = batch()
            await run(backend, request)
            await run(backend, step())
            await run(backend, request)
            first, second = service.of("forward_backward")
            assert first.headers["content-type"] == "application/x-protobuf"
            assert first.headers.get("content-encoding") == ("zstd" if compresses else None)
            for asked, number in ((first, 1), (second, 3)):
                body = zstandard.decompress(asked.body) if compresses else asked.body
                sent = TinkerForwardBackwardRequest.FromString(body)
                assert (sent.model_id, sent.seq_id) == ("far-m", number)
                assert list(sent.data) == list(request.data)
            assert service.of("optim_step")[0].json == {
                "model_id": "far-m",
                "seq_id": 2,
                "type": "optim_step",
                "adam_params": {
                    "learning_rate": 0.01,
                    "beta1": 0.9,
                    "beta2": 0.95,
                    "eps": 1e-12,
                    "weight_decay": 0.0,
                    "grad_clip_norm": 0.0,
                },
            }
            await backend.close()


async def test_why_an_operation_waits_is_passed_on() -> None:
    answers = Answers()
    paused = {"type": "try_again", "queue_state": "paused_capacity", "queue_state_reason": "full"}
    async with ScriptedService(answers) as service:
        backend = await opened(service)
        await make(backend)
        # Of both forms that a service may give, and without holding the poll.
        answers.changes["retrieve_future"] = [Reply(paused, 408)] * 5 + [Reply(paused)] * 5
        started: list[bool] = []
        submission = await backend.submit(batch(), lambda: started.append(True))
        result = asyncio.ensure_future(submission.result)
        while submission.queue_state()[1] != "full":  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        assert submission.queue_state()[0] == QueueState.QUEUE_STATE_PAUSED_CAPACITY
        assert not started
        begun = time.monotonic()
        assert (await result).metrics["loss:sum"] == 1  # type: ignore[union-attr]
        assert time.monotonic() - begun > 0.5  # no busy loop
        assert started == [True]
        await backend.close()


async def test_a_failure_there_is_whose_fault_the_service_says() -> None:
    answers = Answers()
    kinds = {"user": Kind.INVALID, "server": Kind.UNAVAILABLE, "unknown": Kind.OUTCOME_UNKNOWN}
    async with ScriptedService(answers) as service:
        backend = await opened(service)
        await make(backend)
        for category, kind in kinds.items():
            failed = {"error": "it went wrong", "category": category}
            answers.changes["retrieve_future"] = [Reply(failed)]
            with pytest.raises(GatewayError, match="failed: it went wrong") as raised:
                await run(backend, step())
            assert raised.value.kind is kind
            assert raised.value.metadata["upstream_request_id"] == "optim_step"
        # A failed operation has taken its turn, and nothing is in doubt.
        await run(backend, step())
        numbers = [asked.json["seq_id"] for asked in service.of("optim_step")]
        assert numbers == [1, 2, 3, 4]
        await backend.close()


async def test_an_empty_400_is_of_something_on_the_way() -> None:
    answers = Answers()
    answers.changes["optim_step"] = [Reply(b"", 400)] * 2
    async with ScriptedService(answers) as service:
        backend = await opened(service, dialect="mint")
        await make(backend)
        await run(backend, step())
        answers.changes["optim_step"] = [Reply({"detail": "bad"}, 400)]
        with pytest.raises(GatewayError, match="answered 400: bad"):
            await run(backend, step())
        await backend.close()


async def test_the_service_may_say_what_is_worth_another_try() -> None:
    answers = Answers()
    async with ScriptedService(answers) as service:
        backend = await opened(service)
        await make(backend)
        answers.changes["optim_step"] = [Reply({}, 503, {"x-should-retry": "false"})]
        with pytest.raises(GatewayError):
            await run(backend, step())
        await backend.close()


async def test_a_result_of_the_wrong_size_is_no_result() -> None:
    answers = Answers()
    async with ScriptedService(answers) as service:
        backend = await opened(service)
        await make(backend)
        short = ForwardBackwardOutput(metrics={"loss:sum": 3})
        headers = {"content-type": "application/x-protobuf"}
        answers.changes["retrieve_future"] = [Reply(short.SerializeToString(), headers=headers)]
        assert (await run(backend, batch())).metrics["loss:sum"] == 1
        await backend.close()


async def test_a_session_is_kept_alive_while_it_is_used_and_finished_after() -> None:
    async with ScriptedService(Answers()) as service:
        backend = await opened(service, heartbeat_interval=0.02)
        await make(backend)
        await make(backend, "s-1:train:1")
        await make(backend, "s-2:train:0")
        assert len(service.of("create_session")) == 2
        numbers = [asked.json["model_seq_id"] for asked in service.of("create_model")]
        assert numbers == [0, 1, 0]
        await asyncio.sleep(0.2)
        assert len(service.of("session_heartbeat")) > 6
        await backend.unload_model(MODEL)
        await backend.unload_model("s-2:train:0")
        await asyncio.sleep(0.05)
        assert len(service.of("sessions/far-s/finish")) == 1
        await backend.close()
        assert len(service.of("sessions/far-s/finish")) == 2
        beats = len(service.of("session_heartbeat"))
        await asyncio.sleep(0.1)
        assert len(service.of("session_heartbeat")) == beats


async def test_a_session_that_has_ended_there_is_opened_anew() -> None:
    answers = Answers()
    answers.changes["session_heartbeat"] = [Reply({"detail": "finished"}, 410)]
    async with ScriptedService(answers) as service:
        backend = await opened(service, heartbeat_interval=0.02)
        await make(backend)
        await asyncio.sleep(0.1)
        assert len(service.of("session_heartbeat")) == 1
        await make(backend, "s-1:train:1")
        assert len(service.of("create_session")) == 2
        await backend.close()


async def test_a_model_that_is_made_when_nobody_wants_it_is_freed() -> None:
    answers = Answers()
    async with ScriptedService(answers) as service:
        backend = await opened(service)
        answers.changes["retrieve_future"] = [Reply({"type": "try_again"}, 408)] * 100
        making = asyncio.ensure_future(make(backend))
        while not service.of("retrieve_future"):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        making.cancel()
        with pytest.raises(asyncio.CancelledError):
            await making
        answers.changes.clear()
        await backend.close()
        assert service.of("unload_model")[0].json["model_id"] == "far-m"
        assert len(service.of("sessions/far-s/finish")) == 1


def test_settings_that_cannot_be_are_refused() -> None:
    for wrong in ({"name": ""}, {"base_url": "ftp://x"}, {"base_url": "http://user@x"}):
        with pytest.raises(ValueError, match=r"name|base_url"):
            TinkerSettings(**{"name": "n", **wrong})  # type: ignore[arg-type]
    assert TinkerSettings("n").url.startswith("https://tinker.thinkingmachines.dev/")
    assert TinkerSettings("n", "mint").url == "https://mint.macaron.xin"
    assert "secret" not in repr(TinkerSettings("n", api_key="secret"))
