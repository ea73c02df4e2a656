"""The rule `similar_runs`: another run has the very same weights at the same steps.

Two runs that were meant to differ (another seed, other data, another setting) and do not: the setting has no effect, or
one job copies or resumes from the other's checkpoints. Storage finds the pairs; they are equal to the last bit. An info
by itself, since a directory that was copied, or a run repeated to look into it, is equal on purpose.
"""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Annotated, ClassVar

from pydantic import Field

from alerts.evidence import hit, newest_of, why_silent
from alerts.rule import Needs, Outcome, number, quiet, step_text
from storage.records import Severity, SnapshotStatus, StoredSnapshot, Window


class SimilarRuns:
    """Two runs are the same."""

    name: ClassVar[str] = "similar_runs"
    severity: ClassVar[Severity] = Severity.INFO
    needs: ClassVar[tuple[Needs, ...]] = (Needs.WEIGHTS,)
    on_tick: ClassVar[bool] = False

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Options:
        """`checkpoints`: how many in a row must be equal; fewer are what a fork of a run looks like.

        `ignore`: glob patterns of runs that may be equal to this one.
        """

        checkpoints: Annotated[int, Field(ge=1, le=8)] = 2
        ignore: tuple[str, ...] = ()

    def check(self, window: Window, options: Options) -> Outcome:
        """Count checkpoints in a row that another run has too; silent where the weights cannot be compared."""
        if (reason := why_silent(window)) is not None:
            return quiet(reason)
        newest = newest_of(window)
        if not newest.step:
            return quiet("the newest checkpoint names no step after 0: runs may begin with the same weights")
        if newest.weight_norm is None:
            return quiet("the newest checkpoint holds no weights to compare")
        by_run: dict[str, dict[int, StoredSnapshot]] = {}
        for mine, twin in window.twins:
            if not any(fnmatchcase(twin.run, pattern) for pattern in options.ignore):
                by_run.setdefault(twin.run, {})[mine.id] = twin
        complete = [s for s in window.snapshots if s.status is SnapshotStatus.COMPLETE]
        stretches = {run: _stretch(complete, twins) for run, twins in by_run.items()}
        run, stretch = max(stretches.items(), key=lambda item: len(item[1]), default=("", []))
        # Equal weights that do not change are the business of duplicate_checkpoint.
        moving = len({s.weight_norm for s in stretch})
        if len(stretch) < options.checkpoints or moving < options.checkpoints:
            return Outcome()
        others = sorted(other for other, found in stretches.items() if other != run and found)
        twin = by_run[run][newest.id]
        return Outcome(
            findings=(
                hit(
                    self,
                    window,
                    f"The weights are those of run {run} since {step_text(stretch[0].step)}, bit for bit: "
                    f"{number(len(stretch))} checkpoints in a row",
                    step=stretch[0].step,
                    value=float(len(stretch)),
                    threshold=float(options.checkpoints),
                    unit="checkpoints",
                    details=(
                        ("The other run", run),
                        ("Its checkpoint", twin.path),
                        ("Usual reasons", "a setting or seed without effect, or a job that saves or resumes another's"),
                        *((("Also equal", ", ".join(others)),) if others else ()),
                    ),
                ),
            )
        )


def _stretch(complete: list[StoredSnapshot], twins: dict[int, StoredSnapshot]) -> list[StoredSnapshot]:
    """Return the newest snapshots in a row that have a twin, oldest first."""
    found: list[StoredSnapshot] = []
    for snapshot in reversed(complete):
        if snapshot.id not in twins:
            break
        found.append(snapshot)
    return found[::-1]
