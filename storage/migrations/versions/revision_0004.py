"""Incidents: the alerts of one run that belong together."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

WARNING = 20

FIRING = """
SELECT id, run_id, fingerprint, episode, rule, severity, step, subject, summary, opened_at,
       EXISTS (SELECT 1 FROM outbox WHERE outbox.fingerprint = alerts.fingerprint AND outbox.episode = alerts.episode)
           AS was_told
FROM alerts WHERE state = 'firing' AND severity >= :warning ORDER BY run_id, opened_at, id
"""


def upgrade() -> None:
    """Add the table and what points to it; what fires now becomes one incident a run, told as far as its alerts were."""
    row_number = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
    op.create_table(
        "incidents",
        sa.Column("id", row_number, nullable=False),
        sa.Column("run_id", row_number, nullable=False),
        sa.Column("state", sa.String(length=20), nullable=False),
        sa.Column("severity", sa.Integer(), nullable=False),
        sa.Column("told_severity", sa.Integer(), nullable=True),
        sa.Column("rule", sa.String(length=100), nullable=False),
        sa.Column("step", sa.BigInteger(), nullable=True),
        sa.Column("tensor", sa.Text(), nullable=False),
        sa.Column("summary", sa.Text(), nullable=False),
        sa.Column("opened_by", sa.String(length=100), nullable=False),
        sa.Column("opened_at", sa.Double(), nullable=False),
        sa.Column("changed_at", sa.Double(), nullable=False),
        sa.Column("resolved_at", sa.Double(), nullable=True),
        sa.Column("n_alerts", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["run_id"], ["runs.id"], name=op.f("fk_incidents_run_id_runs"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_incidents")),
        sqlite_autoincrement=True,
    )
    op.create_index(op.f("ix_incidents_run_id_state"), "incidents", ["run_id", "state"], unique=False)
    op.add_column("alerts", sa.Column("incident_id", sa.BigInteger(), nullable=True))
    op.create_index(op.f("ix_alerts_incident_id"), "alerts", ["incident_id"], unique=False)
    op.add_column("outbox", sa.Column("incident_id", sa.BigInteger(), nullable=True))
    op.add_column("outbox", sa.Column("gathering", sa.Text(), nullable=True))
    op.create_index(op.f("ix_outbox_incident_id"), "outbox", ["incident_id"], unique=False)
    _gather()


def _gather() -> None:
    connection = op.get_bind()
    incidents = sa.table(
        "incidents",
        *(
            sa.column(name)
            for name in (
                "id run_id state severity told_severity rule step tensor summary opened_by opened_at changed_at n_alerts"
            ).split()
        ),
    )
    by_run: dict[int, list[sa.Row[tuple[object, ...]]]] = {}
    for row in connection.execute(sa.text(FIRING), {"warning": WARNING}):
        by_run.setdefault(row.run_id, []).append(row)
    for run_id, members in by_run.items():
        first = members[0]
        values = {
            "run_id": run_id,
            "state": "firing",
            "severity": max(m.severity for m in members),
            "told_severity": max((m.severity for m in members if m.was_told), default=None),
            "rule": first.rule,
            "step": first.step,
            "tensor": first.subject,
            "summary": first.summary,
            "opened_by": f"{first.fingerprint}.{first.episode}",
            "opened_at": first.opened_at,
            "changed_at": max(m.opened_at for m in members),
            "n_alerts": len(members),
        }
        number = connection.execute(sa.insert(incidents).values(values).returning(incidents.c.id)).scalar_one()
        ids = [m.id for m in members]
        for start in range(0, len(ids), 500):
            statement = sa.text("UPDATE alerts SET incident_id = :number WHERE id IN :ids")
            statement = statement.bindparams(sa.bindparam("ids", expanding=True))
            connection.execute(statement, {"number": number, "ids": ids[start : start + 500]})


def downgrade() -> None:
    """Drop the table; alerts stay, each on its own."""
    op.drop_index(op.f("ix_outbox_incident_id"), table_name="outbox")
    op.drop_index(op.f("ix_alerts_incident_id"), table_name="alerts")
    with op.batch_alter_table("outbox") as batch:
        batch.drop_column("gathering")
        batch.drop_column("incident_id")
    with op.batch_alter_table("alerts") as batch:
        batch.drop_column("incident_id")
    op.drop_index(op.f("ix_incidents_run_id_state"), table_name="incidents")
    op.drop_table("incidents")
