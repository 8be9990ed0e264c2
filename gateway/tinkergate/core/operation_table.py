"""The operations that are remembered, and their results.

Everything is in memory; the store follows. A record is found by its name or by the identity of
the request that made it. Results are kept for a time and within a byte budget, the oldest going
first; a record outlives its result, so that late callers learn what became of the operation.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from google.protobuf.message import Message

from tinkergate.core.clock import Clock
from tinkergate.core.identity import conflict
from tinkergate.core.operation_record import (
    CANCELLED,
    FAILED,
    PARKED,
    RUNNING,
    SUCCEEDED,
    Record,
    set_result,
)
from tinkergate.core.settings import CoreSettings
from tinkergate.errors import GatewayError, Kind
from tinkergate.store import OperationRow, Store
from tinkergate.v1 import (
    ErrorReason,
    OperationError,
    OperationKind,
    OperationState,
    WaitOperationResponse,
)

RESULT_OVERHEAD: Final = 1024
"""Bytes that a result takes beside its own: small ones are mostly that."""


class OperationTable:
    """All operations that are remembered."""

    def __init__(self, settings: CoreSettings, store: Store, clock: Clock) -> None:
        self._settings = settings
        self._store = store
        self._clock = clock
        self._records: dict[str, Record] = {}
        self._by_identity: dict[str, Record] = {}
        self._ended: OrderedDict[str, Record] = OrderedDict()
        """Records that are done, in the order in which they ended."""
        self._kept: OrderedDict[str, Record] = OrderedDict()
        """Those whose result is kept."""
        self._kept_bytes = 0
        self._next_number = 1

    @property
    def kept_bytes(self) -> int:
        """What all results that are kept count against the budget."""
        return self._kept_bytes

    def __len__(self) -> int:
        return len(self._records)

    def newest_first(self) -> Iterator[Record]:
        """All records."""
        return reversed(self._records.values())

    def find(self, name: str) -> Record | None:
        """The record of that name, if there is one."""
        return self._records.get(name)

    def require(self, name: str) -> Record:
        """The record of that name. Raises NOT_FOUND."""
        record = self.find(name)
        if record is None:
            raise GatewayError(
                Kind.NOT_FOUND,
                ErrorReason.ERROR_REASON_OPERATION_NOT_FOUND,
                f"there is no operation {name!r}, or it is forgotten",
            )
        return record

    def repeated(self, identity: str, request_hash: bytes) -> Record | None:
        """The record of that identity, if there is one. Raises CONFLICT if it was made by another
        request."""
        record = self._by_identity.get(identity)
        if record is not None and record.request_hash != request_hash:
            raise conflict(identity)
        return record

    def add(
        self,
        *,
        name: str,
        kind: OperationKind.ValueType,
        model_id: str,
        seq_id: int | None = None,
        identity: str = "",
        request_hash: bytes = b"",
        parked: bool = False,
    ) -> Record:
        """A new record, queued or parked."""
        record = Record(
            name=name,
            number=self._next_number,
            kind=kind,
            model_id=model_id,
            seq_id=seq_id,
            identity=identity,
            request_hash=request_hash,
            create_time=self._clock.now(),
        )
        if parked:
            record.state = PARKED
        self._next_number += 1
        self._records[name] = record
        if identity:
            self._by_identity[identity] = record
        self._store.insert(
            OperationRow,
            name=name,
            number=record.number,
            model_id=model_id,
            kind=kind,
            state=record.state,
            seq_id=seq_id,
            identity=identity,
            request_hash=request_hash,
            create_time=record.create_time,
            result_bytes=0,
        )
        return record

    def start(self, record: Record) -> None:
        """Work on the operation has begun."""
        if not record.done and record.start_time is None:
            record.state = RUNNING
            record.start_time = self._clock.now()

    def succeed(self, record: Record, result: Message) -> None:
        """The operation is done. `result` is copied. What has ended before stays as it is."""
        if record.done:
            return
        record.state = SUCCEEDED
        answer = self._end(record)
        # Taking the size of a message costs as much as serialising it, so it is done once, for the
        # size, the store and the copy.
        packed = result.SerializeToString()
        set_result(answer, record.kind, packed)
        # At least 1, so that an empty result can expire like any other.
        record.result_bytes = max(1, len(packed))
        record.answer = answer
        self._store.update(
            OperationRow,
            record.name,
            size=record.result_bytes,
            result=packed,
            result_bytes=record.result_bytes,
            state=record.state,
            start_time=record.start_time,
            end_time=record.end_time,
        )
        record.wake(answer)
        self._keep(record)

    def fail(self, record: Record, error: GatewayError) -> None:
        """The operation has failed, or was cancelled if that is the kind of `error`. What has
        ended before stays as it is."""
        if record.done:
            return
        record.state = CANCELLED if error.kind is Kind.CANCELLED else FAILED
        record.error = error.to_operation_error()
        answer = self._end(record)
        self._store.update(
            OperationRow,
            record.name,
            error=record.error.SerializeToString(),
            state=record.state,
            start_time=record.start_time,
            end_time=record.end_time,
        )
        record.wake(answer)

    def _end(self, record: Record) -> WaitOperationResponse:
        record.end_time = self._clock.now()
        record.cancel = record.queue_state = None
        self._ended[record.name] = record
        answer = WaitOperationResponse()
        record.fill(answer.operation)
        return answer

    def _keep(self, record: Record) -> None:
        """Count a new result against the budget; the newest is kept whatever its size."""
        self._kept[record.name] = record
        self._kept_bytes += _weight(record)
        while self._kept_bytes > self._settings.result_byte_budget and len(self._kept) > 1:
            self._drop_result(next(iter(self._kept.values())))

    def _drop_result(self, record: Record) -> None:
        del self._kept[record.name]
        self._kept_bytes -= _weight(record)
        record.answer = None
        record.stored = False
        self._store.update(OperationRow, record.name, result=None)

    async def answer(self, record: Record) -> WaitOperationResponse:
        """The operation as it is now, with its result if that is still kept. Not to be changed."""
        if record.answer is None and record.stored:
            packed = await self._store.load_result(record.name)
            if record.stored:
                self._take_up(record, packed)
        if record.answer is not None:
            return record.answer
        response = WaitOperationResponse()
        record.fill(response.operation)
        return response

    def _take_up(self, record: Record, packed: bytes | None) -> None:
        """A result was read from the store."""
        record.stored = False
        if packed is None:
            self._kept_bytes -= _weight(record)
            self._kept.pop(record.name, None)
            return
        answer = WaitOperationResponse()
        set_result(answer, record.kind, packed)
        record.answer = answer
        record.fill(answer.operation)

    def fail_unfinished(self, error: GatewayError) -> None:
        """The gateway stops: fail whatever is not done."""
        for record in self._records.values():
            if not record.done:
                self.fail(record, error)

    def reap(self) -> None:
        """Drop results and records that are kept long enough."""
        now = self._clock.now()
        oldest_result = now - round(self._settings.result_retention * 1e9)
        while self._kept:
            record = next(iter(self._kept.values()))
            if (record.end_time or 0) > oldest_result:
                break
            self._drop_result(record)
        oldest = now - round(self._settings.operation_retention * 1e9)
        while self._ended:
            record = next(iter(self._ended.values()))
            too_many = len(self._records) > self._settings.max_operations
            if (record.end_time or 0) > oldest and not too_many:
                break
            self._forget(record)

    def _forget(self, record: Record) -> None:
        self._ended.pop(record.name, None)
        del self._records[record.name]
        self._by_identity.pop(record.identity, None)
        if self._kept.pop(record.name, None) is not None:
            self._kept_bytes -= _weight(record)
        self._store.delete(OperationRow, record.name)

    def forget_models(self, model_ids: Iterable[str]) -> None:
        """Forget the operations of models that are themselves forgotten."""
        gone = set(model_ids)
        for record in [r for r in self._records.values() if r.model_id in gone]:
            self._forget(record)

    def restore(self, rows: Sequence[OperationRow], lost: GatewayError) -> None:
        """Take up what an earlier run of the gateway left; what was not done fails as `lost`."""
        unfinished = []
        for row in rows:
            record = Record(
                name=row.name,
                number=row.number,
                kind=OperationKind.ValueType(row.kind),
                model_id=row.model_id,
                seq_id=row.seq_id,
                identity=row.identity,
                request_hash=row.request_hash,
                create_time=row.create_time,
            )
            record.state = OperationState.ValueType(row.state)
            record.start_time, record.end_time = row.start_time, row.end_time
            record.result_bytes = row.result_bytes
            if row.error is not None:
                record.error = OperationError.FromString(row.error)
            self._records[row.name] = record
            if row.identity:
                self._by_identity[row.identity] = record
            if not record.done:
                unfinished.append(record)
            self._next_number = row.number + 1
        ended = [record for record in self._records.values() if record.done]
        for record in sorted(ended, key=lambda record: record.end_time or 0):
            self._ended[record.name] = record
            if record.result_bytes and record.error is None:
                record.stored = True
                self._keep(record)
        for record in unfinished:
            self.fail(record, lost)


def _weight(record: Record) -> int:
    """What a kept result counts against the budget."""
    return record.result_bytes + RESULT_OVERHEAD
