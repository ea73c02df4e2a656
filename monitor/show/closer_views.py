"""What the pages that look closer show: incidents with what was sent, two snapshots side by side, a run from above.

Records alone, as the daemon composes them from the database; nothing here judges or draws.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from storage.records import Alert, Incident, Silence, StoredSnapshot, TensorSummary


@dataclass(frozen=True, slots=True, kw_only=True)
class MessageView:
    """One message to one receiver: `state` is "pending", "sent" or "dead", `error` "" where none happened."""

    notifier: str
    reason: str
    state: str
    at: float
    n_attempts: int
    error: str


@dataclass(frozen=True, slots=True, kw_only=True)
class IncidentView:
    """An incident with the alerts that belong to it and the messages about it, both oldest first."""

    incident: Incident
    alerts: tuple[Alert, ...]
    messages: tuple[MessageView, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Happenings:
    """Incidents, those that are not over first, and the silences that last."""

    incidents: tuple[IncidentView, ...]
    silences: tuple[Silence, ...]


class PairRelation(StrEnum):
    """How a tensor of the newer snapshot relates to the one of the same name in the older."""

    SAME = "same"
    CHANGED = "changed"
    RESHAPED = "reshaped"
    ADDED = "added"
    REMOVED = "removed"


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorPair:
    """A tensor in two snapshots; `old` is None where it was added, `new` where it was removed.

    `relative_l2` is |new - old| / |old|, estimated from sketches or measured, None where neither is there or a norm is
    not known; `cosine_distance` likewise.
    """

    name: str
    relation: PairRelation
    old: TensorSummary | None
    new: TensorSummary | None
    relative_l2: float | None = None
    cosine_distance: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotComparison:
    """Two snapshots, tensor by tensor, in the newer one's order; optimizer state is counted, not listed.

    `is_estimated` says that distances come from sketches. `reason` says why distances are missing, "" where none are.
    """

    old: StoredSnapshot
    new: StoredSnapshot
    pairs: tuple[TensorPair, ...]
    n_optimizer: int
    is_estimated: bool
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DriftMap:
    """Snapshots of one run, oldest first, with the distance of each from each and their places on a plane.

    `relative` has a row a snapshot: |w_i - w_j| over the larger of both norms, 0 on the diagonal. `points` are (x, y)
    in the unit of the weights; `share` is the part of the mean squared distance that the plane holds, 0..1.
    `n_left_out` snapshots are not shown: not all finite, of another layout, or thinned out evenly for lack of room.
    """

    snapshots: tuple[StoredSnapshot, ...]
    relative: tuple[tuple[float, ...], ...]
    points: tuple[tuple[float, float], ...]
    share: float
    n_left_out: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CloserSources:
    """Where these views come from; all raise SourceError when the database cannot answer.

    `happenings(run, limit)` is of all runs for None. `comparison(old, new)` takes numbers of snapshots and is None
    where one does not exist or was not measured. `drift_map(run, limit)` is None for an unknown run.
    """

    happenings: Callable[[str | None, int], Happenings]
    comparison: Callable[[int, int], SnapshotComparison | None]
    drift_map: Callable[[str, int], DriftMap | None]
