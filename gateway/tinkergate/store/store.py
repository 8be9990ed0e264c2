"""The database behind the gateway: read once at start, written behind afterwards."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, Table, create_engine, event, make_url, select
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.orm import Session as OrmSession
from sqlalchemy.orm import undefer
from sqlalchemy.pool import ConnectionPoolEntry

from tinkergate.errors import GatewayError, Kind
from tinkergate.store import schema
from tinkergate.store.tables import CheckpointRow, ModelRow, OperationRow, Row, SessionRow
from tinkergate.store.writer import Writer
from tinkergate.v1 import ErrorReason

MAX_BACKLOG_BYTES = 512 << 20


@dataclass(frozen=True)
class Contents:
    """Everything that the store holds but the results of operations. Each list in the order of
    creation."""

    sessions: Sequence[SessionRow]
    models: Sequence[ModelRow]
    operations: Sequence[OperationRow]
    checkpoints: Sequence[CheckpointRow]


def _primary_key(row: type[Row]) -> str:
    (column,) = row.__mapper__.primary_key
    return str(column.key)


class Store:
    """What has to survive a restart. The memory of the gateway is what counts while it runs;
    the store follows it a moment later."""

    def __init__(self, url: str, *, max_backlog_bytes: int = MAX_BACKLOG_BYTES) -> None:
        """`url` is an SQLAlchemy URL, such as "sqlite:////var/lib/tinkergate/tinkergate.db".
        `max_backlog_bytes` is how much may wait to be written before `behind` says so."""
        self._url = make_url(url)
        self._max_backlog_bytes = max_backlog_bytes
        self._engine: Engine | None = None
        self._writer: Writer | None = None

    @property
    def behind(self) -> bool:
        """Whether so much waits to be written that no more work should be taken on."""
        return self._open_writer.backlog_bytes > self._max_backlog_bytes

    @property
    def failures(self) -> int:
        """How often something could not be written and was lost."""
        return self._open_writer.failures

    @property
    def _open_engine(self) -> Engine:
        if self._engine is None:
            raise _closed()
        return self._engine

    @property
    def _open_writer(self) -> Writer:
        if self._writer is None:
            raise _closed()
        return self._writer

    def open(self) -> None:
        """Connect and bring the schema up to date. Blocks. Raises `schema.SchemaError`."""
        if self._url.get_backend_name() == "sqlite" and self._url.database:
            Path(self._url.database).parent.mkdir(parents=True, exist_ok=True)
        engine = create_engine(self._url)
        if engine.dialect.name == "sqlite":
            event.listen(engine, "connect", _set_up_sqlite)
        try:
            with engine.begin() as connection:
                schema.upgrade(connection)
        except BaseException:
            engine.dispose()
            raise
        self._engine = engine
        self._writer = Writer(engine, Row.metadata.sorted_tables)

    def close(self) -> None:
        """Write what is left and disconnect. Blocks. Closing twice is no error."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None
        if self._engine is not None:
            self._engine.dispose()
            self._engine = None

    def load(self) -> Contents:
        """Read everything but results. Blocks."""
        with OrmSession(self._open_engine, expire_on_commit=False) as session:
            contents = Contents(
                sessions=session.scalars(select(SessionRow).order_by(SessionRow.number)).all(),
                models=session.scalars(select(ModelRow).order_by(ModelRow.number)).all(),
                operations=session.scalars(
                    select(OperationRow).order_by(OperationRow.number)
                ).all(),
                checkpoints=session.scalars(
                    select(CheckpointRow).order_by(CheckpointRow.number)
                ).all(),
            )
            session.expunge_all()
        return contents

    async def load_result(self, name: str) -> bytes | None:
        """The packed result of an operation; None if there is none."""
        return await asyncio.to_thread(self._load_result, name)

    def _load_result(self, name: str) -> bytes | None:
        with OrmSession(self._open_engine) as session:
            row = session.get(OperationRow, name, options=[undefer(OperationRow.result)])
            return None if row is None else row.result

    def insert(self, row: type[Row], /, *, size: int = 0, **values: Any) -> None:
        """Add a row, soon. Columns that are not given are NULL. `size` is what the row weighs in
        memory, where that is much."""
        self._open_writer.insert(_table(row), values[_primary_key(row)], values, size)

    def update(self, row: type[Row], key: str, /, *, size: int = 0, **values: Any) -> None:
        """Change columns of a row, soon."""
        self._open_writer.update(_table(row), key, values, size)

    def delete(self, row: type[Row], key: str, /) -> None:
        """Remove a row, soon."""
        self._open_writer.delete(_table(row), key)

    async def flush(self) -> None:
        """Wait until everything that was changed before is written."""
        await asyncio.to_thread(self._open_writer.flush)


def _closed() -> GatewayError:
    """Calls come in until the very end."""
    return GatewayError(
        Kind.UNAVAILABLE,
        ErrorReason.ERROR_REASON_SHUTTING_DOWN,
        "the gateway's store is closed",
        retry_after=1.0,
    )


def _table(row: type[Row]) -> Table:
    table = row.__table__
    assert isinstance(table, Table)
    return table


def _set_up_sqlite(connection: DBAPIConnection, _entry: ConnectionPoolEntry) -> None:
    """Readers do not wait for the writer (WAL), and a commit does not wait for the platter: after
    a power cut the last moments may be missing, but the file is whole."""
    cursor = connection.cursor()
    for pragma in (
        "journal_mode=WAL",
        "synchronous=NORMAL",
        "busy_timeout=5000",
        "foreign_keys=ON",
    ):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()
