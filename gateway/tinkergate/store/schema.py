"""Bringing a database to the schema of this version."""

from __future__ import annotations

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection

MIGRATIONS = Path(__file__).parent / "migrations"


class SchemaError(Exception):
    """The database was written by a version that this one does not know. The text is written for
    people."""


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    return config


def upgrade(connection: Connection) -> None:
    """Run the migrations that the database has not seen. Raises `SchemaError` for a database of a
    newer version."""
    config = _config()
    present = MigrationContext.configure(connection).get_current_revision()
    known = {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}
    if present is not None and present not in known:
        raise SchemaError(
            f"the database {connection.engine.url.render_as_string()} has schema version "
            f"{present}, which this version of Tinkergate does not know; it was written by a newer "
            "one. Use that one, or another data folder (--data-dir)"
        )
    config.attributes["connection"] = connection
    command.upgrade(config, "head")
