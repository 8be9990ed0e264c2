"""Trainers and dedicated samplers take minutes to start: they are waited for, woken, and kept awake
(wire sections 4.4 and 8.7)."""

from __future__ import annotations

import asyncio
import logging
from urllib.parse import urlencode

from tinkergate.backends.base import OnQueueState
from tinkergate.backends.failures import unreachable
from tinkergate.backends.loops.control import Control
from tinkergate.backends.loops.errors import marked_final, status_error
from tinkergate.backends.loops.sampler import LoopsSampler
from tinkergate.backends.loops.service import Call, Service, body_of
from tinkergate.backends.loops.trainer import Trainer
from tinkergate.dialects.loops.read_results import SamplerFacts
from tinkergate.errors import GatewayError
from tinkergate.http import Answer, AnswerLost, NotSent
from tinkergate.v1 import QueueState

_log = logging.getLogger(__name__)

HEALTH_TIMEOUT = 10.0
STATUS_TIMEOUT = 30.0
WARN_AFTER = 5
"""After how many failed pings in a row the log says so."""
AWAKE_TIME = 300.0
"""How long after its last answer a dedicated sampler is taken to be awake, in seconds."""
_ENDED = frozenset({"FAILED", "STOPPED", "PREEMPTED"})
"""States of a trainer's deployment that it does not come back from."""
_TERMINATED = frozenset(
    {
        "DEPLOY_FAILED",
        "UNHEALTHY",
        "BUILD_FAILED",
        "BUILD_STOPPED",
        "DEACTIVATING",
        "INACTIVE",
        "FAILED",
    }
)
"""States of a sampler's deployment that it does not come back from."""


class Readiness:
    """Waits for what is starting."""

    def __init__(self, service: Service, control: Control) -> None:
        self._service = service
        self._control = control

    async def trainer(self, trainer: Trainer, on_state: OnQueueState) -> None:
        """Until the trainer is ready."""
        settings, loop = self._service.settings, asyncio.get_running_loop()
        ends = loop.time() + settings.ready_time
        operation = f"starting the trainer of {trainer.model_id}"
        while True:
            state = await self._trainer_state(trainer) if trainer.dedicated else "starting"
            if state in _ENDED:
                raise unreachable(self._service.name, operation, f"is {state}", trainer.run.run_id)
            if await self._healthy(trainer, operation):
                on_state(QueueState.QUEUE_STATE_ACTIVE, "")
                return
            on_state(
                QueueState.QUEUE_STATE_PAUSED_CAPACITY, f"trainer {trainer.run.run_id} is {state}"
            )
            if loop.time() + settings.ready_interval > ends:
                raise unreachable(
                    self._service.name,
                    operation,
                    f"is {state} after {settings.ready_time:g} s",
                    trainer.run.run_id,
                )
            await asyncio.sleep(settings.ready_interval)

    async def _trainer_state(self, trainer: Trainer) -> str:
        """The state of the deployment; that it cannot be asked for matters not."""
        call = Call(
            "the deployment's state",
            self._control.route("deployments", trainer.run.deployment_id),
            method="GET",
            within=STATUS_TIMEOUT,
        )
        try:
            answer = await self._service.once(call)
            if answer.status == 200:
                fields = body_of(answer).fields("deployment").fields("status")
                return fields.text("name")
        except (NotSent, AnswerLost, GatewayError) as error:
            self._service.note(call.operation, error)
        return "starting"

    async def _healthy(self, trainer: Trainer, operation: str) -> bool:
        """Whether the trainer says that it is up. Raises GatewayError if there is no hope."""
        try:
            answer = await self.ping(trainer)
        except (NotSent, AnswerLost):
            return False
        if marked_final(answer):
            raise status_error(self._service.name, operation, answer, trainer.run.run_id)
        return answer.status == 200

    async def ping(self, trainer: Trainer, within: float = HEALTH_TIMEOUT) -> Answer:
        """Ask a trainer for its health, which also tells it that it is in use. Raises NotSent and
        AnswerLost."""
        query = urlencode({"base_model": trainer.run.base_model})
        call = Call(
            f"health of run {trainer.run.run_id}",
            f"{trainer.run.base_url}/health?{query}",
            method="GET",
            headers=trainer.headers,
            within=within,
        )
        return await self._service.once(call)

    async def beat(self, trainer: Trainer) -> None:
        """Say that the trainer is in use."""
        failed = 0
        while True:
            await asyncio.sleep(self._service.settings.keepalive_interval)
            try:
                answer = await self.ping(trainer, STATUS_TIMEOUT)
            except (NotSent, AnswerLost) as error:
                problem = str(error)
            else:
                if answer.status < 500:
                    failed = 0 if answer.status < 400 else failed
                    continue
                problem = f"answered {answer.status}"
            failed += 1
            if failed == WARN_AFTER:
                _log.warning(
                    "backend %s: run %s did not hear %d times that it is in use, and may be "
                    "stopped: %s",
                    self._service.name,
                    trainer.run.run_id,
                    failed,
                    problem,
                )

    async def sampler(self, sampler: LoopsSampler, on_state: OnQueueState) -> None:
        """Until a dedicated sampler runs. One that sleeps is woken, as it may be after a while
        without calls. Whoever may not look goes on."""
        if not sampler.dedicated:
            return
        async with sampler.ready:
            now = asyncio.get_running_loop().time()
            if (sampler.looked or sampler.answered) and now - sampler.seen < AWAKE_TIME:
                return
            sampler.looked = sampler.answered = False
            await self._until_active(sampler, on_state)
            sampler.seen = asyncio.get_running_loop().time()

    async def _until_active(self, sampler: LoopsSampler, on_state: OnQueueState) -> None:
        service, settings, facts = self._service, self._service.settings, sampler.facts
        loop = asyncio.get_running_loop()
        ends = loop.time() + settings.ready_time
        call = Call(
            f"the state of sampler {facts.sampler_id}",
            f"{settings.url}/v1/models/{facts.model_id}/deployments/{facts.deployment_id}",
            method="GET",
            within=STATUS_TIMEOUT,
        )
        operation = f"starting sampler {facts.sampler_id}"
        state, woken = "starting", False
        while True:
            try:
                answer = await service.once(call)
                if 400 <= answer.status < 500:
                    _log.warning(
                        "backend %s: %s was answered %d: it is taken to be ready",
                        service.name,
                        call.operation,
                        answer.status,
                    )
                    return
                if answer.status == 200:
                    state = body_of(answer).text("status")
            except (NotSent, AnswerLost, GatewayError) as error:
                service.note(call.operation, error)
            if state == "ACTIVE":
                sampler.looked = True
                on_state(QueueState.QUEUE_STATE_ACTIVE, "")
                return
            if state in _TERMINATED:
                raise unreachable(service.name, operation, f"is {state}", facts.sampler_id)
            if state == "SCALED_TO_ZERO" and not woken:
                woken = True
                await self._wake(facts)
            on_state(
                QueueState.QUEUE_STATE_PAUSED_CAPACITY, f"sampler {facts.sampler_id} is {state}"
            )
            if loop.time() + settings.ready_interval > ends:
                raise unreachable(
                    service.name,
                    operation,
                    f"is {state} after {settings.ready_time:g} s",
                    facts.sampler_id,
                )
            await asyncio.sleep(settings.ready_interval)

    async def _wake(self, facts: SamplerFacts) -> None:
        call = Call(
            f"waking sampler {facts.sampler_id}",
            f"{facts.base_url.removesuffix('/sync')}/wake",
            within=STATUS_TIMEOUT,
        )
        await self._service.quietly(call)
