"""Trainers: made, kept, let go (wire section 4.2)."""

from __future__ import annotations

import asyncio
import secrets

from tinkergate.backends.base import OnQueueState
from tinkergate.backends.errands import Errands
from tinkergate.backends.loops.control import Control
from tinkergate.backends.loops.readiness import Readiness
from tinkergate.backends.loops.service import Call, Effect, Service, body_of
from tinkergate.backends.loops.trainer import Trainer
from tinkergate.dialects.loops.read_results import Run, run_from_json
from tinkergate.dialects.loops.write_requests import trainer_json
from tinkergate.dialects.tinker.json_fields import Fields
from tinkergate.errors import GatewayError, Kind
from tinkergate.v1 import QueueState

MAKE_TRIES = 3
"""How often a trainer is asked for."""
FIND_TRIES = 5
"""How often is looked for one whose making was not answered."""


class Trainers:
    """All trainers that the gateway has at the service."""

    def __init__(
        self, service: Service, control: Control, readiness: Readiness, errands: Errands
    ) -> None:
        self._service = service
        self._control = control
        self._readiness = readiness
        self._errands = errands
        self._live: dict[str, Trainer] = {}
        """By the service's id of the run."""
        self._reusing: Trainer | str = ""
        """The trainer that was made of an earlier one, or the name of one that is being made."""

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
        making = f"making a trainer for {model_id}"
        reused = "" if self._reusing else settings.reuse_from_run_id

        async def asked(session: str) -> Run:
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
            return await self._made(
                self._control.create("trainers", making, body, Effect.ONCE), name
            )

        if reused:
            self._reusing = name
        on_state(QueueState.QUEUE_STATE_PAUSED_CAPACITY, "a trainer is being asked for")
        try:
            run = await self._control.in_session(model_id.rsplit(":", 2)[0], asked)
            if (other := self._live.get(run.run_id)) is not None:
                raise self._service.broken(
                    making, f"answered run {run.run_id}, which trains {other.model_id}"
                )
        except BaseException as error:
            if isinstance(error, asyncio.CancelledError):
                self._errands.run(self._abandon(name), f"letting go of the trainer of {model_id}")
            if self._reusing == name:
                self._reusing = ""
            raise
        trainer = Trainer(run, model_id)
        self._live[run.run_id] = trainer
        if reused:
            self._reusing = trainer
        try:
            await self._readiness.trainer(trainer, on_state)
        except BaseException:
            self.release(trainer)
            raise
        trainer.heart = asyncio.get_running_loop().create_task(self._readiness.beat(trainer))
        return trainer

    async def _made(self, call: Call, name: str) -> Run:
        """Have a trainer made. It costs money, so one whose making was not answered is looked for,
        by its name, and asked for again only if there is none for a while."""
        for left in reversed(range(MAKE_TRIES)):
            try:
                told = await self._service.call(call, lambda answer: body_of(answer).fields("run"))
                return self._readable(call, told)
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

    def _readable(self, call: Call, told: Fields) -> Run:
        """The run that was made. One that cannot be used is stopped."""
        try:
            return run_from_json(told)
        except GatewayError as error:
            if isinstance(run_id := told.value.get("id"), str):
                self._errands.run(self._deactivate(run_id), "stopping a trainer")
            raise self._service.broken(
                call.operation, f"was answered what makes no sense: {error}"
            ) from None

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

    def use(self, trainer: Trainer) -> None:
        """One user more."""
        trainer.users += 1

    def release(self, trainer: Trainer) -> None:
        """One user less. After the last one the trainer is stopped, and its sampler with it."""
        trainer.users -= 1
        if trainer.users:
            return
        self._stop_heart(trainer)
        if self._reusing is trainer:
            self._reusing = ""
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
