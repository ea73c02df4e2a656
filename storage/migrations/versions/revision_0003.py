"""Receipts of messages that can be changed later."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the column."""
    op.add_column("outbox", sa.Column("receipt", sa.Text(), nullable=True))


def downgrade() -> None:
    """Drop the column; messages already sent can no longer be changed."""
    with op.batch_alter_table("outbox") as batch:
        batch.drop_column("receipt")
