"""What the page, the API and the exporter look at: one frozen view a run, and where views come from.

The daemon composes a `Sources`; nothing in this package reaches past it. Nothing here judges: health and the last
good checkpoint arrive in the view.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from storage.records import (
    Alert,
    RunSummary,
    SnapshotStatus,
    StoredSnapshot,
    TensorDrift,
    TensorPoint,
    TensorSummary,
)


class SourceError(Exception):
    """The database cannot answer now; the message says why and what to do, and names no secret."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunView:
    """Everything that is shown about one run.

    `newest` is the newest snapshot, complete or failed, None for a run without any. `recent` holds the latest
    snapshots of the run, oldest first, `newest` being the last of them; it may be empty where only the newest is
    known. `firing` holds the alerts that fire now.
    """

    run: RunSummary
    newest: StoredSnapshot | None
    healthy: bool
    health_reason: str
    last_good: StoredSnapshot | None
    firing: tuple[Alert, ...]
    recent: tuple[StoredSnapshot, ...] = ()

    @property
    def measured(self) -> StoredSnapshot | None:
        """Return the newest snapshot whose tensors were measured, None when none was."""
        for snapshot in reversed(self.recent):
            if snapshot.status is SnapshotStatus.COMPLETE:
                return snapshot
        if self.newest is not None and self.newest.status is SnapshotStatus.COMPLETE:
            return self.newest
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """The tensors of one snapshot with their drifts and the scalars beside them, as storage keeps them."""

    tensors: tuple[TensorSummary, ...] = ()
    drifts: tuple[TensorDrift, ...] = ()
    scalars: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Course:
    """What many parameters did over some snapshots: points by snapshot as asked for, then in the checkpoint's order.

    `losses` maps the number of a snapshot to the mean loss that training logged since the one before; a snapshot
    without a log is not in it.
    """

    points: tuple[TensorPoint, ...] = ()
    losses: Mapping[int, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorMoment:
    """One tensor in one snapshot.

    `bins` are (low, high, count) of its histogram by rising value, empty where there is none; `drift` is None without
    a reference.
    """

    snapshot: StoredSnapshot
    tensor: TensorSummary
    drift: TensorDrift | None
    bins: tuple[tuple[float, float, int], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class AlertQuery:
    """Which alerts are asked for: all runs and states when None, opened or seen since `since` (Unix seconds)."""

    run: str | None = None
    state: str | None = None
    since: float | None = None
    limit: int = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class Sources:
    """Where the views come from: functions that read the database and raise SourceError when they cannot.

    `history(run, limit)` gives the latest `limit` snapshots of a run, oldest first, or None for an unknown run.
    `measurement(snapshot_id)` gives the tensors of one snapshot, without sketches. `course(snapshot_ids)` gives the
    parameters of several in few facts. `tensor(run, name, limit)` gives one tensor in the latest `limit` snapshots
    that hold it, oldest first; empty for an unknown one.
    """

    views: Callable[[], Sequence[RunView]]
    history: Callable[[str, int], Sequence[StoredSnapshot] | None]
    alerts: Callable[[AlertQuery], Sequence[Alert]]
    measurement: Callable[[int], Measurement]
    course: Callable[[Sequence[int]], Course]
    tensor: Callable[[str, str, int], Sequence[TensorMoment]]
