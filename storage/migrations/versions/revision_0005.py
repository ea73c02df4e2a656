"""One sketch of all parameters a snapshot."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the table; snapshots stored before have no such sketch, and the path of their run begins after them."""
    row_number = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
    op.create_table(
        "weight_sketches",
        sa.Column("snapshot_id", row_number, autoincrement=False, nullable=False),
        sa.Column("n_buckets", sa.BigInteger(), nullable=False),
        sa.Column("seed", sa.BigInteger(), nullable=False),
        sa.Column("dtype", sa.String(length=20), nullable=False),
        sa.Column("values", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(
            ["snapshot_id"], ["snapshots.id"], name=op.f("fk_weight_sketches_snapshot_id_snapshots"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("snapshot_id", name=op.f("pk_weight_sketches")),
    )


def downgrade() -> None:
    """Drop the table; drift of all parameters to earlier snapshots can no longer be estimated."""
    op.drop_table("weight_sketches")
