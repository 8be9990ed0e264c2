"""The time, in one place so that tests can set it."""

from __future__ import annotations

import time

from google.protobuf.timestamp_pb2 import Timestamp


class Clock:
    """The system's clocks."""

    def now(self) -> int:
        """Nanoseconds since 1970 in UTC."""
        return time.time_ns()

    def elapsed(self) -> float:
        """Seconds since some moment; never goes back."""
        return time.monotonic()


def set_time(timestamp: Timestamp, nanoseconds: int) -> None:
    """Fill a Timestamp of a message. Written out because `FromNanoseconds` costs far more."""
    timestamp.seconds, timestamp.nanos = divmod(nanoseconds, 1_000_000_000)


def nanoseconds(timestamp: Timestamp) -> int:
    """A Timestamp as nanoseconds since 1970."""
    return timestamp.seconds * 1_000_000_000 + timestamp.nanos
