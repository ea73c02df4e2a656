"""What the rules see of a run: its latest snapshots with their contents, and which other run has the same weights.

Read-only and bounded. It joins what `queries` gives; nothing here judges.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from sqlalchemy import and_, select
from sqlalchemy.orm import Session, aliased

from storage import queries
from storage.models import RunRow, SnapshotRow, WeightSketchRow, table
from storage.records import PastSnapshot, SnapshotStatus, StoredSnapshot, Window

PAST_SNAPSHOTS_MAX: Final = 8
PAST_TENSORS_MAX: Final = 40_000  # over all past snapshots of a window; at least one is given whatever its size
TWINS_MAX: Final = 64


def window(session: Session, run: str, *, n_snapshots_max: int, now: float, reason: str) -> Window:
    """Return what the rules see: the newest snapshots of the run's current attempt, with the newest one's tensors.

    Sketches are left out. The window of an unknown run is empty.
    """
    attempt = session.execute(select(RunRow.attempt).where(RunRow.name == run)).scalar()
    snapshots = [] if attempt is None else queries.history(session, run, attempt=attempt, limit=n_snapshots_max)
    if attempt is None or not snapshots:
        return Window(run=run, snapshots=(), tensors=(), drifts=(), now=now, reason=reason)
    last = snapshots[-1].id
    before = None
    if len(snapshots) <= PAST_SNAPSHOTS_MAX:
        before = queries.last_before_attempt(session, run, attempt)
    return Window(
        run=run,
        snapshots=tuple(snapshots),
        tensors=queries.tensors(session, last),
        drifts=queries.drifts(session, last),
        now=now,
        reason=reason,
        scalars=queries.scalars(session, last),
        past=_past(session, snapshots[:-1]),
        previous_attempt=_with_contents(session, before) if before is not None else None,
        twins=_twins(session, snapshots[-PAST_SNAPSHOTS_MAX - 1 :]),
    )


def _past(session: Session, snapshots: Sequence[StoredSnapshot]) -> tuple[PastSnapshot, ...]:
    """Return the newest complete ones with their contents, as many as the limits allow, oldest first."""
    chosen: list[PastSnapshot] = []
    n_tensors = 0
    for stored in reversed(snapshots):
        if stored.status is not SnapshotStatus.COMPLETE:
            continue
        n_tensors += stored.n_tensors
        if len(chosen) == PAST_SNAPSHOTS_MAX or (chosen and n_tensors > PAST_TENSORS_MAX):
            break
        chosen.append(_with_contents(session, stored))
    return tuple(reversed(chosen))


def _with_contents(session: Session, stored: StoredSnapshot) -> PastSnapshot:
    return PastSnapshot(
        snapshot=stored,
        tensors=queries.tensors(session, stored.id, with_distribution=False),
        drifts=queries.drifts(session, stored.id),
        scalars=queries.scalars(session, stored.id),
    )


def _twins(session: Session, snapshots: Sequence[StoredSnapshot]) -> tuple[tuple[StoredSnapshot, StoredSnapshot], ...]:
    """Return each snapshot with one of another run that holds the same weights at the same step, after step 0.

    The norm of all weights, whose index makes this cheap, and then their sketches must be equal to the last bit. A file
    that is watched as two runs is no twin of itself.
    """
    by_id = {s.id: s for s in snapshots if s.step and s.weight_norm is not None}
    mine, other = aliased(SnapshotRow), aliased(SnapshotRow)
    ours, theirs = table(WeightSketchRow).alias(), table(WeightSketchRow).alias()
    statement = (
        select(mine.id, other.id)
        .join(
            other,
            and_(
                other.weight_norm == mine.weight_norm,
                other.step == mine.step,
                other.run_id != mine.run_id,
                other.path != mine.path,
            ),
        )
        .join(ours, ours.c.snapshot_id == mine.id)
        .join(theirs, theirs.c.snapshot_id == other.id)
        .where(mine.id.in_(by_id), theirs.c.seed == ours.c.seed, theirs.c["values"] == ours.c["values"])
        .order_by(mine.id, other.id)
        .limit(TWINS_MAX)
    )
    pairs = session.execute(statement).all() if by_id else []
    found = ((by_id[number], queries.snapshot(session, twin)) for number, twin in pairs)
    return tuple((snapshot, twin) for snapshot, twin in found if twin is not None)
