"""The one thread that writes. Changes wait in memory, those of one row melted into one, and are
written together in one transaction, so that nobody ever waits for the disk."""

from __future__ import annotations

import logging
import threading
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, Engine, Table, bindparam
from sqlalchemy.exc import OperationalError

_log = logging.getLogger(__name__)

LINGER = 0.05
"""Seconds that the first change waits for others to be written with it."""
ATTEMPTS = 4
RETRY_PAUSE = 0.25
"""Seconds after the first failed attempt; doubled after each."""

Values = dict[str, Any]
"""Column values by name."""
Key = tuple[str, Any]
"""A table's name and a primary key."""


class _Batch:
    """Changes that wait. Deletes come first when they are written, then inserts, then updates."""

    def __init__(self) -> None:
        self.deletes: dict[Key, None] = {}
        self.inserts: dict[Key, Values] = {}
        self.updates: dict[Key, Values] = {}
        self.size = 0

    def __bool__(self) -> bool:
        return bool(self.deletes or self.inserts or self.updates)

    def insert(self, key: Key, values: Values) -> None:
        self.inserts[key] = values

    def update(self, key: Key, values: Values) -> None:
        waiting = self.inserts.get(key)
        if waiting is None:
            waiting = self.updates.setdefault(key, {})
        waiting.update(values)

    def delete(self, key: Key) -> None:
        self.inserts.pop(key, None)
        self.updates.pop(key, None)
        self.deletes[key] = None

    def singles(self, tables: Sequence[str]) -> Iterator[_Batch]:
        """The changes one by one, in the order in which they are to be written."""
        place = {name: number for number, name in enumerate(tables)}
        for key in sorted(self.deletes, key=lambda key: -place[key[0]]):
            single = _Batch()
            single.delete(key)
            yield single
        for key in sorted(self.inserts, key=lambda key: place[key[0]]):
            single = _Batch()
            single.insert(key, self.inserts[key])
            yield single
        for key, values in self.updates.items():
            single = _Batch()
            single.update(key, values)
            yield single


class Writer:
    """Writes changes behind the caller's back, in the order they were made."""

    def __init__(self, engine: Engine, tables: Iterable[Table]) -> None:
        """`tables` in an order in which rows may be inserted, each with one primary key column."""
        self._engine = engine
        self._tables = list(tables)
        self._lock = threading.Lock()
        # Waking a thread takes the interpreter away from the waker, so the writer is only woken
        # by the first change of a batch, and while it lingers only by those in a hurry.
        self._changed = threading.Condition(self._lock)
        self._hurried = threading.Condition(self._lock)
        self._progressed = threading.Condition(self._lock)
        self._batch = _Batch()
        self._writing_bytes = 0
        self._accepted = 0
        self._written = 0
        self._urgent = False
        self._closing = False
        self._is_awake = False
        self.failures = 0
        """How often something could not be written and was lost."""
        self._thread = threading.Thread(target=self._run, name="store-writer", daemon=True)
        self._thread.start()

    @property
    def backlog_bytes(self) -> int:
        """The size of what is not written yet."""
        return self._batch.size + self._writing_bytes

    def insert(self, table: Table, key: Any, values: Values, size: int = 0) -> None:
        """Add a row. Columns that are not given are NULL."""
        with self._lock:
            self._batch.insert((table.name, key), values)
            self._note(size)

    def update(self, table: Table, key: Any, values: Values, size: int = 0) -> None:
        """Change some columns of a row."""
        with self._lock:
            self._batch.update((table.name, key), values)
            self._note(size)

    def delete(self, table: Table, key: Any) -> None:
        """Remove a row."""
        with self._lock:
            self._batch.delete((table.name, key))
            self._note(0)

    def _note(self, size: int) -> None:
        self._batch.size += size
        self._accepted += 1
        if not self._is_awake:
            self._is_awake = True
            self._changed.notify()

    def _hurry(self) -> None:
        self._changed.notify()
        self._hurried.notify()

    def flush(self) -> None:
        """Wait until everything that was changed before is written (or given up)."""
        with self._lock:
            until = self._accepted
            self._urgent = True
            self._hurry()
            self._progressed.wait_for(lambda: self._written >= until)

    def close(self) -> None:
        """Write what is left and end the thread."""
        with self._lock:
            self._closing = True
            self._hurry()
        self._thread.join()

    def _run(self) -> None:
        while True:
            with self._lock:
                self._is_awake = False
                self._changed.wait_for(lambda: self._batch or self._urgent or self._closing)
                self._is_awake = True
                if self._batch:
                    self._hurried.wait_for(lambda: self._urgent or self._closing, LINGER)
                batch, self._batch = self._batch, _Batch()
                accepted, self._writing_bytes = self._accepted, batch.size
                self._urgent = False
                last = self._closing
            if batch:
                self._write_surely(batch)
            with self._lock:
                self._written, self._writing_bytes = accepted, 0
                self._progressed.notify_all()
                if last and not self._batch:
                    return

    def _write_surely(self, batch: _Batch) -> None:
        """Write, again if the database was busy; never raises, because the thread must live."""
        pause = RETRY_PAUSE
        for attempt in range(1, ATTEMPTS + 1):
            try:
                self._write(batch)
                return
            except OperationalError:
                if attempt == ATTEMPTS:
                    _log.exception("could not write to the store; what waited is lost")
                    self.failures += 1
                    return
                _log.warning("could not write to the store; trying again", exc_info=True)
                with self._lock:
                    self._hurried.wait_for(lambda: self._closing, pause)
                pause *= 2
            except Exception:
                _log.warning("could not write changes together; writing one by one", exc_info=True)
                self._write_singly(batch)
                return

    def _write_singly(self, batch: _Batch) -> None:
        """Write a batch of which some change is bad, so that only the bad ones are lost."""
        for single in batch.singles([table.name for table in self._tables]):
            try:
                self._write(single)
            except Exception:
                _log.exception("could not write a change to the store; it is lost")
                self.failures += 1

    def _write(self, batch: _Batch) -> None:
        with self._engine.begin() as connection:
            self._write_in(connection, batch)

    def _write_in(self, connection: Connection, batch: _Batch) -> None:
        deletes, inserts = _by_table(batch.deletes), _by_table(batch.inserts)
        updates = _by_table(batch.updates)
        for table in reversed(self._tables):
            if keys := deletes.get(table.name):
                (column,) = table.primary_key.columns
                connection.execute(
                    table.delete().where(column == bindparam("the_key")),
                    [{"the_key": key} for key in keys],
                )
        for table in self._tables:
            if keys := inserts.get(table.name):
                blank = dict.fromkeys(table.columns.keys())
                rows = [blank | batch.inserts[table.name, key] for key in keys]
                connection.execute(table.insert(), rows)
        for table in self._tables:
            self._write_updates(connection, table, batch, updates.get(table.name, ()))

    def _write_updates(
        self, connection: Connection, table: Table, batch: _Batch, keys: Iterable[Any]
    ) -> None:
        """Rows of which the same columns change are one statement."""
        groups: defaultdict[tuple[str, ...], list[Values]] = defaultdict(list)
        for key in keys:
            values = batch.updates[table.name, key]
            groups[tuple(sorted(values))].append({"the_key": key} | values)
        (column,) = table.primary_key.columns
        for names, rows in groups.items():
            statement = (
                table.update()
                .where(column == bindparam("the_key"))
                .values({name: bindparam(name) for name in names})
            )
            connection.execute(statement, rows)


def _by_table(keys: Iterable[Key]) -> Mapping[str, list[Any]]:
    grouped: defaultdict[str, list[Any]] = defaultdict(list)
    for table, key in keys:
        grouped[table].append(key)
    return grouped
