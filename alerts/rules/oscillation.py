"""The rule `oscillation`: from checkpoint to checkpoint the weights go back the way they came.

Each update is compared with the one before. A run that wanders around a minimum has updates at a cosine of -0.5 (the
differences of independent points), so only what is well below that, several times in a row, is going back and forth.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import Field

from alerts.evidence import family, hit, newest_of, why_silent
from alerts.rule import Needs, Outcome, number, quiet, step_text
from storage.records import Severity, StoredSnapshot, Window

UPDATE_COSINE = "path.update_cosine"  # a number that measuring leaves with the snapshot


class Oscillation:
    """The weights go back and forth."""

    name: ClassVar[str] = "oscillation"
    severity: ClassVar[Severity] = Severity.WARNING
    needs: ClassVar[tuple[Needs, ...]] = (Needs.TWO_CHECKPOINTS,)
    on_tick: ClassVar[bool] = False

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Options:
        """`cosine_max`: updates at this cosine or below to the one before are going back.

        `checkpoints`: how many of them in a row. `update_min`: and each must change the weights by this part of their
        size, since what hardly moves may shake.
        """

        cosine_max: Annotated[float, Field(ge=-1, lt=0)] = -0.8
        checkpoints: Annotated[int, Field(ge=2, le=8)] = 4
        update_min: Annotated[float, Field(ge=0)] = 0.001

    def check(self, window: Window, options: Options) -> Outcome:
        """Count updates in a row that undo the one before; silent without three checkpoints of one kind."""
        if (reason := why_silent(window)) is not None:
            return quiet(reason)
        newest = newest_of(window)
        series = [(p.snapshot, p.scalars) for p in window.past]
        series.append((newest, window.scalars))
        if UPDATE_COSINE not in window.scalars:
            return quiet("no two updates to compare: that takes three checkpoints of the same parameters")
        if len({family(snapshot.path) for snapshot, _ in series[-3:]}) > 1:
            return quiet("checkpoints of several kinds take turns: the way from one to the other is no update")
        first = _first_of_stretch(series, options)
        if first is None or len(series) - first < options.checkpoints:
            return Outcome()
        n_back = len(series) - first
        cosine = window.scalars[UPDATE_COSINE]
        began = series[first][0]
        return Outcome(
            findings=(
                hit(
                    self,
                    window,
                    f"The weights go back and forth since {step_text(began.step)}: {number(n_back)} updates in a row "
                    f"undo the one before (cosine {number(cosine)})",
                    step=began.step,
                    value=cosine,
                    threshold=options.cosine_max,
                    unit="cosine",
                    details=(
                        ("Updates that go back", f"{number(n_back)} in a row"),
                        ("Usual reasons", "a learning rate at the edge of stability, or two jobs that save by turns"),
                    ),
                ),
            )
        )


def _first_of_stretch(
    series: list[tuple[StoredSnapshot, Mapping[str, float]]], options: Oscillation.Options
) -> int | None:
    first = None
    for index in range(len(series) - 1, -1, -1):
        snapshot, scalars = series[index]
        cosine = scalars.get(UPDATE_COSINE)
        if cosine is None or cosine > options.cosine_max or _moved(snapshot) < options.update_min:
            break
        first = index
    return first


def _moved(snapshot: StoredSnapshot) -> float:
    """Return by which part of their size the weights changed since the reference; 0 where that is not known."""
    if snapshot.update_ratio is None or snapshot.step is None or snapshot.reference_step is None:
        return 0.0
    return snapshot.update_ratio * max(snapshot.step - snapshot.reference_step, 0)
