"""What the page, the API and the exporter look at: one frozen view a run, and where views come from.

The daemon composes a `Sources`; nothing in this package reaches past it. Nothing here judges: health and the last
good checkpoint arrive in the view.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from monitor.show.closer_views import CloserSources
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


class QuestionError(Exception):
    """What was asked makes no sense for this run; the message says why and what could be asked."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DriftQuery:
    """From where drift is asked for, and of what.

    `against` is "first" or "previous" (of the same attempt), "best" (the lowest logged validation loss, else the lowest
    logged training loss, else the last good one) or a step. `tensors` is a name or glob of tensors of any kind, None
    for all parameters.
    """

    against: str
    tensors: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ReferenceDrift:
    """How far a snapshot lies from a reference, over all parameters or over the tensors asked for.

    `method` is "exact" or "sketch". `relative_l2` is |w - w0| / |w0| and `cosine` that of the angle between both;
    where they are None `reason` says why, else it is "". `n_tensors` counts the tensors compared, None for all
    parameters.
    """

    reference_step: int | None
    reference_path: str
    method: str
    relative_l2: float | None
    cosine: float | None
    n_tensors: int | None = None
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class WayPoint:
    """Where a snapshot lies on the path of its attempt.

    `update_cosine` is the cosine between the update to it and the one before, `path_length` the length of the path from
    the first snapshot of the attempt, `displacement` the straight distance from there (L2 norms over all parameters,
    estimated from sketches). All are None where a parameter is not finite or was not measured.
    """

    update_cosine: float | None = None
    path_length: float | None = None
    displacement: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Journey:
    """The latest snapshots of a run, oldest first, with their places on its path and the drift that was asked for.

    `points` and `drifts` are by the number of a snapshot; `drifts` is empty when none was asked for.
    """

    snapshots: tuple[StoredSnapshot, ...]
    points: Mapping[int, WayPoint] = field(default_factory=dict)
    drifts: Mapping[int, ReferenceDrift] = field(default_factory=dict)


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
    that hold it, oldest first; empty for an unknown one. `journey(run, limit, query)` gives what `history` does with
    the path of the weights, and with drift where a query is given; it raises QuestionError for one that makes no sense.
    `closer` is for the pages that look closer.
    """

    views: Callable[[], Sequence[RunView]]
    history: Callable[[str, int], Sequence[StoredSnapshot] | None]
    alerts: Callable[[AlertQuery], Sequence[Alert]]
    measurement: Callable[[int], Measurement]
    course: Callable[[Sequence[int]], Course]
    tensor: Callable[[str, str, int], Sequence[TensorMoment]]
    journey: Callable[[str, int, DriftQuery | None], Journey | None]
    closer: CloserSources
