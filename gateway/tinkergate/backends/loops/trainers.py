"""Trainers: made, waited for, kept alive, let go (wire sections 4.2, 4.4, 5.1 and 8.7)."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlencode

from tinkergate.backends.base import OnQueueState
from tinkergate.backends.errands import Errands
from tinkergate.backends.failures import unreachable
from tinkergate.backends.loops.control import Control
from tinkergate.backends.loops.errors import marked_final, status_error
from tinkergate.backends.loops.service import TRAINER, Call, Effect, Service, body_of
from tinkergate.dialects.loops.read_results import Run, SamplerFacts, run_from_json
from tinkergate.dialects.loops.write_requests import trainer_json
from tinkergate.errors import GatewayError, Kind
from tinkergate.http import Answer, AnswerLost, NotSent
from tinkergate.v1 import QueueState

_log = logging.getLogger(__name__)

_ENDED = frozenset({"FAILED", "STOPPED", "PREEMPTED"})
"""States of a deployment that it does not come back from."""
HEALTH_TIMEOUT = 10.0
STATUS_TIMEOUT = 30.0
STARTING_TIME = 60.0
"""For how long 400 and 404 mean that a trainer is still starting, once its health was seen, in
seconds; until it has accepted its first operation."""
MAKE_TRIES = 3
"""How often a trainer is asked for."""
FIND_TRIES = 5
"""How often is looked for one whose making was not answered."""
WARN_AFTER = 5
"""After how many failed pings in a row the log says so."""


@dataclass
class Trainer:
    """One run at the service. A model has one at a time."""

    run: Run
    model_id: str
    """Of the gateway's model that it trains, or trained."""
    next_seq: int = 1
    ready: bool = False
    """Whether it has accepted an operation."""
    optimizer_steps: int = 0
    """Steps that it has taken, those of the checkpoint that it went on from included."""
    doubt: str = ""
    """Why nobody knows what it has gone through; empty if that is known."""
    fresh: bool = True
    """Whether its adapter began as a new one; then version 0 is the base model itself."""
    published: int = 0
    """The newest version that its paired sampler was given to serve."""
    publication: int = 0
    """Another number for other weights of the paired sampler."""
    moved: bool = False
    """Whether weights were loaded since the last publication."""
    gradients: Counter[bool] = field(default_factory=Counter)
    """Operations whose gradients wait for the step: how many are taken per token and how many are
    sums."""
    paired: SamplerFacts | None = None
    pairing: asyncio.Lock = field(default_factory=asyncio.Lock)
    users: int = 1
    """The model, and the samplers of weights that were saved without a name."""
    heart: asyncio.Task[None] | None = None

    @property
    def dedicated(self) -> bool:
        """Whether it has a deployment of its own."""
        return bool(self.run.deployment_id)

    @property
    def headers(self) -> dict[str, str]:
        """What says whose its requests are."""
        return {"x-run-id": self.run.run_id}

    def doubted(self, why: str) -> None:
        """Nobody knows any more what it has gone through."""
        self.doubt = self.doubt or why

    def loaded(self, optimizer_steps: int) -> None:
        """Its weights are those of a checkpoint after so many steps."""
        self.fresh, self.moved = False, True
        self.optimizer_steps = optimizer_steps

    def publish(self, version: int) -> bool:
        """Weights were published as a version. Whether the paired sampler can be told to serve
        them: it goes by the lowest version that will do, so not if it has served such a one of
        other weights, which loading a checkpoint can bring about; and version 0 is to it the base
        model."""
        if version < self.published or (version == 0 and not self.fresh):
            return False
        if version == self.published and self.moved and self.publication:
            return False
        if version != self.published or not self.publication:
            self.publication += 1
        self.published, self.moved = version, False
        return True

    def call(
        self,
        route: str,
        operation: str,
        body: Mapping[str, Any],
        *,
        within: float,
        look: str = "",
        effect: Effect = Effect.KEYED,
    ) -> Call:
        """An operation, which takes the next number. A number is used for one request alone, also
        if that is refused: so does the official client."""
        seq = self.next_seq
        self.next_seq += 1
        return Call(
            operation,
            f"{self.run.base_url}/{route}",
            {**body, "seq_id": seq, "run_id": self.run.run_id, "model": self.run.base_model},
            manners=TRAINER,
            effect=effect,
            look=look,
            headers={**self.headers, "idempotency-key": secrets.token_hex(16)},
            within=within,
            starting=0.0 if self.ready else STARTING_TIME,
        )


class Trainers:
    """All trainers that the gateway has at the service."""

    def __init__(self, service: Service, control: Control, errands: Errands) -> None:
        self._service = service
        self._control = control
        self._errands = errands
        self._live: dict[str, Trainer] = {}
        """By the service's id of the run."""
        self._reusing = ""
        """The run of the trainer that was made of an earlier one."""

    async def make(
        self,
        model_id: str,
        base_model: str,
        rank: int,
        on_state: OnQueueState,
        *,
        seed: int | None = None,
        path: str = "",
    ) -> Trainer:
        """A trainer, once it is ready. `path` is the checkpoint that it is going to be loaded with.
        Raises GatewayError, and leaves nothing behind then, nor if cancelled."""
        settings = self._service.settings
        name = f"{model_id}-{secrets.token_hex(8)}"
        session = await self._control.session(model_id.rsplit(":", 2)[0])
        reused = settings.reuse_from_run_id if self._reusing not in self._live else ""
        body = trainer_json(
            session,
            base_model,
            rank,
            availability=settings.availability_model,
            replicas=settings.replicas,
            name=name,
            optional={
                "seed": seed,
                "max_seq_len": settings.max_seq_len,
                "path": path,
                "reuse_from_run_id": reused,
            },
        )
        on_state(QueueState.QUEUE_STATE_PAUSED_CAPACITY, "a trainer is being asked for")
        call = self._control.create(
            "trainers", f"making a trainer for {model_id}", body, Effect.ONCE
        )
        try:
            run = await self._made(call, name)
        except asyncio.CancelledError:
            self._errands.run(self._abandon(name), f"letting go of the trainer of {model_id}")
            raise
        if (other := self._live.get(run.run_id)) is not None:
            raise self._service.broken(
                call.operation, f"answered run {run.run_id}, which trains {other.model_id}"
            )
        trainer = Trainer(run, model_id)
        self._live[run.run_id] = trainer
        if reused:
            self._reusing = run.run_id
        try:
            await self._wait(trainer, on_state)
        except BaseException:
            self.release(trainer)
            raise
        trainer.heart = asyncio.get_running_loop().create_task(self._beat(trainer))
        return trainer

    async def _made(self, call: Call, name: str) -> Run:
        """Have a trainer made. It costs money, so one whose making was not answered is looked for,
        by its name, and asked for again only if there is none for a while."""
        for left in reversed(range(MAKE_TRIES)):
            try:
                return await self._service.call(
                    call, lambda answer: run_from_json(body_of(answer).fields("run"))
                )
            except GatewayError as error:
                if error.kind is not Kind.OUTCOME_UNKNOWN:
                    raise
                try:
                    run = await self._find(name)
                except GatewayError as unfound:
                    self._service.note("looking for a trainer", unfound)
                    raise error from None
                if run is not None:
                    return run
                if not left:
                    raise
        raise AssertionError("the last try returns or raises")

    async def _find(self, name: str) -> Run | None:
        for left in reversed(range(FIND_TRIES)):
            for run in await self._control.runs():
                if run.name == name:
                    return run
            if left:
                await asyncio.sleep(self._service.settings.ready_interval)
        return None

    async def _abandon(self, name: str) -> None:
        """Stop a trainer whose making nobody waits for any more."""
        run = await self._find(name)
        if run is not None:
            await self._deactivate(run.run_id)

    async def _wait(self, trainer: Trainer, on_state: OnQueueState) -> None:
        """Until the trainer is ready."""
        settings, loop = self._service.settings, asyncio.get_running_loop()
        ends = loop.time() + settings.ready_time
        operation = f"starting the trainer of {trainer.model_id}"
        while True:
            state = await self._status(trainer) if trainer.dedicated else "starting"
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

    async def _status(self, trainer: Trainer) -> str:
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
            answer = await self._ping(trainer)
        except (NotSent, AnswerLost):
            return False
        if marked_final(answer):
            raise status_error(self._service.name, operation, answer, trainer.run.run_id)
        return answer.status == 200

    async def _ping(self, trainer: Trainer, within: float = HEALTH_TIMEOUT) -> Answer:
        query = urlencode({"base_model": trainer.run.base_model})
        call = Call(
            f"health of run {trainer.run.run_id}",
            f"{trainer.run.base_url}/health?{query}",
            method="GET",
            headers=trainer.headers,
            within=within,
        )
        return await self._service.once(call)

    async def _beat(self, trainer: Trainer) -> None:
        """Say that the trainer is in use."""
        failed = 0
        while True:
            await asyncio.sleep(self._service.settings.keepalive_interval)
            try:
                answer = await self._ping(trainer, STATUS_TIMEOUT)
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

    def use(self, trainer: Trainer) -> None:
        """One user more."""
        trainer.users += 1

    def release(self, trainer: Trainer) -> None:
        """One user less. After the last one the trainer is stopped, and its sampler with it."""
        trainer.users -= 1
        if trainer.users:
            return
        self._stop_heart(trainer)
        if self._live.pop(trainer.run.run_id, None) is not None:
            self._errands.run(self._deactivate(trainer.run.run_id), "stopping a trainer")

    def close(self) -> None:
        """Stop all of them."""
        for trainer in list(self._live.values()):
            trainer.users = 1
            self.release(trainer)

    async def _deactivate(self, run_id: str) -> None:
        call = Call(f"stopping run {run_id}", self._control.route("runs", run_id, "deactivate"))
        await self._service.quietly(call)

    @staticmethod
    def _stop_heart(trainer: Trainer) -> None:
        if trainer.heart is not None:
            trainer.heart.cancel()
            trainer.heart = None
