"""How long details stay: all of the newest snapshots, then fewer and fewer with age, so that a long run stays small.

Statistics, drifts, findings and the sketch of all parameters are kept; only what is most of a snapshot's bytes is
thinned: the sketches of its tensors, their quantiles and histograms. A run of n snapshots keeps those of about
`n_recent` * (1 + log2(n / `n_recent`)).
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, cast

from sqlalchemy import CursorResult, Table, delete, select
from sqlalchemy.orm import Session

from storage.models import DistributionRow, RunRow, SketchRow, SnapshotRow, table

SNAPSHOTS_MAX = 500  # below the number of variables that an old SQLite allows in one statement


def is_kept(index: int, n_snapshots: int, n_recent: int) -> bool:
    """Say whether the snapshot at `index` (0 is the oldest of `n_snapshots`) keeps its details.

    The newest `n_recent` do. Of those 1 to 2 times as old every second one, of those 2 to 4 times as old every fourth,
    and so on; the first always. What is dropped once is never asked for again, since each step keeps a subset.
    """
    age = n_snapshots - 1 - index
    if age < n_recent:
        return True
    return index % (1 << (age // n_recent).bit_length()) == 0


def thin_sketches(
    session: Session, run: str, *, n_recent: int, keep: Collection[int] = (), snapshots_max: int = SNAPSHOTS_MAX
) -> int:
    """Delete the sketches of tensors of older snapshots of a run after `is_kept`; return how many were deleted.

    At most those of `snapshots_max` in one call, the oldest first, because others wait for the lock; 0 means that
    nothing is left to do. Those of the snapshots numbered in `keep` stay whatever their age. Drift of single tensors
    to a snapshot without them can no longer be estimated; that of all parameters can. The caller owns the transaction.
    """
    return _thin(session, _doomed(session, run, table(SketchRow), n_recent, keep)[:snapshots_max], table(SketchRow))


def thin_distributions(
    session: Session, run: str, *, n_recent: int, keep: Collection[int] = (), snapshots_max: int = SNAPSHOTS_MAX
) -> int:
    """Delete quantiles and histograms of older snapshots in the same way; return how many were deleted."""
    return _thin(
        session, _doomed(session, run, table(DistributionRow), n_recent, keep)[:snapshots_max], table(DistributionRow)
    )


def _doomed(session: Session, run: str, detail: Table, n_recent: int, keep: Collection[int]) -> list[int]:
    """Return the snapshots of a run that lose their rows in `detail`, oldest first."""
    run_id = select(RunRow.id).where(RunRow.name == run).scalar_subquery()
    order = (SnapshotRow.attempt, SnapshotRow.sort_step, SnapshotRow.id)
    ids = session.scalars(select(SnapshotRow.id).where(SnapshotRow.run_id == run_id).order_by(*order)).all()
    if len(ids) <= n_recent:
        return []
    has_details = select(detail.c.snapshot_id).where(detail.c.snapshot_id == SnapshotRow.id).exists()
    with_details = set(session.scalars(select(SnapshotRow.id).where(SnapshotRow.run_id == run_id, has_details)))
    return [
        number
        for index, number in enumerate(ids)
        if number in with_details and number not in keep and not is_kept(index, len(ids), n_recent)
    ]


def _thin(session: Session, doomed: list[int], detail: Table) -> int:
    if not doomed:
        return 0
    statement = delete(detail).where(detail.c.snapshot_id.in_(doomed))
    return cast("CursorResult[Any]", session.execute(statement)).rowcount
