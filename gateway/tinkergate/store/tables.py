"""The tables. Columns hold what is looked for or counted; the rest of a session, model or
checkpoint is its protobuf message, which grows with the contract without a migration.

Times are nanoseconds since 1970 in UTC. `number` is the order of creation. Enum columns hold the
contract's numbers.
"""

from __future__ import annotations

from sqlalchemy import BigInteger, ForeignKey, Index, LargeBinary, MetaData, String
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

ID_LENGTH = 128
PATH_LENGTH = 512


class Row(DeclarativeBase):
    """A row of any table."""

    metadata = MetaData(
        naming_convention={
            "pk": "pk_%(table_name)s",
            "fk": "fk_%(table_name)s_%(column_0_name)s",
            "uq": "uq_%(table_name)s_%(column_0_name)s",
            "ix": "ix_%(table_name)s_%(column_0_name)s",
        }
    )


class SessionRow(Row):
    """A session."""

    __tablename__ = "sessions"

    session_id: Mapped[str] = mapped_column(String(ID_LENGTH), primary_key=True)
    number: Mapped[int] = mapped_column(BigInteger)
    state: Mapped[int]
    end_time: Mapped[int | None] = mapped_column(BigInteger)
    request_id: Mapped[str] = mapped_column(String(ID_LENGTH))
    request_hash: Mapped[bytes] = mapped_column(LargeBinary)
    message: Mapped[bytes] = mapped_column(LargeBinary)
    """A Session without its lists of models and samplers."""


class ModelRow(Row):
    """A model, also known as a training run."""

    __tablename__ = "models"

    model_id: Mapped[str] = mapped_column(String(ID_LENGTH), primary_key=True)
    number: Mapped[int] = mapped_column(BigInteger)
    session_id: Mapped[str] = mapped_column(ForeignKey("sessions.session_id"), index=True)
    state: Mapped[int]
    message: Mapped[bytes] = mapped_column(LargeBinary)
    """A Model."""


class OperationRow(Row):
    """An operation."""

    __tablename__ = "operations"
    __table_args__ = (Index("ix_operations_model_id_number", "model_id", "number"),)

    name: Mapped[str] = mapped_column(String(PATH_LENGTH), primary_key=True)
    number: Mapped[int] = mapped_column(BigInteger)
    model_id: Mapped[str] = mapped_column(ForeignKey("models.model_id"))
    kind: Mapped[int]
    state: Mapped[int]
    seq_id: Mapped[int | None]
    identity: Mapped[str] = mapped_column(String(PATH_LENGTH))
    """What makes a repeat of the request the same operation; empty if nothing does."""
    request_hash: Mapped[bytes] = mapped_column(LargeBinary)
    create_time: Mapped[int] = mapped_column(BigInteger)
    start_time: Mapped[int | None] = mapped_column(BigInteger)
    end_time: Mapped[int | None] = mapped_column(BigInteger)
    error: Mapped[bytes | None] = mapped_column(LargeBinary)
    """An OperationError."""
    result_bytes: Mapped[int] = mapped_column(BigInteger)
    """The size of the result, also once it is dropped; 0 if there never was one."""
    result: Mapped[bytes | None] = mapped_column(LargeBinary, deferred=True)
    """The result message that belongs to `kind`. Read on its own only."""


class CheckpointRow(Row):
    """A checkpoint. Its model need not be known: it may be imported, or outlive the model."""

    __tablename__ = "checkpoints"

    path: Mapped[str] = mapped_column(String(PATH_LENGTH), primary_key=True)
    number: Mapped[int] = mapped_column(BigInteger)
    model_id: Mapped[str] = mapped_column(String(ID_LENGTH), index=True)
    has_optimizer: Mapped[bool | None]
    """None if only the backend knows."""
    optimizer_steps: Mapped[int | None] = mapped_column(BigInteger)
    """How many optimizer steps the model had taken; None if only the backend knows."""
    message: Mapped[bytes] = mapped_column(LargeBinary)
    """A Checkpoint."""
