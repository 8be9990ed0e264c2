"""What has to be remembered of a request until its result is told."""

from __future__ import annotations

from collections import OrderedDict

from tinkergate.dialects.loops.read_training import PassNote

MAX_BYTES = 64 << 20


class Notes:
    """The notes of the passes, by the names of their operations, the newest as far as they fit into
    the bound."""

    def __init__(self, max_bytes: int = MAX_BYTES) -> None:
        self._max_bytes = max_bytes
        self._notes: OrderedDict[str, PassNote] = OrderedDict()
        self._bytes = 0

    def add(self, name: str, note: PassNote) -> None:
        """Keep a note. One that is there already stays."""
        if name in self._notes:
            return
        self._notes[name] = note
        self._bytes += note.size
        while self._bytes > self._max_bytes and len(self._notes) > 1:
            _, dropped = self._notes.popitem(last=False)
            self._bytes -= dropped.size

    def find(self, name: str) -> PassNote | None:
        """The note of an operation, if it is still there."""
        return self._notes.get(name)
