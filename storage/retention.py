"""How long sketches stay: all of the newest snapshots, then fewer and fewer with age, so that a long run stays small.

Statistics, drifts and findings are kept; only the sketches, which are most of a snapshot's bytes, are thinned. A run of
n snapshots keeps about `n_recent` * (1 + log2(n / `n_recent`)) of them.
"""

from __future__ import annotations

from typing import Any, cast

from sqlalchemy import CursorResult, delete, select
from sqlalchemy.orm import Session

from storage.models import RunRow, SketchRow, SnapshotRow, table

_IDS_IN_A_STATEMENT_MAX = 500


def is_kept(index: int, n_snapshots: int, n_recent: int) -> bool:
    """Say whether the snapshot at `index` (0 is the oldest of `n_snapshots`) keeps its sketches.

    The newest `n_recent` do. Of those 1 to 2 times as old every second one, of those 2 to 4 times as old every fourth,
    and so on; the first always. What is dropped once is never asked for again, since each step keeps a subset.
    """
    age = n_snapshots - 1 - index
    if age < n_recent:
        return True
    return index % (1 << (age // n_recent).bit_length()) == 0


def thin_sketches(session: Session, run: str, *, n_recent: int) -> int:
    """Delete the sketches of older snapshots of a run after `is_kept`; return how many were deleted.

    Drift to a snapshot without sketches can no longer be estimated. The caller owns the transaction.
    """
    run_id = select(RunRow.id).where(RunRow.name == run).scalar_subquery()
    order = (SnapshotRow.attempt, SnapshotRow.sort_step, SnapshotRow.id)
    ids = session.scalars(select(SnapshotRow.id).where(SnapshotRow.run_id == run_id).order_by(*order)).all()
    if len(ids) <= n_recent:
        return 0
    with_sketches = set(
        session.scalars(
            select(SnapshotRow.id).where(
                SnapshotRow.run_id == run_id,
                select(table(SketchRow).c.snapshot_id).where(table(SketchRow).c.snapshot_id == SnapshotRow.id).exists(),
            )
        )
    )
    doomed = [n for index, n in enumerate(ids) if n in with_sketches and not is_kept(index, len(ids), n_recent)]
    n_deleted = 0
    for start in range(0, len(doomed), _IDS_IN_A_STATEMENT_MAX):
        part = doomed[start : start + _IDS_IN_A_STATEMENT_MAX]
        statement = delete(table(SketchRow)).where(table(SketchRow).c.snapshot_id.in_(part))
        n_deleted += cast("CursorResult[Any]", session.execute(statement)).rowcount
    return n_deleted
