"""What happened and who was told: incidents and the messages about them; reads only, and never judges."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from sqlalchemy import case, select
from sqlalchemy.orm import Session

from storage import rows
from storage.models import IncidentRow, OutboxRow, RunRow, table
from storage.records import AlertState, Incident

MESSAGES_MAX: Final = 2000


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredMessage:
    """One message of an incident: `state` is "pending", "sent" or "dead", `sent_at` None until it was sent."""

    incident_id: int
    notifier: str
    reason: str
    state: str
    created_at: float
    sent_at: float | None
    n_attempts: int
    last_error: str | None


def incidents(session: Session, *, run: str | None = None, limit: int = 100) -> list[Incident]:
    """Return incidents, of one run or all, those that are not over first, then the latest opened."""
    statement = select(*table(IncidentRow).c, RunRow.name.label("run")).join(RunRow, RunRow.id == IncidentRow.run_id)
    if run is not None:
        statement = statement.where(RunRow.name == run)
    is_over = case((IncidentRow.state == AlertState.FIRING.value, 0), else_=1)
    found = session.execute(statement.order_by(is_over, IncidentRow.id.desc()).limit(limit))
    return [rows.incident_record(row) for row in found]


def messages(session: Session, incident_ids: Sequence[int]) -> list[StoredMessage]:
    """Return at most MESSAGES_MAX messages about incidents, oldest first."""
    columns = table(OutboxRow).c
    statement = select(
        columns.incident_id,
        columns.notifier,
        columns.reason,
        columns.state,
        columns.created_at,
        columns.sent_at,
        columns.n_attempts,
        columns.last_error,
    ).where(columns.incident_id.in_(incident_ids))
    found = session.execute(statement.order_by(columns.id).limit(MESSAGES_MAX))
    return [StoredMessage(**row._mapping) for row in found]
