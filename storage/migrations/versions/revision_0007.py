"""Several daemons share the work: who does what, and until when."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the table."""
    op.create_table(
        "claims",
        sa.Column("what", sa.Text(), nullable=False),
        sa.Column("owner", sa.String(length=200), nullable=False),
        sa.Column("leased_until", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("what", name=op.f("pk_claims")),
    )


def downgrade() -> None:
    """Drop the table; work in progress may be done twice, and is stored once."""
    op.drop_table("claims")
