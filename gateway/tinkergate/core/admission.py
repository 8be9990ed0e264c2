"""Whether the gateway as a whole takes on more work."""

from __future__ import annotations

from tinkergate.core.settings import CoreSettings
from tinkergate.errors import GatewayError, Kind
from tinkergate.store import Store
from tinkergate.v1 import ErrorReason


def queue_full(message: str, retry_after: float) -> GatewayError:
    """A bounded queue has no room."""
    return GatewayError(
        Kind.EXHAUSTED,
        ErrorReason.ERROR_REASON_QUEUE_FULL,
        message,
        retry_after=retry_after,
    )


RESTART_SECONDS = 1.0
"""What callers are told to wait for another gateway to be there, or this one again."""


def shutting_down() -> GatewayError:
    """The gateway takes no new work because it is stopping."""
    return GatewayError(
        Kind.UNAVAILABLE,
        ErrorReason.ERROR_REASON_SHUTTING_DOWN,
        "the gateway is shutting down",
        retry_after=RESTART_SECONDS,
    )


class Admission:
    """The gateway's door keeper for new work, and its account of the bytes of requests that wait
    or run."""

    def __init__(self, settings: CoreSettings, store: Store) -> None:
        self._settings = settings
        self._store = store
        self._closed = False
        self.queued_bytes = 0

    def close(self) -> None:
        """Take no more work."""
        self._closed = True

    def check(self) -> None:
        """Raise if no new work is taken."""
        self.check_open()
        if self._store.behind:
            raise queue_full(
                "the gateway's store is too far behind its work",
                self._settings.queue_retry_delay,
            )

    def check_open(self) -> None:
        """Raise if the gateway is stopping. For work that leaves no trace in the store."""
        if self._closed:
            raise shutting_down()

    def take(self, size: int, *, parked: bool) -> None:
        """Account for a request of `size` bytes, or raise.

        Parked requests leave room for one largest message: the request that they all wait for
        must fit in when it comes.
        """
        limit = self._settings.max_queued_bytes
        if parked:
            limit -= self._settings.max_message_bytes
        if self.queued_bytes + size > limit and self.queued_bytes:
            raise queue_full(
                f"{self.queued_bytes} bytes of requests are waiting, and {size} more would be "
                f"over the {limit} that may wait",
                self._settings.queue_retry_delay,
            )
        self.queued_bytes += size

    def give_back(self, size: int) -> None:
        """A request that was taken is done."""
        self.queued_bytes -= size
