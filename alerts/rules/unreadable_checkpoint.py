"""The rule `unreadable_checkpoint`: the newest checkpoint of a run could not be read.

Whoever needs that checkpoint after a crash will find it broken; better to know now. Files that are simply no
checkpoints, or went away while we looked, are normal life and none of this rule's business.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from alerts.rule import Needs, Outcome, quiet
from storage.records import Finding, ProblemKind, Severity, SnapshotStatus, Window

REPORTED = (
    ProblemKind.TRUNCATED,
    ProblemKind.CORRUPT,
    ProblemKind.AMBIGUOUS,
    ProblemKind.LIMIT,
    ProblemKind.UNSAFE_REFERENCE,
    ProblemKind.PERMISSION,
    ProblemKind.IO_ERROR,
    ProblemKind.TIMEOUT,
    ProblemKind.WORKER_CRASHED,
)


class UnreadableCheckpoint:
    """The newest checkpoint could not be read."""

    name: ClassVar[str] = "unreadable_checkpoint"
    severity: ClassVar[Severity] = Severity.WARNING
    needs: ClassVar[tuple[Needs, ...]] = (Needs.FILES,)
    on_tick: ClassVar[bool] = False

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Options:
        """`kinds`: which kinds of problem count.

        Left out by default are `unsupported` and `not_regular` (no checkpoint at all) and `incomplete`, `changed` and
        `vanished` (still being written, or deleted by the trainer).
        """

        kinds: tuple[ProblemKind, ...] = REPORTED

    def check(self, window: Window, options: Options) -> Outcome:
        """Find the unreadable checkpoint with which the present stretch of failures began."""
        newest = window.newest
        if newest is None:
            return quiet("no checkpoint yet")
        if newest.status is SnapshotStatus.COMPLETE:
            return Outcome()
        if newest.problem is None or newest.problem.kind not in options.kinds:
            kind = "without a reason" if newest.problem is None else newest.problem.kind.value
            return quiet(f"the newest file could not be measured ({kind}), which says nothing about checkpoints")
        first_index, first, n_failed = len(window.snapshots) - 1, newest, 0
        for index in range(len(window.snapshots) - 1, -1, -1):
            snapshot = window.snapshots[index]
            if snapshot.status is SnapshotStatus.COMPLETE:
                break
            if snapshot.problem is not None and snapshot.problem.kind in options.kinds:
                first_index, first, n_failed = index, snapshot, n_failed + 1
        # One alert for a stretch of failures, known by the path it began with. A window full of failures has lost that
        # beginning, so it is known by the run alone; otherwise each new failure would open another alert.
        whole_window = first_index == 0 and n_failed > 1
        problem = newest.problem
        summary = f"Checkpoint {newest.path} cannot be read: {problem.message} ({problem.kind.value})"
        details = [("Problem", problem.kind.value), ("Size", f"{newest.size_bytes:,} bytes")]
        if n_failed > 1:
            details.append(("Unreadable in a row", str(n_failed)))
            details.append(("First of them", first.path))
        if problem.kind is ProblemKind.PERMISSION:
            details.append(("What to do", "give the user that ckptwatch runs as permission to read it"))
        finding = Finding(
            rule=self.name,
            severity=self.severity,
            run=window.run,
            step=newest.step,
            subject=newest.path,
            value=float(n_failed),
            threshold=None,
            unit="checkpoints",
            summary=summary,
            identity="" if whole_window else first.path,
            details=tuple(details),
        )
        return Outcome(findings=(finding,))
