"""The rule `stalled_run`: an active run has not written a checkpoint for far longer than it usually takes.

The usual time is the run's own: the median of the latest intervals between its checkpoints. A stall is found when time
passes; a new checkpoint ends it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median
from typing import Annotated, ClassVar

from pydantic import Field

from alerts.rule import Needs, Outcome, quiet, step_text
from storage.records import Finding, Severity, StoredSnapshot, Window

INTERVALS_MAX = 16  # the pace that counts is the recent one
TOGETHER_SECONDS_MAX = 1.0  # files written so close together (a numbered one and `last`) are one save


class StalledRun:
    """No checkpoint for several times the usual interval."""

    name: ClassVar[str] = "stalled_run"
    severity: ClassVar[Severity] = Severity.WARNING
    needs: ClassVar[tuple[Needs, ...]] = (Needs.FILES,)
    on_tick: ClassVar[bool] = True

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Options:
        """`factor`: how many usual intervals without a checkpoint are a stall; never less than `minimum_seconds`.

        `intervals_min`: how many intervals must be known before there is a usual one.
        """

        factor: Annotated[float, Field(gt=1)] = 3.0
        minimum_seconds: Annotated[float, Field(ge=0)] = 600.0
        intervals_min: Annotated[int, Field(ge=1, le=INTERVALS_MAX)] = 5

    def check(self, window: Window, options: Options) -> Outcome:
        """Compare the time since the last checkpoint with the run's usual interval."""
        newest = window.newest
        if newest is None:
            return quiet("no checkpoint yet")
        if not window.active or window.reason != "tick":
            return Outcome()  # a run that has ended cannot stall, and one that has just written does not
        intervals = save_intervals(window.snapshots)[-INTERVALS_MAX:]
        if len(intervals) < options.intervals_min:
            return quiet(f"only {len(intervals)} of the {options.intervals_min} intervals that make a pace")
        usual = median(intervals)
        limit = max(options.factor * usual, options.minimum_seconds)
        # Measuring can lag behind writing, and copied files carry old times: the later of the two times counts.
        last_at = max(max(s.written_at, s.measured_at) for s in window.snapshots)
        waited = window.now - last_at
        if waited <= limit:
            return Outcome()
        finding = Finding(
            rule=self.name,
            severity=self.severity,
            run=window.run,
            step=newest.step,
            subject=newest.path,
            value=waited,
            threshold=limit,
            unit="seconds",
            summary=(
                f"No checkpoint for {duration_text(waited)} since {step_text(newest.step)}; "
                f"the usual interval is {duration_text(usual)}"
            ),
            details=(("Limit", duration_text(limit)), ("Intervals looked at", str(len(intervals)))),
        )
        return Outcome(findings=(finding,))


def save_intervals(snapshots: Sequence[StoredSnapshot]) -> list[float]:
    """Return the seconds between one save and the next in order of time; files of one save count once.

    Snapshots of the same step, or written within a second of each other, belong to one save.
    """
    saves: dict[tuple[str, int], float] = {}
    for snapshot in snapshots:
        key = ("step", snapshot.step) if snapshot.step is not None else ("id", snapshot.id)
        saves[key] = max(saves.get(key, snapshot.written_at), snapshot.written_at)
    times = sorted(saves.values())
    return [b - a for a, b in pairwise(times) if b - a > TOGETHER_SECONDS_MAX]


def duration_text(seconds: float) -> str:
    """Write a duration with its two largest units, such as "2 h 5 min" or "45 s"."""
    total = round(max(seconds, 0.0))
    days, hours, minutes, rest = total // 86400, total // 3600 % 24, total // 60 % 60, total % 60
    parts = [(days, "d"), (hours, "h"), (minutes, "min"), (rest, "s")]
    first = next((i for i, (amount, _) in enumerate(parts) if amount), 3)
    return " ".join(f"{amount} {unit}" for amount, unit in parts[first : first + 2] if amount) or "0 s"
