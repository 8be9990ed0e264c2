"""Sessions, models, operations and checkpoints."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the tables."""
    op.create_table(
        "sessions",
        sa.Column("session_id", sa.String(128), nullable=False),
        sa.Column("number", sa.BigInteger(), nullable=False),
        sa.Column("state", sa.Integer(), nullable=False),
        sa.Column("end_time", sa.BigInteger(), nullable=True),
        sa.Column("request_id", sa.String(128), nullable=False),
        sa.Column("request_hash", sa.LargeBinary(), nullable=False),
        sa.Column("message", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("session_id", name="pk_sessions"),
    )
    op.create_table(
        "models",
        sa.Column("model_id", sa.String(128), nullable=False),
        sa.Column("number", sa.BigInteger(), nullable=False),
        sa.Column("session_id", sa.String(128), nullable=False),
        sa.Column("state", sa.Integer(), nullable=False),
        sa.Column("message", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("model_id", name="pk_models"),
        sa.ForeignKeyConstraint(
            ["session_id"], ["sessions.session_id"], name="fk_models_session_id"
        ),
    )
    op.create_index("ix_models_session_id", "models", ["session_id"])
    op.create_table(
        "operations",
        sa.Column("name", sa.String(512), nullable=False),
        sa.Column("number", sa.BigInteger(), nullable=False),
        sa.Column("model_id", sa.String(128), nullable=False),
        sa.Column("kind", sa.Integer(), nullable=False),
        sa.Column("state", sa.Integer(), nullable=False),
        sa.Column("seq_id", sa.Integer(), nullable=True),
        sa.Column("identity", sa.String(512), nullable=False),
        sa.Column("request_hash", sa.LargeBinary(), nullable=False),
        sa.Column("create_time", sa.BigInteger(), nullable=False),
        sa.Column("start_time", sa.BigInteger(), nullable=True),
        sa.Column("end_time", sa.BigInteger(), nullable=True),
        sa.Column("error", sa.LargeBinary(), nullable=True),
        sa.Column("result_bytes", sa.BigInteger(), nullable=False),
        sa.Column("result", sa.LargeBinary(), nullable=True),
        sa.PrimaryKeyConstraint("name", name="pk_operations"),
        sa.ForeignKeyConstraint(["model_id"], ["models.model_id"], name="fk_operations_model_id"),
    )
    op.create_index("ix_operations_model_id_number", "operations", ["model_id", "number"])
    op.create_table(
        "checkpoints",
        sa.Column("path", sa.String(512), nullable=False),
        sa.Column("number", sa.BigInteger(), nullable=False),
        sa.Column("model_id", sa.String(128), nullable=False),
        sa.Column("has_optimizer", sa.Boolean(), nullable=True),
        sa.Column("message", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("path", name="pk_checkpoints"),
    )
    op.create_index("ix_checkpoints_model_id", "checkpoints", ["model_id"])


def downgrade() -> None:
    """Remove the tables."""
    op.drop_table("checkpoints")
    op.drop_table("operations")
    op.drop_table("models")
    op.drop_table("sessions")
