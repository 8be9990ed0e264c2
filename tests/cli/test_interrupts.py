"""Ctrl-C is put off where it would leave a lock taken, and nowhere else."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from tinkergate.cli.interrupts import careful_interrupts

PROGRAM = """
import threading, time
from tinkergate.cli.interrupts import careful_interrupts

lock = threading.Condition(threading.Lock())
with careful_interrupts():
    try:
        print("ready", flush=True)  # the signal may come before this returns
        while True:
            with lock:  # most of the time is spent in taking and giving back
                pass
    except KeyboardInterrupt:
        print("free" if lock.acquire(timeout=1) else "taken", flush=True)
"""


def test_a_lock_is_never_left_taken() -> None:
    for _ in range(8):
        with subprocess.Popen(
            [sys.executable, "-c", PROGRAM], stdout=subprocess.PIPE, text=True
        ) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            process.send_signal(signal.SIGINT)
            out, _ = process.communicate(timeout=60)
        assert out == "free\n"


def test_who_waits_is_interrupted_at_once() -> None:
    waiting = threading.Event()
    interrupt = threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT))
    with careful_interrupts():
        interrupt.start()
        with pytest.raises(KeyboardInterrupt):
            waiting.wait(60)


def test_an_interrupt_within_grpc_comes_when_it_is_left() -> None:
    reached: list[str] = []
    inside = {"__name__": "grpc._channel", "os": os, "signal": signal, "reached": reached}
    exec(
        "def create():\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "    for _ in range(100): pass\n"
        "    reached.append('end')\n",
        inside,
    )
    with careful_interrupts(), pytest.raises(KeyboardInterrupt):
        inside["create"]() or time.sleep(60)  # type: ignore[operator]
    assert reached == ["end"]


def test_the_handler_is_put_back_and_anothers_left_alone() -> None:
    with careful_interrupts():
        assert signal.getsignal(signal.SIGINT) is not signal.default_int_handler
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with careful_interrupts():
            assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
