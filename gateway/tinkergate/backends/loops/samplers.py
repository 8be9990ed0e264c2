"""Samplers at Loops (wire sections 4.3, 8.5 and 8.7).

A run has one sampler of its own, which weights that are saved without a name are given to. A
serverless one is told by path which weights to use, so it serves any number of the gateway's
samplers. A dedicated one serves the newest weights that it was given and nothing else, so a sampler
of the gateway ends when newer ones are published: it is refused then, as it would silently be
another. Base models and checkpoints have samplers apart from any run.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from typing import Any

from tinkergate.backends.base import SamplerSpec
from tinkergate.backends.errands import Errands
from tinkergate.backends.failures import failure
from tinkergate.backends.known_checkpoints import KnownCheckpoints
from tinkergate.backends.loops.control import Control
from tinkergate.backends.loops.sampler import LoopsSampler
from tinkergate.backends.loops.service import Call, Effect, Service, body_of
from tinkergate.backends.loops.trainer import Trainer
from tinkergate.backends.loops.trainers import Trainers
from tinkergate.dialects.loops.read_completions import Echo
from tinkergate.dialects.loops.read_results import SamplerFacts, sampler_from_json
from tinkergate.errors import ErrorReason, GatewayError, Kind
from tinkergate.v1 import SampleRequest, ScoreRequest

_log = logging.getLogger(__name__)

SHARED = ""
"""The key of the session for what belongs to no session of the gateway."""
ECHOES_KEPT = 1024
"""Of how many addresses it is remembered how they answer."""


class UpstreamSamplers:
    """All samplers that the gateway has at the service."""

    def __init__(
        self,
        service: Service,
        control: Control,
        trainers: Trainers,
        checkpoints: KnownCheckpoints,
        errands: Errands,
    ) -> None:
        self._service = service
        self._control = control
        self._trainers = trainers
        self._checkpoints = checkpoints
        self._errands = errands
        self._samplers: dict[str, LoopsSampler] = {}
        self._on_demand: OrderedDict[tuple[str, str], LoopsSampler] = OrderedDict()
        """By what a request names, the one used least lately first."""
        self._locks: dict[tuple[str, str], asyncio.Lock] = {}
        self._echoes: OrderedDict[str, Echo] = OrderedDict()
        """By the samplers' addresses."""

    async def paired(self, trainer: Trainer) -> SamplerFacts:
        """The sampler of a run, made if there is none."""
        async with trainer.pairing:
            if trainer.paired is None:
                trainer.paired = await self._post(
                    trainer.model_id.rsplit(":", 2)[0],
                    {"run_id": trainer.run.run_id},
                    f"the sampler of {trainer.model_id}",
                )
            return trainer.paired

    async def _post(self, session_key: str, body: dict[str, Any], what: str) -> SamplerFacts:
        """Have a sampler made. One too many, after an answer that was lost, ends by itself."""
        if (replicas := self._service.settings.sampler_replicas) is not None:
            body = {**body, "num_replicas": replicas}

        async def make(session: str) -> SamplerFacts:
            asked = {"session_id": session, **body}
            call = self._control.create("samplers", f"making {what}", asked, Effect.NONE)
            return await self._service.call(
                call, lambda answer: sampler_from_json(body_of(answer).fields("sampler"))
            )

        return await self._control.in_session(session_key, make)

    def hold(self, trainer: Trainer) -> None:
        """A trainer is going to be needed for a sampler, until `let_go`."""
        self._trainers.use(trainer)

    def let_go(self, trainer: Trainer) -> None:
        """The sampler that a trainer was held for is there, or does not come about."""
        self._trainers.release(trainer)

    async def adopt(self, trainer: Trainer, number: int, upstream_path: str, version: int) -> None:
        """A trainer's weights were saved without a name, as a checkpoint of that path and version:
        they become a sampler."""
        session = trainer.model_id.rsplit(":", 2)[0]
        sampler_id = f"{session}:sample:{number}"
        facts = await self.paired(trainer)
        made = LoopsSampler(
            facts,
            trainer.run.base_model,
            dict(trainer.headers),
            self._echo(facts),
            trainer=trainer,
            version=version,
        )
        if not facts.model_id:
            # Before the first step of a new adapter there is none, and the base model is it.
            if version or not trainer.fresh:
                made.pin = upstream_path
                made.headers["x-checkpoint-path"] = upstream_path
        elif trainer.publish(version):
            made.publication = trainer.publication
            if version:
                made.headers["x-min-policy-version"] = str(version)
        else:
            made = await self._apart(session, trainer.run.base_model, upstream_path, sampler_id)
            made.trainer = trainer
        self._trainers.use(trainer)
        self._samplers[sampler_id] = made

    async def create(self, spec: SamplerSpec) -> None:
        """Make a sampler."""
        path = self._checkpoints.find(spec.model_path).upstream_path if spec.model_path else ""
        key = spec.sampler_id.rsplit(":", 2)[0]
        self._samplers[spec.sampler_id] = await self._apart(
            key, spec.base_model, path, spec.sampler_id
        )

    async def remake(self, sampler: LoopsSampler, gone: SamplerFacts) -> bool:
        """The service does not have a sampler any more: make it again of what it was made of, once
        for all calls that find it gone. False if that is out of the question."""
        if sampler.made_of is None:
            return False
        async with sampler.remaking:
            if sampler.facts is not gone:
                return True
            fresh = await self._apart(*sampler.made_of, gone.sampler_id)
            sampler.facts, sampler.headers, sampler.echo = fresh.facts, fresh.headers, fresh.echo
            sampler.looked = sampler.answered = False
        return True

    async def _apart(
        self, session_key: str, base_model: str, upstream_path: str, named: str
    ) -> LoopsSampler:
        """A sampler of a base model, or of a checkpoint, that belongs to no run."""
        settings = self._service.settings
        body: dict[str, Any] = {"availability_model": settings.availability_model}
        body |= {"model_path": upstream_path} if upstream_path else {"base_model": base_model}
        if settings.max_seq_len is not None:
            body["max_seq_length"] = settings.max_seq_len  # trainers have another name for it
        facts = await self._post(session_key, body, f"sampler {named}")
        if upstream_path:
            headers = {"x-checkpoint-path": upstream_path}
        else:
            headers = {"x-sampler-id": facts.sampler_id}
        return LoopsSampler(
            facts,
            facts.base_model or base_model,
            headers,
            self._echo(facts),
            pin=upstream_path,
            made_of=(session_key, base_model, upstream_path),
        )

    def _echo(self, facts: SamplerFacts) -> Echo:
        echo = self._echoes.setdefault(facts.base_url, Echo())
        if len(self._echoes) > ECHOES_KEPT:
            self._echoes.popitem(last=False)
        return echo

    def close_sampler(self, sampler_id: str) -> None:
        """Let go of a sampler. Unknown ids are no error."""
        sampler = self._samplers.pop(sampler_id, None)
        if sampler is None:
            return
        if sampler.trainer is not None:
            if sampler.pin:
                _log.info(
                    "backend %s: %s, saved for sampler %s alone, stays there",
                    self._service.name,
                    sampler.pin,
                    sampler_id,
                )
            self._trainers.release(sampler.trainer)
        self._close(sampler)

    def _close(self, sampler: LoopsSampler) -> None:
        """Stop a sampler after its calls, if it is one of its own that costs while it is there."""
        sampler.closing = True
        paired = sampler.trainer is not None and sampler.trainer.paired is sampler.facts
        if sampler.dedicated and not paired and not sampler.running:
            upstream_id = sampler.facts.sampler_id
            call = Call(
                f"stopping sampler {upstream_id}",
                self._control.route("samplers", upstream_id, "deactivate"),
            )
            self._errands.run(self._service.quietly(call), call.operation)

    def close(self) -> None:
        """Let go of all."""
        for sampler_id in list(self._samplers):
            self.close_sampler(sampler_id)
        while self._on_demand:
            self._close(self._on_demand.popitem()[1])

    def forget(self, model_path: str) -> None:
        """What the path stood for has changed or is gone."""
        key = ("model_path", model_path)
        if (lock := self._locks.get(key)) is not None and not lock.locked():
            del self._locks[key]
        sampler = self._on_demand.pop(key, None)
        if sampler is not None:
            self._close(sampler)

    async def of(self, request: SampleRequest | ScoreRequest) -> LoopsSampler:
        """The sampler that a request names, or one of the base model or checkpoint that it
        names."""
        which = request.WhichOneof("source")
        if which == "sampler_id":
            sampler = self._samplers.get(request.sampler_id)
            if sampler is None:
                raise GatewayError(
                    Kind.NOT_FOUND,
                    ErrorReason.ERROR_REASON_SAMPLER_NOT_FOUND,
                    f"backend {self._service.name!r} has no sampler {request.sampler_id!r}",
                    backend=self._service.name,
                )
            return sampler
        assert which is not None
        key = (which, getattr(request, which))
        async with self._locks.setdefault(key, asyncio.Lock()):
            sampler = self._on_demand.get(key)
            if sampler is None:
                known = self._checkpoints.find(request.model_path)
                path = known.upstream_path if request.model_path else ""
                base_model = request.base_model or known.base_model
                sampler = await self._apart(SHARED, base_model, path, key[1])
                self._on_demand[key] = sampler
            self._on_demand.move_to_end(key)
        while len(self._on_demand) > self._service.settings.samplers_kept:
            oldest, gone = self._on_demand.popitem(last=False)
            self._locks.pop(oldest, None)
            self._close(gone)
        return sampler

    def begin(self, sampler: LoopsSampler) -> None:
        """A call begins. Raises PRECONDITION for weights that are not served any more."""
        trainer = sampler.trainer
        if (
            sampler.publication is not None
            and trainer is not None
            and sampler.publication != trainer.publication
        ):
            raise self.superseded(sampler, trainer.published)
        sampler.running += 1

    def end(self, sampler: LoopsSampler) -> None:
        """A call has ended."""
        sampler.running -= 1
        if sampler.closing:
            self._close(sampler)

    def superseded(self, sampler: LoopsSampler, served: int) -> GatewayError:
        """A dedicated sampler that serves another version than the weights that are meant."""
        run_id = sampler.headers.get("x-run-id", "")
        return failure(
            self._service.name,
            f"sampling with version {sampler.version} of run {run_id}",
            f"is out of the question: its sampler serves version {served}, as a dedicated one has "
            "the newest weights alone; make the sampler anew, or save the weights under a name and "
            "sample from that checkpoint",
            kind=Kind.PRECONDITION,
            reason=ErrorReason.ERROR_REASON_CHECKPOINT_MISMATCH,
        )
