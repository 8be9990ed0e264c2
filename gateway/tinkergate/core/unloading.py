"""The last turn of a model."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from tinkergate.backends.base import OnStart
from tinkergate.core.model_entry import LiveModel
from tinkergate.core.operation_record import Record
from tinkergate.core.operation_table import OperationTable
from tinkergate.core.sequencer import Turn
from tinkergate.errors import GatewayError


def _too_late() -> bool:
    return False


@dataclass(frozen=True)
class _Unloading:
    result: Awaitable[None]
    cancel: Callable[[], bool] = _too_late


class UnloadTurn(Turn[None]):
    """Frees a model after everything that was submitted before."""

    def __init__(
        self,
        live: LiveModel,
        record: Record,
        table: OperationTable,
        when_gone: Callable[[LiveModel], None],
    ) -> None:
        super().__init__(None, 0)
        self._live = live
        self._record = record
        self._table = table
        self._when_gone = when_gone

    async def begin(self, on_start: OnStart) -> _Unloading:
        """Ask the backend to free the model."""
        on_start()
        return _Unloading(self._live.route.backend.unload_model(self._live.entry.model_id))

    def released(self) -> None:
        """Never: it has no seq_id."""
        raise AssertionError("an unloading is never parked")

    def started(self) -> None:
        """The backend was asked."""
        self._table.start(self._record)

    def succeeded(self, result: None) -> None:  # noqa: ARG002
        """The backend has let go of the model."""
        self._when_gone(self._live)

    def failed(self, error: GatewayError) -> None:
        """The backend has it still."""
        self._live.unload_record = None
        self._table.fail(self._record, error)
