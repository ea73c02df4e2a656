"""What may be changed, as functions of a session.

The caller owns the transaction (`Database.write`), so that a snapshot, its findings, alert transitions and outbox rows
become true together or not at all. Nothing here commits, judges or sends.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, Final, cast

from sqlalchemy import CursorResult, Executable, Table, delete, insert, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from storage import encoding, rows
from storage.models import (
    AlertRow,
    DistributionRow,
    DriftRow,
    FindingRow,
    IncidentRow,
    MetaRow,
    OutboxRow,
    RunRow,
    ScalarsRow,
    SilenceRow,
    SketchRow,
    SnapshotRow,
    StatisticsRow,
    TensorRow,
    WeightSketchRow,
    table,
)
from storage.records import Alert, Finding, Incident, Notification, Snapshot

ERROR_CHARACTERS_MAX: Final = 500
COMMENT_CHARACTERS_MAX: Final = 500
UNKNOWN_STEP: Final = -1
_BATCH_ROWS: Final = 500  # below the number of variables that an old SQLite allows in one statement


def add_snapshot(session: Session, snapshot: Snapshot) -> int | None:
    """Store a snapshot with its tensors, drifts and scalars; return its number, None when it is already known.

    The key is (run, path, signature), so doing the work twice stores it once. A run that is not known yet is created,
    active, its root taken from the checkpoint.
    """
    checkpoint = snapshot.checkpoint
    run_id = _touch(session, checkpoint.run, checkpoint.root, snapshot.measured_at)
    row = rows.snapshot_row(snapshot, run_id=run_id, sort_step=_sort_step(session, snapshot, run_id))
    snapshot_id = _insert_new(session, SnapshotRow, row, ("run_id", "path", "signature"))
    if snapshot_id is None:
        return None
    session.execute(
        update(RunRow).where(RunRow.id == run_id, RunRow.attempt < snapshot.attempt).values(attempt=snapshot.attempt)
    )
    scalars = encoding.encode_numbers(dict(list(snapshot.scalars.items())[: encoding.SCALARS_MAX]))
    if scalars is not None:
        session.execute(insert(table(ScalarsRow)), [{"snapshot_id": snapshot_id, "scalars": scalars}])
    _add_tensors(session, snapshot, run_id, snapshot_id)
    if snapshot.weights is not None:
        weights = rows.weight_sketch_row(snapshot.weights, snapshot_id=snapshot_id)
        session.execute(insert(table(WeightSketchRow)), [weights])
    return snapshot_id


def save_findings(session: Session, snapshot_id: int, findings: Iterable[Finding]) -> None:
    """Store what the rules found in a snapshot; a finding of the same rule and identity is replaced."""
    for finding in findings:
        row = rows.finding_row(finding, snapshot_id=snapshot_id)
        _save(session, table(FindingRow), row, ("snapshot_id", "rule", "identity"))


def save_alert(session: Session, alert: Alert) -> None:
    """Store an alert as it is now; the same (fingerprint, episode) is replaced."""
    row = rows.alert_row(alert, run_id=_touch(session, alert.run, None, alert.last_seen_at))
    _save(session, table(AlertRow), row, ("fingerprint", "episode"))


def save_incident(session: Session, incident: Incident, now: float) -> Incident:
    """Store an incident as it is now and return it with its number; one whose `id` is 0 is new."""
    row = rows.incident_row(incident, run_id=_touch(session, incident.run, None, now))
    if incident.id:
        session.execute(update(IncidentRow).where(IncidentRow.id == incident.id).values(row))
        return incident
    statement = insert(table(IncidentRow)).values(row).returning(table(IncidentRow).c.id)
    return replace(incident, id=int(session.execute(statement).scalar_one()))


def enqueue(session: Session, message: Notification) -> bool:
    """Put a message that was never tried into the outbox; return False when its (notifier, deduplication_key) exists.

    With a `gathering` it belongs to the conversation about that incident.
    """
    fingerprint, _, episode = message.conversation.rpartition(".")
    gathering = message.gathering
    row = {
        "notifier": message.notifier,
        "deduplication_key": message.deduplication_key,
        "reason": message.reason,
        "fingerprint": fingerprint,
        "episode": int(episode),
        "alert": rows.encode_alert(message.alert),
        "state": "pending",
        "last_good_step": encoding.optional_integer(message.last_good_step),
        "last_good_path": message.last_good_path,
        "created_at": message.created_at,
        "due_at": message.due_at,
        "sent_at": None,
        "n_attempts": 0,
        "last_error": None,
        "incident_id": None if gathering is None else gathering.incident.id,
        "gathering": None if gathering is None else rows.encode_gathering(gathering),
    }
    return _insert_new(session, OutboxRow, row, ("notifier", "deduplication_key")) is not None


def mark_sent(session: Session, notification_id: int, now: float, receipt: str | None = None) -> None:
    """Record that a message was delivered, and what the receiver calls it; without effect when it is not pending."""
    session.execute(
        update(OutboxRow)
        .where(OutboxRow.id == notification_id, OutboxRow.state == "pending")
        .values(state="sent", sent_at=now, n_attempts=OutboxRow.n_attempts + 1, last_error=None, receipt=receipt)
    )


def mark_failed(session: Session, notification_id: int, *, error: str, due_at: float, dead: bool) -> None:
    """Record a failed try: due again at `due_at`, or given up for good when `dead`.

    `error` is cut to 500 characters. Without effect when the message is no longer pending.
    """
    session.execute(
        update(OutboxRow)
        .where(OutboxRow.id == notification_id, OutboxRow.state == "pending")
        .values(
            state="dead" if dead else "pending",
            due_at=due_at,
            n_attempts=OutboxRow.n_attempts + 1,
            last_error=error[:ERROR_CHARACTERS_MAX],
        )
    )


def add_silence(session: Session, *, runs: str, rules: str, now: float, ends_at: float, comment: str = "") -> int:
    """Store a silence for the alerts of some rules in some runs (glob patterns) and return its number."""
    row = {
        "runs": runs,
        "rules": rules,
        "created_at": now,
        "ends_at": ends_at,
        "comment": comment[:COMMENT_CHARACTERS_MAX],
    }
    statement = insert(table(SilenceRow)).values(row).returning(table(SilenceRow).c.id)
    return int(session.execute(statement).scalar_one())


def end_silence(session: Session, silence_id: int, now: float) -> bool:
    """End a silence now; return False when there is none of that number that still lasts."""
    lasting = update(SilenceRow).where(SilenceRow.id == silence_id, SilenceRow.ends_at > now)
    return _execute(session, lasting.values(ends_at=now)) > 0


def set_run_active(session: Session, run: str, active: bool) -> None:
    """Record whether a run is still going on; without effect for an unknown run."""
    session.execute(update(RunRow).where(RunRow.name == run).values(active=active))


def touch_run(session: Session, run: str, root: str, now: float) -> None:
    """Record that a run was seen in a root; create it, active and without snapshots, when it is new."""
    _touch(session, run, root, now)


def set_meta(session: Session, key: str, value: str | None) -> None:
    """Store one small fact under a key of at most 100 characters; None removes it."""
    if value is None:
        session.execute(delete(MetaRow).where(MetaRow.key == key))
    else:
        _save(session, table(MetaRow), {"key": key, "value": value}, ("key",))


def upsert(session: Session, target: Table) -> sqlite.Insert | postgresql.Insert:
    """Return an INSERT of the session's dialect that can say what happens when the row is already there."""
    if session.get_bind().dialect.name == "postgresql":
        return postgresql.insert(target)
    return sqlite.insert(target)


def _insert_new(
    session: Session, model: type[SnapshotRow | OutboxRow], row: rows.Row, key: Sequence[str]
) -> int | None:
    """Insert a row and return its number, None when one with the same key is there already.

    Nothing can come between the two statements, since a writing session has the database's one write lock.
    """
    columns = table(model).c
    same = (columns[name] == row[name] for name in key)
    if session.execute(select(columns.id).where(*same)).first() is not None:
        return None
    done = cast("CursorResult[Any]", session.execute(insert(table(model)).values(row)))
    assert done.inserted_primary_key is not None
    return int(done.inserted_primary_key[0])


def _execute(session: Session, statement: Executable) -> int:
    """Execute a statement and return how many rows it added, changed or deleted."""
    return cast("CursorResult[Any]", session.execute(statement)).rowcount


def _save(session: Session, target: Table, row: rows.Row, key: Sequence[str]) -> None:
    statement = upsert(session, target).values(row)
    changed = {name: statement.excluded[name] for name in row if name not in key}
    session.execute(statement.on_conflict_do_update(index_elements=list(key), set_=changed))


def _touch(session: Session, run: str, root: str | None, now: float) -> int:
    known = session.execute(select(RunRow.id, RunRow.root).where(RunRow.name == run)).one_or_none()
    if known is None:
        row = {"name": run, "root": root or "", "attempt": 1, "active": True, "created_at": now, "seen_at": now}
        session.execute(upsert(session, table(RunRow)).values(row).on_conflict_do_nothing())
        return session.execute(select(RunRow.id).where(RunRow.name == run)).scalar_one()
    session.execute(
        update(RunRow).where(RunRow.id == known.id).values(root=known.root if root is None else root, seen_at=now)
    )
    return int(known.id)


def _sort_step(session: Session, snapshot: Snapshot, run_id: int) -> int:
    step = snapshot.checkpoint.step
    if step is not None:
        return encoding.integer(step)
    before = session.execute(
        select(SnapshotRow.sort_step)
        .where(SnapshotRow.run_id == run_id, SnapshotRow.attempt == snapshot.attempt)
        .order_by(SnapshotRow.sort_step.desc())
        .limit(1)
    ).scalar()
    return UNKNOWN_STEP if before is None else before


def _add_tensors(session: Session, snapshot: Snapshot, run_id: int, snapshot_id: int) -> None:
    tensors = [
        rows.tensor_row(run_id=run_id, name=t.name, kind=t.kind, dtype=t.dtype, shape=t.shape) for t in snapshot.tensors
    ]
    names = {summary.name for summary in snapshot.tensors}
    # A drift may speak of a tensor that the snapshot does not list; its name gets a place in the dictionary too.
    strangers = [rows.tensor_row(run_id=run_id, name=d.name) for d in snapshot.drifts if d.name not in names]
    ids = _intern(session, run_id, tensors + strangers)
    by_name = {row["name"]: ids[row["digest"]] for row in strangers + tensors}
    statistics = [
        rows.statistics_row(summary, snapshot_id=snapshot_id, tensor_id=ids[row["digest"]])
        for summary, row in zip(snapshot.tensors, tensors, strict=True)
    ]
    distributions = [rows.distribution_row(summary, snapshot_id=snapshot_id) for summary in snapshot.tensors]
    sketches = [rows.sketch_row(summary, snapshot_id=snapshot_id) for summary in snapshot.tensors]
    drifts = [
        rows.drift_row(drift, snapshot_id=snapshot_id, position=position, tensor_id=by_name[drift.name])
        for position, drift in enumerate(snapshot.drifts)
    ]
    for model, found in (
        (StatisticsRow, statistics),
        (DistributionRow, distributions),
        (SketchRow, sketches),
        (DriftRow, drifts),
    ):
        present = [row for row in found if row is not None]
        if present:
            session.execute(insert(table(model)), present)


def _intern(session: Session, run_id: int, wanted: Sequence[rows.Row]) -> dict[str, int]:
    """Return the dictionary's number for each digest, after adding those that are new."""
    digests = list(dict.fromkeys(row["digest"] for row in wanted))
    ids = _numbers(session, run_id, digests)
    new = {row["digest"]: row for row in wanted if row["digest"] not in ids}
    if new:
        statement = upsert(session, table(TensorRow)).on_conflict_do_nothing()
        session.execute(statement, list(new.values()))
        ids.update(_numbers(session, run_id, list(new)))
    return ids


def _numbers(session: Session, run_id: int, digests: Sequence[str]) -> dict[str, int]:
    found: dict[str, int] = {}
    for start in range(0, len(digests), _BATCH_ROWS):
        part = digests[start : start + _BATCH_ROWS]
        statement = select(TensorRow.digest, TensorRow.id).where(TensorRow.run_id == run_id, TensorRow.digest.in_(part))
        found.update((digest, number) for digest, number in session.execute(statement))
    return found
