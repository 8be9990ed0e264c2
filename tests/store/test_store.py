from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import Table, create_engine, text
from sqlalchemy.dialects import postgresql
from sqlalchemy.schema import CreateTable

from tinkergate.errors import GatewayError, Kind
from tinkergate.store import (
    CheckpointRow,
    ModelRow,
    OperationRow,
    Row,
    SchemaError,
    SessionRow,
    Store,
    schema,
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "sub folder" / "gateway.db"


@pytest.fixture
def store(path: Path) -> Iterator[Store]:
    store = Store(f"sqlite:///{path}")
    store.open()
    yield store
    store.close()


def add_session(store: Store, session_id: str = "s", number: int = 1) -> None:
    store.insert(
        SessionRow,
        session_id=session_id,
        number=number,
        state=1,
        request_id="",
        request_hash=b"",
        message=b"",
    )


def add_model(store: Store) -> None:
    add_session(store)
    store.insert(ModelRow, model_id="m", number=1, session_id="s", state=1, message=b"")


def add_operation(store: Store, name: str = "o", number: int = 1) -> None:
    store.insert(
        OperationRow,
        name=name,
        number=number,
        model_id="m",
        kind=5,
        state=2,
        identity="",
        request_hash=b"",
        create_time=number,
        result_bytes=0,
    )


async def test_what_is_written_is_read_again(store: Store, path: Path) -> None:
    add_model(store)
    for number in (2, 1):
        add_operation(store, f"o{number}", number)
    store.update(OperationRow, "o1", state=4, result=b"packed", result_bytes=9, end_time=7)
    store.insert(CheckpointRow, path="p", number=1, model_id="x", message=b"c", has_optimizer=True)
    await store.flush()
    contents = store.load()
    assert [row.name for row in contents.operations] == ["o1", "o2"]
    first, second = contents.operations
    assert (first.state, first.end_time, first.result_bytes) == (4, 7, 9)
    assert (second.state, second.end_time, second.seq_id) == (2, None, None)
    assert contents.checkpoints[0].has_optimizer is True
    assert await store.load_result("o1") == b"packed"
    assert await store.load_result("o2") is None
    assert await store.load_result("none") is None


def test_closing_writes_what_is_left(path: Path) -> None:
    store = Store(f"sqlite:///{path}")
    store.open()
    add_session(store)
    store.close()
    store.close()
    store.open()
    assert [row.session_id for row in store.load().sessions] == ["s"]
    store.close()


async def test_rows_go_in_an_order_that_keeps_foreign_keys(store: Store) -> None:
    add_operation(store)
    add_model(store)
    await store.flush()
    store.delete(SessionRow, "s")
    store.delete(ModelRow, "m")
    store.delete(OperationRow, "o")
    await store.flush()
    assert store.load().sessions == []
    assert store.failures == 0


async def test_a_bad_change_is_lost_alone(store: Store) -> None:
    store.insert(ModelRow, model_id="orphan", number=1, session_id="none", state=1, message=b"")
    add_operation(store)
    add_model(store)
    store.update(SessionRow, "s", state=3)
    await store.flush()
    contents = store.load()
    assert [row.model_id for row in contents.models] == ["m"]
    assert [row.name for row in contents.operations] == ["o"]
    assert contents.sessions[0].state == 3
    assert store.failures == 1


async def test_a_row_may_be_replaced_within_one_batch(store: Store) -> None:
    def save(number: int) -> None:
        store.insert(CheckpointRow, path="p", number=number, model_id="m", message=b"")

    save(1)
    await store.flush()
    store.delete(CheckpointRow, "p")
    save(2)
    store.update(CheckpointRow, "p", message=b"x")
    await store.flush()
    (row,) = store.load().checkpoints
    assert (row.number, row.message) == (2, b"x")
    store.delete(CheckpointRow, "p")
    save(3)
    store.delete(CheckpointRow, "p")
    await store.flush()
    assert store.load().checkpoints == []
    assert store.failures == 0


CHANGES = st.lists(
    st.tuples(
        st.sampled_from(["insert", "update", "delete", "flush"]),
        st.sampled_from(["a", "b", "c"]),
        st.integers(0, 99),
    ),
    max_size=40,
)


@given(CHANGES)
@settings(max_examples=30, deadline=None)
def test_the_store_ends_as_the_changes_say(
    tmp_path_factory: pytest.TempPathFactory, changes: list[tuple[str, str, int]]
) -> None:
    store = Store(f"sqlite:///{tmp_path_factory.mktemp('changes')}/gateway.db")
    store.open()
    rows: dict[str, int] = {}
    for what, key, value in changes:
        if what == "insert" and key not in rows:
            rows[key] = value
            store.insert(CheckpointRow, path=key, number=value, model_id="m", message=b"")
        elif what == "update" and key in rows:
            rows[key] = value
            store.update(CheckpointRow, key, number=value)
        elif what == "delete":
            rows.pop(key, None)
            store.delete(CheckpointRow, key)
        elif what == "flush":
            store._open_writer.flush()
    store._open_writer.flush()
    assert {row.path: row.number for row in store.load().checkpoints} == rows
    assert store.failures == 0
    store.close()


def test_migrations_make_what_the_tables_say(store: Store, path: Path) -> None:
    store.close()
    engine = create_engine(f"sqlite:///{path}")
    with engine.connect() as connection:
        differences = compare_metadata(MigrationContext.configure(connection), Row.metadata)
    engine.dispose()
    assert differences == []


def test_a_database_of_an_earlier_version_is_brought_up_with_what_it_holds(path: Path) -> None:
    path.parent.mkdir()
    engine = create_engine(f"sqlite:///{path}")
    config = schema._config()
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "0001")
        connection.execute(
            text(
                "INSERT INTO checkpoints (path, number, model_id, has_optimizer, message)"
                " VALUES ('p', 7, 'm', 1, x'00ff')"
            )
        )
    engine.dispose()
    store = Store(f"sqlite:///{path}")
    store.open()
    [row] = store.load().checkpoints
    store.close()
    assert (row.path, row.number, row.model_id, row.has_optimizer) == ("p", 7, "m", True)
    assert (row.message, row.optimizer_steps) == (b"\x00\xff", None)


@pytest.mark.parametrize("table", Row.metadata.sorted_tables, ids=lambda table: table.name)
def test_the_tables_can_be_made_in_postgresql(table: Table) -> None:
    made = str(CreateTable(table).compile(dialect=postgresql.dialect()))
    assert "BIGINT" in made
    assert "BYTEA" in made


def test_a_newer_database_is_refused_and_left_alone(store: Store, path: Path) -> None:
    store.close()
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    connection.close()
    with pytest.raises(SchemaError, match=r"schema version 9999.*newer"):
        store.open()
    with sqlite3.connect(path) as connection:
        assert connection.execute("SELECT version_num FROM alembic_version").fetchall() == [
            ("9999",)
        ]
    connection.close()


async def test_a_database_that_is_busy_is_waited_for(store: Store, path: Path) -> None:
    other = sqlite3.connect(path, check_same_thread=False)
    other.execute("BEGIN IMMEDIATE")
    add_session(store)
    release = threading.Timer(0.1, other.rollback)
    release.start()
    await store.flush()
    release.join()
    other.close()
    assert len(store.load().sessions) == 1
    assert store.failures == 0


def test_a_long_backlog_is_told(path: Path) -> None:
    store = Store(f"sqlite:///{path}", max_backlog_bytes=100)
    store.open()
    other = sqlite3.connect(path)
    other.execute("BEGIN IMMEDIATE")
    add_session(store)
    assert not store.behind
    store.insert(
        SessionRow,
        size=101,
        session_id="t",
        number=2,
        state=1,
        request_id="",
        request_hash=b"",
        message=b"x" * 101,
    )
    assert store.behind
    other.rollback()
    other.close()
    store._open_writer.flush()
    assert not store.behind
    store.close()


def test_a_store_that_is_not_open_says_so(path: Path) -> None:
    with pytest.raises(GatewayError, match="store is closed") as caught:
        Store(f"sqlite:///{path}").load()
    assert caught.value.kind is Kind.UNAVAILABLE
