"""The first schema."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

row_number = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    """Create all tables."""
    op.create_table(
        "meta",
        sa.Column("key", sa.String(length=100), nullable=False),
        sa.Column("value", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("key", name=op.f("pk_meta")),
    )
    op.create_table(
        "outbox",
        sa.Column("id", row_number, nullable=False),
        sa.Column("notifier", sa.String(length=100), nullable=False),
        sa.Column("deduplication_key", sa.String(length=200), nullable=False),
        sa.Column("reason", sa.String(length=20), nullable=False),
        sa.Column("fingerprint", sa.String(length=64), nullable=False),
        sa.Column("episode", sa.BigInteger(), nullable=False),
        sa.Column("alert", sa.Text(), nullable=False),
        sa.Column("state", sa.String(length=20), nullable=False),
        sa.Column("last_good_step", sa.BigInteger(), nullable=True),
        sa.Column("last_good_path", sa.Text(), nullable=True),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("due_at", sa.Double(), nullable=False),
        sa.Column("sent_at", sa.Double(), nullable=True),
        sa.Column("n_attempts", sa.Integer(), nullable=False),
        sa.Column("last_error", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_outbox")),
        sa.UniqueConstraint("notifier", "deduplication_key", name=op.f("uq_outbox_notifier_deduplication_key")),
        sqlite_autoincrement=True,
    )
    op.create_index(op.f("ix_outbox_fingerprint_episode"), "outbox", ["fingerprint", "episode"], unique=False)
    op.create_index(op.f("ix_outbox_state_notifier_due_at"), "outbox", ["state", "notifier", "due_at"], unique=False)
    op.create_table(
        "runs",
        sa.Column("id", row_number, nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("root", sa.Text(), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("active", sa.Boolean(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("seen_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_runs")),
        sa.UniqueConstraint("name", name=op.f("uq_runs_name")),
    )
    op.create_table(
        "alerts",
        sa.Column("id", row_number, nullable=False),
        sa.Column("fingerprint", sa.String(length=64), nullable=False),
        sa.Column("episode", sa.BigInteger(), nullable=False),
        sa.Column("run_id", row_number, nullable=False),
        sa.Column("rule", sa.String(length=100), nullable=False),
        sa.Column("severity", sa.Integer(), nullable=False),
        sa.Column("state", sa.String(length=20), nullable=False),
        sa.Column("subject", sa.Text(), nullable=False),
        sa.Column("step", sa.BigInteger(), nullable=True),
        sa.Column("value", sa.Double(), nullable=True),
        sa.Column("threshold", sa.Double(), nullable=True),
        sa.Column("unit", sa.Text(), nullable=False),
        sa.Column("summary", sa.Text(), nullable=False),
        sa.Column("details", sa.Text(), nullable=False),
        sa.Column("opened_at", sa.Double(), nullable=False),
        sa.Column("fired_at", sa.Double(), nullable=True),
        sa.Column("resolved_at", sa.Double(), nullable=True),
        sa.Column("last_seen_at", sa.Double(), nullable=False),
        sa.Column("n_seen", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["run_id"], ["runs.id"], name=op.f("fk_alerts_run_id_runs"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_alerts")),
        sa.UniqueConstraint("fingerprint", "episode", name=op.f("uq_alerts_fingerprint_episode")),
    )
    op.create_index(op.f("ix_alerts_opened_at"), "alerts", ["opened_at"], unique=False)
    op.create_index(op.f("ix_alerts_run_id_opened_at"), "alerts", ["run_id", "opened_at"], unique=False)
    op.create_index(op.f("ix_alerts_state_opened_at"), "alerts", ["state", "opened_at"], unique=False)
    op.create_table(
        "snapshots",
        sa.Column("id", row_number, nullable=False),
        sa.Column("run_id", row_number, nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("sort_step", sa.BigInteger(), nullable=False),
        sa.Column("path", sa.Text(), nullable=False),
        sa.Column("signature", sa.Text(), nullable=False),
        sa.Column("format", sa.Text(), nullable=False),
        sa.Column("step", sa.BigInteger(), nullable=True),
        sa.Column("epoch", sa.Double(), nullable=True),
        sa.Column("status", sa.String(length=20), nullable=False),
        sa.Column("problem_kind", sa.String(length=40), nullable=True),
        sa.Column("problem_message", sa.Text(), nullable=True),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("written_at", sa.Double(), nullable=False),
        sa.Column("measured_at", sa.Double(), nullable=False),
        sa.Column("n_tensors", sa.BigInteger(), nullable=False),
        sa.Column("n_parameters", sa.BigInteger(), nullable=False),
        sa.Column("n_nonfinite", sa.BigInteger(), nullable=False),
        sa.Column("weight_norm", sa.Double(), nullable=True),
        sa.Column("update_ratio", sa.Double(), nullable=True),
        sa.Column("gradient_norm", sa.Double(), nullable=True),
        sa.Column("gradient_source", sa.String(length=40), nullable=True),
        sa.Column("gradient_window_steps", sa.BigInteger(), nullable=True),
        sa.Column("gradient_beta2", sa.Double(), nullable=True),
        sa.Column("first_bad_tensor", sa.Text(), nullable=True),
        sa.Column("reference_step", sa.BigInteger(), nullable=True),
        sa.Column("bytes_read", sa.BigInteger(), nullable=False),
        sa.Column("duration_seconds", sa.Double(), nullable=False),
        sa.ForeignKeyConstraint(["run_id"], ["runs.id"], name=op.f("fk_snapshots_run_id_runs"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_snapshots")),
        sa.UniqueConstraint("run_id", "path", "signature", name=op.f("uq_snapshots_run_id_path_signature")),
        sqlite_autoincrement=True,
    )
    op.create_index(
        op.f("ix_snapshots_run_id_attempt_sort_step_id"),
        "snapshots",
        ["run_id", "attempt", "sort_step", "id"],
        unique=False,
    )
    op.create_table(
        "tensors",
        sa.Column("id", row_number, nullable=False),
        sa.Column("run_id", row_number, nullable=False),
        sa.Column("digest", sa.String(length=32), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("kind", sa.String(length=20), nullable=False),
        sa.Column("dtype", sa.Text(), nullable=False),
        sa.Column("shape", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["run_id"], ["runs.id"], name=op.f("fk_tensors_run_id_runs"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_tensors")),
        sa.UniqueConstraint("run_id", "digest", name=op.f("uq_tensors_run_id_digest")),
    )
    op.create_index(op.f("ix_tensors_run_id_name"), "tensors", ["run_id", "name"], unique=False)
    op.create_table(
        "drifts",
        sa.Column("snapshot_id", row_number, autoincrement=False, nullable=False),
        sa.Column("position", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("tensor_id", row_number, nullable=False),
        sa.Column("reference_step", sa.BigInteger(), nullable=True),
        sa.Column("method", sa.String(length=20), nullable=False),
        sa.Column("difference_l2", sa.Double(), nullable=True),
        sa.Column("relative_l2", sa.Double(), nullable=True),
        sa.Column("cosine_distance", sa.Double(), nullable=True),
        sa.Column("max_abs_difference", sa.Double(), nullable=True),
        sa.Column("n_changed", sa.BigInteger(), nullable=True),
        sa.ForeignKeyConstraint(
            ["snapshot_id"], ["snapshots.id"], name=op.f("fk_drifts_snapshot_id_snapshots"), ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(
            ["tensor_id"], ["tensors.id"], name=op.f("fk_drifts_tensor_id_tensors"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("snapshot_id", "position", name=op.f("pk_drifts")),
        sqlite_with_rowid=False,
    )
    op.create_index(op.f("ix_drifts_tensor_id_snapshot_id"), "drifts", ["tensor_id", "snapshot_id"], unique=False)
    op.create_table(
        "findings",
        sa.Column("snapshot_id", row_number, autoincrement=False, nullable=False),
        sa.Column("rule", sa.String(length=100), nullable=False),
        sa.Column("identity", sa.Text(), nullable=False),
        sa.Column("severity", sa.Integer(), nullable=False),
        sa.Column("step", sa.BigInteger(), nullable=True),
        sa.Column("subject", sa.Text(), nullable=False),
        sa.Column("value", sa.Double(), nullable=True),
        sa.Column("threshold", sa.Double(), nullable=True),
        sa.Column("unit", sa.Text(), nullable=False),
        sa.Column("summary", sa.Text(), nullable=False),
        sa.Column("details", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(
            ["snapshot_id"], ["snapshots.id"], name=op.f("fk_findings_snapshot_id_snapshots"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("snapshot_id", "rule", "identity", name=op.f("pk_findings")),
    )
    op.create_table(
        "snapshot_scalars",
        sa.Column("snapshot_id", row_number, autoincrement=False, nullable=False),
        sa.Column("scalars", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(
            ["snapshot_id"],
            ["snapshots.id"],
            name=op.f("fk_snapshot_scalars_snapshot_id_snapshots"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("snapshot_id", name=op.f("pk_snapshot_scalars")),
    )
    op.create_table(
        "tensor_distributions",
        sa.Column("snapshot_id", row_number, autoincrement=False, nullable=False),
        sa.Column("position", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("quantiles", sa.Text(), nullable=True),
        sa.Column("histogram", sa.LargeBinary(), nullable=True),
        sa.ForeignKeyConstraint(
            ["snapshot_id"],
            ["snapshots.id"],
            name=op.f("fk_tensor_distributions_snapshot_id_snapshots"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("snapshot_id", "position", name=op.f("pk_tensor_distributions")),
    )
    op.create_table(
        "tensor_sketches",
        sa.Column("snapshot_id", row_number, autoincrement=False, nullable=False),
        sa.Column("position", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("kind", sa.String(length=20), nullable=False),
        sa.Column("n_buckets", sa.BigInteger(), nullable=False),
        sa.Column("seed", sa.BigInteger(), nullable=False),
        sa.Column("dtype", sa.String(length=20), nullable=False),
        sa.Column("values", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(
            ["snapshot_id"], ["snapshots.id"], name=op.f("fk_tensor_sketches_snapshot_id_snapshots"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("snapshot_id", "position", name=op.f("pk_tensor_sketches")),
    )
    op.create_table(
        "tensor_statistics",
        sa.Column("snapshot_id", row_number, autoincrement=False, nullable=False),
        sa.Column("position", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("tensor_id", row_number, nullable=False),
        sa.Column("n_elements", sa.BigInteger(), nullable=False),
        sa.Column("n_nan", sa.BigInteger(), nullable=False),
        sa.Column("n_posinf", sa.BigInteger(), nullable=False),
        sa.Column("n_neginf", sa.BigInteger(), nullable=False),
        sa.Column("n_zero", sa.BigInteger(), nullable=False),
        sa.Column("min", sa.Double(), nullable=True),
        sa.Column("max", sa.Double(), nullable=True),
        sa.Column("mean", sa.Double(), nullable=True),
        sa.Column("std", sa.Double(), nullable=True),
        sa.Column("norm_l1", sa.Double(), nullable=True),
        sa.Column("norm_l2", sa.Double(), nullable=True),
        sa.Column("abs_max", sa.Double(), nullable=True),
        sa.Column("tied_to", sa.Text(), nullable=True),
        sa.Column("problem", sa.Text(), nullable=True),
        sa.ForeignKeyConstraint(
            ["snapshot_id"],
            ["snapshots.id"],
            name=op.f("fk_tensor_statistics_snapshot_id_snapshots"),
            ondelete="CASCADE",
        ),
        sa.ForeignKeyConstraint(
            ["tensor_id"], ["tensors.id"], name=op.f("fk_tensor_statistics_tensor_id_tensors"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("snapshot_id", "position", name=op.f("pk_tensor_statistics")),
        sqlite_with_rowid=False,
    )
    op.create_index(
        op.f("ix_tensor_statistics_tensor_id_snapshot_id"),
        "tensor_statistics",
        ["tensor_id", "snapshot_id"],
        unique=False,
    )


def downgrade() -> None:
    """Drop all tables."""
    op.drop_index(op.f("ix_tensor_statistics_tensor_id_snapshot_id"), table_name="tensor_statistics")
    op.drop_table("tensor_statistics")
    op.drop_table("tensor_sketches")
    op.drop_table("tensor_distributions")
    op.drop_table("snapshot_scalars")
    op.drop_table("findings")
    op.drop_index(op.f("ix_drifts_tensor_id_snapshot_id"), table_name="drifts")
    op.drop_table("drifts")
    op.drop_index(op.f("ix_tensors_run_id_name"), table_name="tensors")
    op.drop_table("tensors")
    op.drop_index(op.f("ix_snapshots_run_id_attempt_sort_step_id"), table_name="snapshots")
    op.drop_table("snapshots")
    op.drop_index(op.f("ix_alerts_state_opened_at"), table_name="alerts")
    op.drop_index(op.f("ix_alerts_run_id_opened_at"), table_name="alerts")
    op.drop_index(op.f("ix_alerts_opened_at"), table_name="alerts")
    op.drop_table("alerts")
    op.drop_table("runs")
    op.drop_index(op.f("ix_outbox_state_notifier_due_at"), table_name="outbox")
    op.drop_index(op.f("ix_outbox_fingerprint_episode"), table_name="outbox")
    op.drop_table("outbox")
    op.drop_table("meta")
