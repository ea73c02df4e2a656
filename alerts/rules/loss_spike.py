"""The rule `loss_spike`: the logged loss is far above what it was, and not by chance."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import Field

from alerts.baseline import Bar, Point, judge
from alerts.evidence import hit
from alerts.rule import Needs, Outcome, number, quiet, step_text
from storage.records import Severity, Window


class LossSpike:
    """The loss jumped."""

    name: ClassVar[str] = "loss_spike"
    severity: ClassVar[Severity] = Severity.WARNING
    needs: ClassVar[tuple[Needs, ...]] = (Needs.LOG,)
    on_tick: ClassVar[bool] = False

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Options:
        """`factor`: how many times the median loss is a spike.

        `z_max` with `ratio_min`: or so many robust standard deviations of the logarithm, if it is at least so many
        times the median. `start_share`: and at least this part of the first loss in sight, so that the noise of a loss
        near zero is none. `baseline_checkpoints_min`: how many checkpoints there must be to compare with.
        """

        factor: Annotated[float, Field(gt=1)] = 10.0
        z_max: Annotated[float, Field(gt=0)] = 8.0
        ratio_min: Annotated[float, Field(gt=1)] = 3.0
        start_share: Annotated[float, Field(ge=0)] = 0.5
        baseline_checkpoints_min: Annotated[int, Field(ge=2, le=8)] = 5

    def check(self, window: Window, options: Options) -> Outcome:
        """Compare the mean loss since the checkpoint before with those of earlier checkpoints; silent without a log.

        Losses that are not positive are not judged.
        """
        now = _loss(window.scalars)
        if window.newest is None or now is None:
            return quiet("no loss in a log beside the checkpoint")
        points = [Point(p.snapshot.step, v) for p in window.past if (v := _loss(p.scalars)) is not None]
        if len(points) < options.baseline_checkpoints_min:
            return quiet(f"only {len(points)} of the {options.baseline_checkpoints_min} checkpoints to compare with")
        if min(now, *(p.value for p in points)) <= 0.0:
            return quiet("a loss that is not positive cannot be judged")
        bar = Bar(
            factor=options.factor,
            z_max=options.z_max,
            ratio_min=options.ratio_min,
            n_baseline_min=options.baseline_checkpoints_min,
            highest_min=2.0,
            floor=options.start_share * points[0].value,
        )
        judgement = judge([*points, Point(window.newest.step, now)], bar)
        if judgement.first is None or judgement.baseline is None:
            return Outcome()
        return Outcome(
            findings=(
                hit(
                    self,
                    window,
                    f"The logged loss is {number(now)}, {number(now / judgement.baseline)} times its usual "
                    f"{number(judgement.baseline)}, since {step_text(judgement.first.step)}",
                    step=judgement.first.step,
                    value=now,
                    threshold=judgement.limit,
                    details=(("Highest since the checkpoint before", number(window.scalars.get("log.loss_max"))),),
                ),
            )
        )


def _loss(scalars: Mapping[str, float]) -> float | None:
    return scalars.get("log.loss")
