"""What may be asked, as functions of a session that return records.

Read-only and bounded: every list has a limit. Nothing here judges. "Newest" and "oldest first" mean the order of
(attempt, step, stored): a snapshot that was stored late takes its place, one without a step keeps the place in which
it was stored.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from sqlalchemy import Select, and_, exists, func, null, or_, select
from sqlalchemy.orm import Session, aliased

from storage import encoding, rows
from storage.models import (
    ESCAPE_MARK,
    AlertRow,
    DistributionRow,
    DriftRow,
    FindingRow,
    IncidentRow,
    MetaRow,
    OutboxRow,
    RunRow,
    ScalarsRow,
    SketchRow,
    SnapshotRow,
    StatisticsRow,
    TensorRow,
    escape_text,
    table,
)
from storage.records import (
    Alert,
    AlertState,
    Finding,
    Incident,
    Notification,
    RunSummary,
    Severity,
    SnapshotStatus,
    StoredSnapshot,
    TensorDrift,
    TensorSummary,
)

RUNS_MAX: Final = 10_000
TENSORS_MAX: Final = 1_000_000
KNOWN_MAX: Final = 1_000_000
OPEN_ALERTS_MAX: Final = 10_000
FINDINGS_MAX: Final = 10_000
VARIANTS_MAX: Final = 100  # how many dtypes or shapes one tensor had in one run
_BATCH_ROWS: Final = 500  # below the number of variables that an old SQLite allows in one statement

_NEWEST_FIRST: Final = (SnapshotRow.attempt.desc(), SnapshotRow.sort_step.desc(), SnapshotRow.id.desc())
_OPEN: Final = (AlertState.PENDING.value, AlertState.FIRING.value)


def runs(session: Session, *, limit: int = RUNS_MAX) -> list[RunSummary]:
    """Return all runs by name."""
    return [rows.run_summary(row) for row in session.execute(_runs().order_by(RunRow.name).limit(limit))]


def run(session: Session, name: str) -> RunSummary | None:
    """Return one run, None when there is none of that name."""
    row = session.execute(_runs().where(RunRow.name == name)).one_or_none()
    return None if row is None else rows.run_summary(row)


def history(session: Session, run: str, *, attempt: int | None = None, limit: int = 1000) -> list[StoredSnapshot]:
    """Return the newest `limit` snapshots of a run, or of one attempt of it, oldest first."""
    statement = _snapshots().where(RunRow.name == run)
    if attempt is not None:
        statement = statement.where(SnapshotRow.attempt == attempt)
    found = session.execute(statement.order_by(*_NEWEST_FIRST).limit(limit)).all()
    return [rows.stored_snapshot(row) for row in reversed(found)]


def newest(session: Session, run: str) -> StoredSnapshot | None:
    """Return the newest snapshot of a run, complete or failed; None when there is none."""
    found = history(session, run, limit=1)
    return found[0] if found else None


def snapshot(session: Session, snapshot_id: int) -> StoredSnapshot | None:
    """Return one snapshot by its number, None when there is none."""
    row = session.execute(_snapshots().where(SnapshotRow.id == snapshot_id)).one_or_none()
    return None if row is None else rows.stored_snapshot(row)


def reference(
    session: Session, run: str, attempt: int, *, step: int | None, written_at: float
) -> StoredSnapshot | None:
    """Return the snapshot that a new one of this attempt is compared with, None when there is none.

    It is the newest complete one with a smaller step; where the step is unknown, the complete one written last before
    `written_at`.
    """
    statement = _snapshots().where(
        RunRow.name == run, SnapshotRow.attempt == attempt, SnapshotRow.status == SnapshotStatus.COMPLETE.value
    )
    if step is not None:
        # Where a step is known it equals sort_step, whose index gives the answer without sorting.
        statement = statement.where(SnapshotRow.step.is_not(None), SnapshotRow.sort_step < encoding.integer(step))
        statement = statement.order_by(SnapshotRow.sort_step.desc(), SnapshotRow.id.desc())
    else:
        statement = statement.where(SnapshotRow.written_at < written_at)
        statement = statement.order_by(SnapshotRow.written_at.desc(), SnapshotRow.id.desc())
    row = session.execute(statement.limit(1)).one_or_none()
    return None if row is None else rows.stored_snapshot(row)


def last_before_attempt(session: Session, run: str, attempt: int) -> StoredSnapshot | None:
    """Return the newest complete snapshot of a run's earlier attempts, None when there is none."""
    statement = _snapshots().where(
        RunRow.name == run, SnapshotRow.attempt < attempt, SnapshotRow.status == SnapshotStatus.COMPLETE.value
    )
    row = session.execute(statement.order_by(*_NEWEST_FIRST).limit(1)).one_or_none()
    return None if row is None else rows.stored_snapshot(row)


def tensors(
    session: Session, snapshot_id: int, *, with_sketch: bool = False, with_distribution: bool = True
) -> tuple[TensorSummary, ...]:
    """Return the tensors of a snapshot in the checkpoint's order; empty when it failed or does not exist.

    `sketch` is None unless `with_sketch`. Without `with_distribution`, which is twice as fast, `quantiles` is empty and
    `histogram` None.
    """
    statement = (
        _tensors(with_distribution=with_distribution)
        .where(StatisticsRow.snapshot_id == snapshot_id)
        .order_by(StatisticsRow.position)
    )
    sketches = {}
    if with_sketch:
        columns = table(SketchRow).c
        found = session.execute(
            select(
                columns.position,
                columns.kind.label("sketch_kind"),
                columns.n_buckets,
                columns.seed,
                columns.dtype.label("sketch_dtype"),
                columns["values"].label("sketch_values"),
            )
            .where(columns.snapshot_id == snapshot_id)
            .limit(TENSORS_MAX)
        )
        sketches = {row.position: rows.sketch_record(row) for row in found}
    found = session.execute(statement.limit(TENSORS_MAX))
    return tuple(rows.tensor_summary(row, sketches.get(row.position)) for row in found)


def tensor_history(
    session: Session, run: str, name: str, *, attempt: int | None = None, limit: int = 1000
) -> list[tuple[StoredSnapshot, TensorSummary]]:
    """Return one tensor over the newest `limit` snapshots that hold it, oldest first, without sketches."""
    # Naming the tensor by number lets both statements use the index by (tensor, snapshot); by name they would not.
    numbers = session.execute(
        select(TensorRow.id)
        .join(RunRow, RunRow.id == TensorRow.run_id)
        .where(RunRow.name == run, TensorRow.name == name)
        .order_by(TensorRow.id.desc())
        .limit(VARIANTS_MAX)
    )
    variants = list(numbers.scalars())
    chosen = select(StatisticsRow.snapshot_id).where(StatisticsRow.tensor_id.in_(variants))
    statement = _snapshots().where(SnapshotRow.id.in_(chosen))
    if attempt is not None:
        statement = statement.where(SnapshotRow.attempt == attempt)
    snapshots = [rows.stored_snapshot(row) for row in session.execute(statement.order_by(*_NEWEST_FIRST).limit(limit))]
    found: dict[int, TensorSummary] = {}
    for start in range(0, len(snapshots), _BATCH_ROWS):
        part = [stored.id for stored in snapshots[start : start + _BATCH_ROWS]]
        statement = (
            _tensors(with_distribution=True)
            .add_columns(StatisticsRow.snapshot_id)
            .where(StatisticsRow.tensor_id.in_(variants), StatisticsRow.snapshot_id.in_(part))
        )
        found.update((row.snapshot_id, rows.tensor_summary(row)) for row in session.execute(statement))
    return [(stored, found[stored.id]) for stored in reversed(snapshots)]


def drifts(session: Session, snapshot_id: int) -> tuple[TensorDrift, ...]:
    """Return the drifts of a snapshot in the order in which they were stored."""
    statement = (
        select(*table(DriftRow).c, TensorRow.name)
        .join(TensorRow, TensorRow.id == DriftRow.tensor_id)
        .where(DriftRow.snapshot_id == snapshot_id)
        .order_by(DriftRow.position)
        .limit(TENSORS_MAX)
    )
    return tuple(rows.tensor_drift(row) for row in session.execute(statement))


def scalars(session: Session, snapshot_id: int) -> Mapping[str, float]:
    """Return the plain numbers found beside the tensors of a snapshot, by dotted path; empty when there are none."""
    text = session.execute(select(ScalarsRow.scalars).where(ScalarsRow.snapshot_id == snapshot_id)).scalar()
    return encoding.decode_numbers(text)


def findings(session: Session, snapshot_id: int) -> tuple[Finding, ...]:
    """Return what the rules found in a snapshot, the most severe first."""
    statement = (
        select(*table(FindingRow).c, RunRow.name.label("run"))
        .join(SnapshotRow, SnapshotRow.id == FindingRow.snapshot_id)
        .join(RunRow, RunRow.id == SnapshotRow.run_id)
        .where(FindingRow.snapshot_id == snapshot_id)
        .order_by(FindingRow.severity.desc(), FindingRow.rule, FindingRow.identity)
        .limit(FINDINGS_MAX)
    )
    return tuple(rows.finding_record(row) for row in session.execute(statement))


def is_known(session: Session, run: str, path: str, signature: str) -> bool:
    """Say whether a checkpoint with these bytes is stored already, complete or failed."""
    statement = (
        select(SnapshotRow.id)
        .join(RunRow, RunRow.id == SnapshotRow.run_id)
        .where(RunRow.name == run, SnapshotRow.path == path, SnapshotRow.signature == signature)
    )
    return session.execute(statement.limit(1)).first() is not None


def known(session: Session, root: str) -> dict[str, set[str]]:
    """Return the signatures stored for every path at or below a root, at most 1 000 000, the latest stored first."""
    prefix = root.rstrip("/") + "/"
    path = table(SnapshotRow).c.path
    statement = (
        select(SnapshotRow.path, SnapshotRow.signature)
        .where(
            or_(
                SnapshotRow.path == root,
                func.substr(path, 1, len(prefix)) == escape_text(prefix),
                func.substr(path, 1, 1) == ESCAPE_MARK,  # an escaped path is compared below, as it was
            )
        )
        .order_by(SnapshotRow.id.desc())
        .limit(KNOWN_MAX)
    )
    found: dict[str, set[str]] = {}
    for place, signature in session.execute(statement):
        if place == root or place.startswith(prefix):
            found.setdefault(place, set()).add(signature)
    return found


def open_alerts(session: Session, run: str | None = None) -> list[Alert]:
    """Return the alerts that are pending or firing, of one run or of all, oldest first."""
    statement = _alerts().where(AlertRow.state.in_(_OPEN))
    if run is not None:
        statement = statement.where(RunRow.name == run)
    statement = statement.order_by(AlertRow.opened_at, AlertRow.id).limit(OPEN_ALERTS_MAX)
    return [rows.alert_record(row) for row in session.execute(statement)]


def alerts(
    session: Session,
    *,
    run: str | None = None,
    since: float | None = None,
    state: AlertState | None = None,
    limit: int = 500,
) -> list[Alert]:
    """Return alerts, the latest opened first: those of a run, in a state, that were not over before `since`."""
    statement = _alerts()
    if run is not None:
        statement = statement.where(RunRow.name == run)
    if state is not None:
        statement = statement.where(AlertRow.state == state.value)
    if since is not None:
        statement = statement.where(or_(AlertRow.resolved_at.is_(None), AlertRow.resolved_at >= since))
    statement = statement.order_by(AlertRow.opened_at.desc(), AlertRow.id.desc()).limit(limit)
    return [rows.alert_record(row) for row in session.execute(statement)]


def open_incident(session: Session, run: str) -> Incident | None:
    """Return the incident of a run that is not over, None when there is none."""
    statement = (
        select(*table(IncidentRow).c, RunRow.name.label("run"))
        .join(RunRow, RunRow.id == IncidentRow.run_id)
        .where(RunRow.name == run, IncidentRow.state == AlertState.FIRING.value)
        .order_by(IncidentRow.id.desc())
        .limit(1)
    )
    row = session.execute(statement).one_or_none()
    return None if row is None else rows.incident_record(row)


def incident_alerts(session: Session, incident_id: int) -> list[Alert]:
    """Return the alerts that belong to an incident, firing and resolved, oldest first."""
    statement = _alerts().where(AlertRow.incident_id == incident_id)
    found = session.execute(statement.order_by(AlertRow.opened_at, AlertRow.id).limit(OPEN_ALERTS_MAX))
    return [rows.alert_record(row) for row in found]


def latest_episode(session: Session, fingerprint: str) -> Alert | None:
    """Return the last alert of a fingerprint, open or resolved; None when it never opened."""
    statement = _alerts().where(AlertRow.fingerprint == fingerprint).order_by(AlertRow.episode.desc()).limit(1)
    row = session.execute(statement).one_or_none()
    return None if row is None else rows.alert_record(row)


def firing_counts(session: Session) -> dict[tuple[str, str, Severity], int]:
    """Return how many alerts fire, by run, rule and severity; only combinations that do."""
    statement = (
        select(RunRow.name, AlertRow.rule, AlertRow.severity, func.count())
        .join(RunRow, RunRow.id == AlertRow.run_id)
        .where(AlertRow.state == AlertState.FIRING.value)
        .group_by(RunRow.name, AlertRow.rule, AlertRow.severity)
        .limit(OPEN_ALERTS_MAX)
    )
    return {(name, rule, Severity(severity)): n for name, rule, severity, n in session.execute(statement)}


def due_notifications(session: Session, notifier: str, *, now: float, limit: int) -> list[Notification]:
    """Return the messages that a notifier should send now, in the order in which they were queued.

    A message waits as long as an earlier one of the same alert is pending and not yet due, so that a resolve never
    overtakes its firing.
    """
    statement = (
        select(*table(OutboxRow).c, _first_receipt())
        .where(
            OutboxRow.notifier == notifier,
            OutboxRow.state == "pending",
            OutboxRow.due_at <= now,
            ~_earlier_pending(not_due_at=now),
        )
        .order_by(OutboxRow.id)
        .limit(limit)
    )
    return [rows.notification_record(row) for row in session.execute(statement)]


def next_due_at(session: Session, notifier: str) -> float | None:
    """Return when the next message of a notifier may be sent, perhaps in the past; None when nothing is pending."""
    return session.execute(
        select(func.min(OutboxRow.due_at)).where(
            OutboxRow.notifier == notifier, OutboxRow.state == "pending", ~_earlier_pending()
        )
    ).scalar()


def outbox_counts(session: Session) -> dict[tuple[str, str], int]:
    """Return how many messages there are by (notifier, state); states are "pending", "sent" and "dead"."""
    statement = select(OutboxRow.notifier, OutboxRow.state, func.count()).group_by(OutboxRow.notifier, OutboxRow.state)
    return {(notifier, state): n for notifier, state, n in session.execute(statement.limit(1000))}


def was_enqueued(session: Session, fingerprint: str, episode: int) -> bool:
    """Say whether any message about this episode of an alert was ever queued."""
    statement = select(OutboxRow.id).where(OutboxRow.fingerprint == fingerprint, OutboxRow.episode == episode)
    return session.execute(statement.limit(1)).first() is not None


def get_meta(session: Session, key: str) -> str | None:
    """Return the fact stored under a key, None when there is none."""
    return session.execute(select(MetaRow.value).where(MetaRow.key == key)).scalar()


def _runs() -> Select[Any]:
    newest_id = (
        select(SnapshotRow.id)
        .where(SnapshotRow.run_id == RunRow.id)
        .order_by(*_NEWEST_FIRST)
        .limit(1)
        .correlate(RunRow)
        .scalar_subquery()
    )
    n_snapshots = (
        select(func.count()).select_from(SnapshotRow).where(SnapshotRow.run_id == RunRow.id).correlate(RunRow)
    ).scalar_subquery()
    last = aliased(SnapshotRow)
    return select(
        RunRow.name.label("run"),
        RunRow.root,
        RunRow.attempt,
        RunRow.active,
        n_snapshots.label("n_snapshots"),
        last.step.label("last_step"),
        last.sort_step.label("last_sort_step"),
        last.written_at.label("last_written_at"),
        last.measured_at.label("last_measured_at"),
    ).outerjoin(last, last.id == newest_id)


def _snapshots() -> Select[Any]:
    worst = (
        select(func.max(FindingRow.severity))
        .where(FindingRow.snapshot_id == SnapshotRow.id)
        .correlate(SnapshotRow)
        .scalar_subquery()
    )
    return select(*table(SnapshotRow).c, RunRow.name.label("run"), RunRow.root, worst.label("worst_severity")).join(
        RunRow, RunRow.id == SnapshotRow.run_id
    )


def _tensors(*, with_distribution: bool) -> Select[Any]:
    lasting = (TensorRow.name, TensorRow.kind, TensorRow.dtype, TensorRow.shape)
    numbers = (column for column in table(StatisticsRow).c if column.name not in {"snapshot_id", "tensor_id"})
    statement = (
        select(*lasting, *numbers).select_from(StatisticsRow).join(TensorRow, TensorRow.id == StatisticsRow.tensor_id)
    )
    if not with_distribution:
        return statement.add_columns(null().label("quantiles"), null().label("histogram"))
    return statement.add_columns(DistributionRow.quantiles, DistributionRow.histogram).outerjoin(
        DistributionRow,
        and_(
            DistributionRow.snapshot_id == StatisticsRow.snapshot_id,
            DistributionRow.position == StatisticsRow.position,
        ),
    )


def _alerts() -> Select[Any]:
    return (
        select(*table(AlertRow).c, RunRow.name.label("run"), *rows.incident_columns())
        .join(RunRow, RunRow.id == AlertRow.run_id)
        .outerjoin(IncidentRow, IncidentRow.id == AlertRow.incident_id)
    )


def _earlier_pending(not_due_at: float | None = None) -> Any:
    earlier = aliased(OutboxRow)
    conditions = [
        earlier.fingerprint == OutboxRow.fingerprint,
        earlier.notifier == OutboxRow.notifier,
        earlier.state == "pending",
        earlier.id < OutboxRow.id,
    ]
    if not_due_at is not None:
        conditions.append(earlier.due_at > not_due_at)
    return exists().where(*conditions)


def _first_receipt() -> Any:
    earlier = aliased(OutboxRow)
    same = (earlier.fingerprint == OutboxRow.fingerprint, earlier.episode == OutboxRow.episode)
    found = select(earlier.receipt).where(*same, earlier.notifier == OutboxRow.notifier, earlier.receipt.is_not(None))
    return found.order_by(earlier.id).limit(1).correlate(OutboxRow).scalar_subquery().label("first_receipt")
