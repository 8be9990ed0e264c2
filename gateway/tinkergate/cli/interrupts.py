"""Ctrl-C at a moment when it does no harm.

Python raises KeyboardInterrupt wherever the main thread happens to be. Inside a gRPC channel, or
between the taking of a lock and the block that gives it back, that leaves the lock taken for ever,
and every later call waits for it. There the interrupt is put off until the main thread has left;
where it waits, which it may do for long, it is interrupted at once as ever.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_AGAIN_SECONDS = 0.01

_WAITING = frozenset({"wait", "join", "_wait_for_tstate_lock"})
"""Where the threading module waits for others, holding nothing that it would not give back."""


@contextmanager
def careful_interrupts() -> Iterator[None]:
    """Handle SIGINT so within the block: on the main thread, and if nobody else handles it."""
    if (
        threading.current_thread() is not threading.main_thread()
        or signal.getsignal(signal.SIGINT) is not signal.default_int_handler
    ):
        yield
        return
    signal.signal(signal.SIGINT, _interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _interrupt(number: int, frame: FrameType | None) -> None:
    if _is_delicate(frame):
        again = threading.Timer(_AGAIN_SECONDS, os.kill, (os.getpid(), number))
        again.daemon = True
        again.start()
        return
    raise KeyboardInterrupt


def _is_delicate(frame: FrameType | None) -> bool:
    """Whether the innermost frame is about a lock, or belongs to gRPC and does not wait."""
    if frame is None:
        return False
    if _module(frame) == "threading":
        return frame.f_code.co_name not in _WAITING
    outer: FrameType | None = frame
    while outer is not None:
        if _module(outer).partition(".")[0] == "grpc":
            return True
        outer = outer.f_back
    return False


def _module(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__", ""))
