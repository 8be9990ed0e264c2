"""TrainingService: the requests of a model, checked, given a place, and handed over in order."""

from __future__ import annotations

from functools import partial

from tinkergate.backends.base import OnStart, Submission, TrainingRequest, TrainingResult
from tinkergate.core.admission import Admission
from tinkergate.core.clock import Clock, set_time
from tinkergate.core.identity import hash_and_size
from tinkergate.core.ids import operation_name
from tinkergate.core.model_book import ModelBook
from tinkergate.core.model_entry import LiveModel
from tinkergate.core.operation_record import QUEUED, Record
from tinkergate.core.operation_table import OperationTable
from tinkergate.core.outcomes import Outcome, Outcomes
from tinkergate.core.sequencer import Turn
from tinkergate.core.sessions import Sessions
from tinkergate.core.validation.training import check_training_request
from tinkergate.errors import GatewayError
from tinkergate.v1 import (
    ForwardBackwardRequest,
    ForwardBackwardReverseKlRequest,
    ForwardRequest,
    LoadStateRequest,
    Operation,
    OperationKind,
    OptimStepRequest,
    SaveStateRequest,
    SaveWeightsExternalRequest,
    SaveWeightsForSamplerRequest,
    VlaTrainStepRequest,
)

KINDS: dict[type, OperationKind.ValueType] = {
    ForwardRequest: OperationKind.OPERATION_KIND_FORWARD,
    ForwardBackwardRequest: OperationKind.OPERATION_KIND_FORWARD_BACKWARD,
    OptimStepRequest: OperationKind.OPERATION_KIND_OPTIM_STEP,
    SaveStateRequest: OperationKind.OPERATION_KIND_SAVE_STATE,
    LoadStateRequest: OperationKind.OPERATION_KIND_LOAD_STATE,
    SaveWeightsForSamplerRequest: OperationKind.OPERATION_KIND_SAVE_WEIGHTS_FOR_SAMPLER,
    SaveWeightsExternalRequest: OperationKind.OPERATION_KIND_SAVE_WEIGHTS_EXTERNAL,
    ForwardBackwardReverseKlRequest: (OperationKind.OPERATION_KIND_FORWARD_BACKWARD_REVERSE_KL),
    VlaTrainStepRequest: OperationKind.OPERATION_KIND_VLA_TRAIN_STEP,
}


class Training:
    """The six RPCs of TrainingService, which differ in the request only."""

    def __init__(
        self,
        clock: Clock,
        admission: Admission,
        sessions: Sessions,
        book: ModelBook,
        table: OperationTable,
        outcomes: Outcomes,
    ) -> None:
        self._clock = clock
        self._admission = admission
        self._sessions = sessions
        self._book = book
        self._table = table
        self._outcomes = outcomes

    async def submit(self, request: TrainingRequest) -> Operation:
        """Accept a request: when this returns it is valid, and its place in the model's order is
        fixed. A refused request takes nothing, so the caller may send a better one under the same
        seq_id. Never waits, so that nothing comes between the checks and the place."""
        entry = self._book.require(request.model_id)
        self._sessions.heard(entry.message.session_id)
        identity = _identity(request)
        hashed, size = hash_and_size(request) if identity else (b"", request.ByteSize())
        if identity:
            known = self._table.repeated(identity, hashed)
            if known is not None:
                return known.fill(Operation())
        self._admission.check()
        live = self._book.require_live(request.model_id)
        check_training_request(request, live.facts, live.optimizer)
        turn = _TrainingTurn(live, request, size, self._outcomes.of(live, request), self._table)
        try:
            live.sequencer.place(turn)
        except GatewayError:
            turn.let_go()
            raise
        return self._note(live, turn, KINDS[type(request)], identity, hashed).fill(Operation())

    async def refuse(self, request: TrainingRequest, error: GatewayError) -> Operation:
        """Accept a request that `submit` refused with `error`, or of which not everything could
        be read: it takes its turn, and then its operation fails with `error`. For clients that
        number their requests and cannot take a number back, so that what they send after it goes
        on. `request` has a model_id and a seq_id. Raises NOT_FOUND, PRECONDITION or EXHAUSTED as
        `submit` does."""
        entry = self._book.require(request.model_id)
        self._sessions.heard(entry.message.session_id)
        identity = _identity(request)
        hashed, _ = hash_and_size(request)
        known = self._table.repeated(identity, hashed)
        if known is not None:
            return known.fill(Operation())
        self._admission.check()
        live = self._book.require_live(request.model_id)
        turn = _RefusedTurn(request.seq_id, error, self._table)
        live.sequencer.place(turn)
        return self._note(live, turn, KINDS[type(request)], identity, hashed).fill(Operation())

    def _note(
        self,
        live: LiveModel,
        turn: _RecordedTurn,
        kind: OperationKind.ValueType,
        identity: str,
        hashed: bytes,
    ) -> Record:
        """The operation of a turn that has its place."""
        entry = live.entry
        turn.record = record = self._table.add(
            name=operation_name(entry.model_id, live.operation_part(turn.seq_id)),
            kind=kind,
            model_id=entry.model_id,
            seq_id=turn.seq_id,
            identity=identity,
            request_hash=hashed,
            parked=turn.parked,
        )
        record.cancel = partial(live.sequencer.cancel, turn)
        set_time(entry.message.last_request_time, self._clock.now())
        return record


def _identity(request: TrainingRequest) -> str:
    """What makes a repeat the same operation; empty if nothing does."""
    if request.HasField("seq_id"):
        return f"seq_id {request.seq_id} of model {request.model_id!r}"
    if request.request_id:
        return f"request_id {request.request_id!r} of model {request.model_id!r}"
    return ""


class _RecordedTurn(Turn[TrainingResult]):
    """A turn with an operation."""

    record: Record
    """Set as soon as the turn has its place, before anything can happen to it."""

    def released(self) -> None:
        """Those before it have arrived."""
        self.record.state = QUEUED


class _RefusedTurn(_RecordedTurn):
    """A request that is known to fail when its turn comes."""

    def __init__(self, seq_id: int, error: GatewayError, table: OperationTable) -> None:
        super().__init__(seq_id, 0)
        self._error = error
        self._table = table

    async def begin(self, on_start: OnStart) -> Submission:  # noqa: ARG002
        """Fail."""
        raise self._error

    def started(self) -> None:
        """It never starts."""

    def succeeded(self, result: TrainingResult) -> None:
        """It never succeeds."""
        raise AssertionError(f"a refused request has the result {result!r}")

    def failed(self, error: GatewayError) -> None:
        """Note why nothing came of it."""
        self._table.fail(self.record, error)


class _TrainingTurn(_RecordedTurn):
    """A training request on its way."""

    def __init__(
        self,
        live: LiveModel,
        request: TrainingRequest,
        size: int,
        outcome: Outcome,
        table: OperationTable,
    ) -> None:
        super().__init__(request.seq_id if request.HasField("seq_id") else None, size)
        self._live = live
        self._request: TrainingRequest | None = request
        self._outcome: Outcome | None = outcome
        self._table = table

    async def begin(self, on_start: OnStart) -> Submission:
        """Fill in what the caller left to the gateway, and hand the request to the backend."""
        assert self._request is not None
        assert self._outcome is not None
        self._outcome.prepare()
        submission = await self._live.route.backend.submit(self._request, on_start)
        self.record.queue_state = submission.queue_state
        return submission

    def started(self) -> None:
        """The backend works on it."""
        self._table.start(self.record)

    def succeeded(self, result: TrainingResult) -> None:
        """Note what came of it."""
        assert self._outcome is not None
        message = self._outcome.conclude(result)
        self.let_go()
        self._table.succeed(self.record, message)

    def failed(self, error: GatewayError) -> None:
        """Note why nothing came of it."""
        self.let_go()
        self._table.fail(self.record, error)

    def let_go(self) -> None:
        """Give back what was reserved. The record leads here by way of `cancel`, and is kept for
        long; the request's memory is not."""
        if self._outcome is not None:
            self._outcome.release()
        self._request = self._outcome = None
