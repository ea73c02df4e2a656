"""Who was told of which alerts, and who need not be: queries across alerts, outbox and silences.

Read-only and bounded, like `queries`. Nothing here decides whether somebody is to be told.
"""

from __future__ import annotations

from typing import Any, Final

from sqlalchemy import Select, and_, exists, func, or_, select
from sqlalchemy.orm import Session, aliased

from storage import rows
from storage.models import AlertRow, IncidentRow, OutboxRow, RunRow, SilenceRow, table
from storage.records import Alert, AlertState, Severity, Silence, ToldAlert

ALERTS_MAX: Final = 10_000
RUNS_MAX: Final = 10_000
SILENCES_MAX: Final = 1000
NOTIFIERS_MAX: Final = 1000


def untold_alerts(session: Session, run: str) -> list[Alert]:
    """Return the firing alerts of a run that belong to no incident and that no message was queued about, oldest first.

    What belongs to an incident is told with it; `Incident.told_severity` says how far that has come.
    """
    statement = _alerts().where(
        RunRow.name == run,
        AlertRow.state == AlertState.FIRING.value,
        AlertRow.incident_id.is_(None),
        ~exists().where(_is_conversation()),
    )
    statement = statement.order_by(AlertRow.opened_at, AlertRow.id).limit(ALERTS_MAX)
    return [rows.alert_record(row) for row in session.execute(statement)]


def runs_with_untold_alerts(session: Session, *, severity_min: Severity) -> frozenset[str]:
    """Return the runs in which an alert of at least that severity fires of which nobody was told, at most RUNS_MAX."""
    statement = (
        select(RunRow.name)
        .join(AlertRow, AlertRow.run_id == RunRow.id)
        .outerjoin(IncidentRow, IncidentRow.id == AlertRow.incident_id)
        .where(
            AlertRow.state == AlertState.FIRING.value,
            AlertRow.severity >= int(severity_min),
            or_(
                and_(AlertRow.incident_id.is_(None), ~exists().where(_is_conversation())),
                and_(
                    AlertRow.incident_id.is_not(None),
                    func.coalesce(IncidentRow.told_severity, 0) < AlertRow.severity,
                ),
            ),
        )
        .distinct()
        .limit(RUNS_MAX)
    )
    return frozenset(session.scalars(statement))


def told_alerts(session: Session, notifier: str, *, resolved_since: float) -> list[ToldAlert]:
    """Return the alerts a notifier was to be told of that fire, or were resolved since then; oldest first.

    Who was told of an incident was told of all of its alerts that are as severe as the worst. What fires in a run that
    has ended is left out: nothing can resolve it any more.
    """
    last = aliased(OutboxRow)
    newest_message = (
        select(func.max(OutboxRow.id))
        .where(or_(_is_conversation(), _is_of_worst()), OutboxRow.notifier == notifier)
        .correlate(AlertRow, IncidentRow)
        .scalar_subquery()
    )
    statement = (
        _alerts()
        .add_columns(last.last_good_step, last.last_good_path)
        .join(last, last.id == newest_message)
        .where(
            or_(
                and_(AlertRow.state == AlertState.FIRING.value, RunRow.active),
                and_(AlertRow.state == AlertState.RESOLVED.value, AlertRow.resolved_at >= resolved_since),
            )
        )
    )
    statement = statement.order_by(AlertRow.opened_at, AlertRow.id).limit(ALERTS_MAX)
    return [
        ToldAlert(alert=rows.alert_record(row), last_good_step=row.last_good_step, last_good_path=row.last_good_path)
        for row in session.execute(statement)
    ]


def told_notifiers(session: Session, conversation: str) -> frozenset[str]:
    """Return the notifiers for which a message of a conversation ("fingerprint.episode") was ever queued."""
    fingerprint, _, episode = conversation.rpartition(".")
    statement = (
        select(OutboxRow.notifier)
        .where(OutboxRow.fingerprint == fingerprint, OutboxRow.episode == int(episode))
        .distinct()
        .limit(NOTIFIERS_MAX)
    )
    return frozenset(session.scalars(statement))


def last_sent(session: Session) -> dict[str, float]:
    """Return when the last message was sent to each notifier (Unix time); those never reached are left out."""
    statement = (
        select(OutboxRow.notifier, func.max(OutboxRow.sent_at))
        .where(OutboxRow.state == "sent", OutboxRow.sent_at.is_not(None))
        .group_by(OutboxRow.notifier)
        .limit(NOTIFIERS_MAX)
    )
    return {notifier: at for notifier, at in session.execute(statement) if at is not None}


def silences(session: Session, *, now: float, limit: int = SILENCES_MAX) -> list[Silence]:
    """Return the silences that last at a time, those that end first before the others."""
    statement = select(*table(SilenceRow).c).where(SilenceRow.ends_at > now)
    found = session.execute(statement.order_by(SilenceRow.ends_at, SilenceRow.id).limit(limit))
    return [rows.silence_record(row) for row in found]


def _alerts() -> Select[Any]:
    return (
        select(*table(AlertRow).c, RunRow.name.label("run"), *rows.incident_columns())
        .join(RunRow, RunRow.id == AlertRow.run_id)
        .outerjoin(IncidentRow, IncidentRow.id == AlertRow.incident_id)
    )


def _is_conversation() -> Any:
    return and_(OutboxRow.fingerprint == AlertRow.fingerprint, OutboxRow.episode == AlertRow.episode)


def _is_of_worst() -> Any:
    return and_(OutboxRow.incident_id == AlertRow.incident_id, AlertRow.severity >= IncidentRow.severity)
