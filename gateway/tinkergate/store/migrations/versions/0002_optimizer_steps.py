"""How many optimizer steps a checkpoint's model had taken."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the column. Of checkpoints that are there already, only the backend knows."""
    op.add_column("checkpoints", sa.Column("optimizer_steps", sa.BigInteger(), nullable=True))


def downgrade() -> None:
    """Remove it."""
    op.drop_column("checkpoints", "optimizer_steps")
