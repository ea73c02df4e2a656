"""The rule `update_ratio`: the weights change far too much, or almost not at all, with every step.

Judged against fixed limits that no sound training comes near, so it needs no past. `drift_spike` does the finer work.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import Field

from alerts.evidence import hit, newest_of, steps_between, why_silent
from alerts.rule import Needs, Outcome, number, quiet
from storage.records import Severity, SnapshotStatus, Window


class UpdateRatio:
    """The relative weight update per step is out of range."""

    name: ClassVar[str] = "update_ratio"
    severity: ClassVar[Severity] = Severity.WARNING
    needs: ClassVar[tuple[Needs, ...]] = (Needs.TWO_CHECKPOINTS,)
    on_tick: ClassVar[bool] = False

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Options:
        """`large`, `small`: the limits of |W - W0| / |W0| / steps over all parameters; about 1e-3 is usual.

        `checkpoints`: for how many in a row an update must be too small. Updates of exactly zero are no matter of this
        rule.
        """

        large: Annotated[float, Field(gt=0)] = 0.5
        small: Annotated[float, Field(ge=0)] = 1e-8
        checkpoints: Annotated[int, Field(ge=1, le=32)] = 3

    def check(self, window: Window, options: Options) -> Outcome:
        """Compare the newest update ratio with both limits; silent without a reference at a known step."""
        if (reason := why_silent(window)) is not None:
            return quiet(reason)
        newest = newest_of(window)
        ratio = newest.update_ratio
        if ratio is None:
            return quiet("no earlier checkpoint at a known step to compare with")
        measured = [s for s in window.snapshots if s.status is SnapshotStatus.COMPLETE]
        latest = [s.update_ratio for s in measured[-options.checkpoints :]]
        if ratio > options.large:
            what, limit, label = "too much", options.large, "at most"
        elif len(latest) == options.checkpoints and all(r is not None and 0 < r < options.small for r in latest):
            what, limit, label = "next to nothing", options.small, "at least"
        else:
            return Outcome()
        steps = steps_between(newest)
        return Outcome(
            findings=(
                hit(
                    self,
                    window,
                    f"The weights change {what}: by {number(ratio)} of their size per step, {label} {number(limit)}",
                    value=ratio,
                    threshold=limit,
                    unit="per step",
                    identity=what,
                    details=(
                        ("Measured over", f"{number(steps)} steps"),
                        ("Usual", "about 0.001 of the weights' size per step; the learning rate is the first suspect"),
                    ),
                ),
            )
        )
