"""Two answers about a run: is it healthy, and from which checkpoint could it go on? Pure, over stored facts only."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from storage.records import Alert, AlertState, Severity, SnapshotStatus, StoredSnapshot


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """Whether a run is well, and one line that says why."""

    healthy: bool
    reason: str


def is_good(snapshot: StoredSnapshot) -> bool:
    """Say whether training could go on from this checkpoint: measured, finite, and no critical finding in it.

    Non-finite elements are accepted only where a rule looked at them and left no more than a note (masks).
    """
    if snapshot.status is not SnapshotStatus.COMPLETE:
        return False
    if snapshot.n_nonfinite > 0:
        return snapshot.worst_severity is Severity.INFO
    return snapshot.worst_severity is None or snapshot.worst_severity < Severity.CRITICAL


def last_good(
    snapshots: Sequence[StoredSnapshot],
    *,
    exists: Callable[[StoredSnapshot], bool] | None = None,
    kept: Callable[[StoredSnapshot], str | None] | None = None,
) -> StoredSnapshot | None:
    """Return the newest good checkpoint that is still on disk, None where there is none.

    `snapshots` are oldest first. A checkpoint whose path a later snapshot has too was overwritten. `exists` says
    whether the very bytes that were measured are still there; None takes every other one as there. `kept` gives the
    path of a protected copy, None where there is none; where the original is gone, it is the path of what is returned.
    """
    later_paths: set[str] = set()
    for snapshot in reversed(snapshots):
        overwritten = snapshot.path in later_paths
        later_paths.add(snapshot.path)
        if not is_good(snapshot):
            continue
        if not overwritten and (exists is None or exists(snapshot)):
            return snapshot
        path = None if kept is None else kept(snapshot)
        if path is not None:
            return replace(snapshot, path=path)
    return None


def health(snapshots: Sequence[StoredSnapshot], open_alerts: Sequence[Alert]) -> Health:
    """Judge a run by its newest measured checkpoint and its firing alerts; warnings alone leave it healthy.

    `snapshots` are oldest first; `open_alerts` are those of this run.
    """
    firing = [a for a in open_alerts if a.state is AlertState.FIRING]
    critical = [a for a in firing if a.severity >= Severity.CRITICAL]
    if critical:
        return Health(healthy=False, reason=critical[0].summary)
    if not snapshots:
        return Health(healthy=True, reason="no checkpoint yet")
    measured = [s for s in snapshots if s.status is SnapshotStatus.COMPLETE]
    if not measured:
        return Health(healthy=False, reason="no checkpoint could be read yet")
    newest = measured[-1]
    if newest.n_nonfinite > 0 and newest.worst_severity is not Severity.INFO:
        where = f" in {newest.first_bad_tensor}" if newest.first_bad_tensor else ""
        return Health(healthy=False, reason=f"NaN or infinity{where}")
    warnings = [a for a in firing if a.severity >= Severity.WARNING]
    if warnings:
        more = f" (and {len(warnings) - 1} more)" if len(warnings) > 1 else ""
        return Health(healthy=True, reason=f"warning: {warnings[0].summary}{more}")
    return Health(healthy=True, reason="no trouble found")
