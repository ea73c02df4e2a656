"""The same weights in another run are found by their norm."""

from __future__ import annotations

from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the index."""
    op.create_index(op.f("ix_snapshots_weight_norm"), "snapshots", ["weight_norm"], unique=False)


def downgrade() -> None:
    """Drop the index."""
    op.drop_index(op.f("ix_snapshots_weight_norm"), table_name="snapshots")
