"""The rule `gradient_explosion`: the gradient norm is far above what this run had before.

Checkpoints hold no gradients. The norm is inferred from Adam's second moment where there is optimizer state, else the
size of the weight update per step stands in for it; the finding says which. Each value is judged against the values
from before the explosion, so that the exploded ones do not raise the bar for themselves.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Annotated, ClassVar

from pydantic import Field

from alerts.rule import Needs, Outcome, number, quiet, step_text
from storage.records import Finding, GradientEstimate, Severity, SnapshotStatus, StoredSnapshot, Window

WEIGHT_UPDATE = "weight_update"
NORMAL_MAD_RATIO = 1.4826  # standard deviation of a normal distribution over its median absolute deviation
LOG_SPREAD_MIN = 0.05  # a baseline quieter than 5 % is taken as 5 %, so that z does not explode on a flat line
SOURCE_TEXT = {
    "adam_window": "Adam second moment, over the steps since the checkpoint before",
    "adam_ema": "Adam second moment, running average",
    WEIGHT_UPDATE: "weight update per step (no usable optimizer state)",
}


@dataclass(frozen=True, slots=True)
class Point:
    """One checkpoint's value in the series that is judged; finite and not negative."""

    step: int | None
    value: float


@dataclass(frozen=True, slots=True)
class Judgement:
    """What the series says about its last point: the usual value and the limit, and since when it is exploded.

    `baseline` is None while there are too few points; `first` is None unless the last point is exploded.
    """

    baseline: float | None
    limit: float | None
    n_baseline: int
    first: Point | None
    n_exploded: int


class GradientExplosion:
    """The gradient norm jumped far above this run's own past."""

    name: ClassVar[str] = "gradient_explosion"
    severity: ClassVar[Severity] = Severity.CRITICAL
    needs: ClassVar[tuple[Needs, ...]] = (Needs.OPTIMIZER, Needs.TWO_CHECKPOINTS)
    on_tick: ClassVar[bool] = False

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Options:
        """`factor`: how many times the median of the baseline is an explosion.

        `z_max` with `ratio_min`: or so many robust standard deviations of the logarithm, if it is at least so many
        times the median. An explosion lasts until the value is below `ratio_min` times the median.
        `baseline_checkpoints`, `baseline_checkpoints_min`: how many checkpoints from before are compared with.
        `accept_after_checkpoints`: after so many exploded checkpoints in a row a steady new height is the usual one.
        """

        factor: Annotated[float, Field(gt=1)] = 10.0
        z_max: Annotated[float, Field(gt=0)] = 6.0
        ratio_min: Annotated[float, Field(gt=1)] = 3.0
        baseline_checkpoints: Annotated[int, Field(ge=2, le=32)] = 8
        baseline_checkpoints_min: Annotated[int, Field(ge=2, le=32)] = 4
        accept_after_checkpoints: Annotated[int, Field(ge=2, le=32)] = 16

    def check(self, window: Window, options: Options) -> Outcome:
        """Compare the newest snapshot's gradient norm with those before it; silent without a norm or a baseline."""
        newest = window.newest
        if newest is None:
            return quiet("no checkpoint yet")
        if newest.status is not SnapshotStatus.COMPLETE:
            return quiet("the newest checkpoint could not be measured")
        source, points = _series(window.snapshots, newest)
        if not points:
            reason = "holds NaN or infinity" if newest.n_nonfinite else "has no optimizer state and no reference"
            return quiet(f"the newest checkpoint {reason}")
        judgement = judge(points, options)
        if judgement.baseline is None:
            return quiet(
                f"only {judgement.n_baseline} of the {options.baseline_checkpoints_min} checkpoints to compare with"
            )
        if judgement.first is None:
            return Outcome()
        return Outcome(findings=(_finding(window.run, newest, source, points[-1], judgement),))


def _series(snapshots: Sequence[StoredSnapshot], newest: StoredSnapshot) -> tuple[str, list[Point]]:
    """Return the source of the newest value and all values of that same source, oldest first; none without a newest."""
    source = newest.gradient.source if newest.gradient is not None else WEIGHT_UPDATE
    if _value(newest, source) is None:
        return source, []
    values = ((snapshot.step, _value(snapshot, source)) for snapshot in snapshots)
    return source, [Point(step, value) for step, value in values if value is not None]


def _value(snapshot: StoredSnapshot, source: str) -> float | None:
    if snapshot.status is not SnapshotStatus.COMPLETE:
        return None
    if source == WEIGHT_UPDATE:
        value = None if snapshot.n_nonfinite else snapshot.update_ratio
    elif snapshot.gradient is not None and snapshot.gradient.source == source:
        value = snapshot.gradient.norm
    else:
        return None
    return value if value is not None and math.isfinite(value) and value >= 0 else None


def judge(points: Sequence[Point], options: GradientExplosion.Options) -> Judgement:
    """Walk the series from old to new and judge its last point against the values from before the explosion.

    Exploded values never enter the baseline, so the median cannot catch up while the explosion lasts. When
    `accept_after_checkpoints` in a row stayed up and have levelled off, they become the baseline, so that it does not
    last for ever after a change that was meant (a new batch size). Zeros (a frozen model) say nothing about the usual
    size and are left out of the baseline.
    """
    baseline: deque[float] = deque(maxlen=max(options.baseline_checkpoints, options.baseline_checkpoints_min))
    exploded: list[Point] = []
    usual = limit = None
    n_baseline = 0
    for point in points:
        n_baseline = len(baseline)
        usual, limit = _limits(baseline, options)
        if usual is None or limit is None:
            if point.value > 0:
                baseline.append(point.value)
            continue
        if point.value > (options.ratio_min * usual if exploded else limit):
            exploded.append(point)
            if len(exploded) >= options.accept_after_checkpoints and _level(exploded, options):
                baseline.extend(p.value for p in exploded)
                exploded = []
        else:
            exploded = []
            if point.value > 0:
                baseline.append(point.value)
    return Judgement(
        baseline=usual,
        limit=limit,
        n_baseline=n_baseline,
        first=exploded[0] if exploded else None,
        n_exploded=len(exploded),
    )


def _level(exploded: Sequence[Point], options: GradientExplosion.Options) -> bool:
    latest = [p.value for p in exploded[-options.baseline_checkpoints :]]
    return max(latest) <= options.ratio_min * min(latest)


def _limits(
    baseline: Sequence[float] | deque[float], options: GradientExplosion.Options
) -> tuple[float | None, float | None]:
    """Return the median of the baseline and the value above which a point is an explosion; None with too few."""
    if len(baseline) < options.baseline_checkpoints_min:
        return None, None
    usual = median(baseline)
    logs = [math.log(v) for v in baseline]
    centre = median(logs)
    spread = max(NORMAL_MAD_RATIO * median(abs(v - centre) for v in logs), LOG_SPREAD_MIN)
    by_z = math.exp(min(centre + options.z_max * spread, 700.0))
    return usual, min(options.factor * usual, max(options.ratio_min * usual, by_z))


def spike_visible_ratio(limit_ratio: float, window_steps: int | None, beta2: float | None) -> float | None:
    """Return how many times the usual norm one single step must reach to lift the estimate over the limit.

    For a spike in the last step before the checkpoint, the best case. The weight of that step in the mean of squares
    is (1 - beta2) / (1 - beta2^k) over a window of k steps, and 1 - beta2 in the running average. None if unknown.
    """
    if beta2 is None or not 0 < beta2 < 1 or limit_ratio < 1:
        return None
    weight = 1 - beta2
    if window_steps is not None and window_steps > 0:
        weight /= 1 - beta2**window_steps
    return math.sqrt(1 + (limit_ratio**2 - 1) / weight)


def _source_text(gradient: GradientEstimate | None, source: str) -> str:
    text = SOURCE_TEXT.get(source, source)
    if gradient is None:
        return text
    if gradient.window_steps is not None:
        text += f" ({number(gradient.window_steps)} steps"
        text += f", beta2 {gradient.beta2:g})" if gradient.beta2 is not None else ")"
    elif gradient.beta2 is not None:
        text += f" (beta2 {gradient.beta2:g})"
    return text


def _finding(run: str, newest: StoredSnapshot, source: str, last: Point, judgement: Judgement) -> Finding:
    assert judgement.first is not None
    assert judgement.baseline is not None
    assert judgement.limit is not None
    gradient = newest.gradient if source != WEIGHT_UPDATE else None
    what = "Weight update per step" if source == WEIGHT_UPDATE else "Gradient norm"
    ratio = last.value / judgement.baseline
    summary = (
        f"{what} is {number(last.value)}, {number(ratio)} times its usual {number(judgement.baseline)}, "
        f"since {step_text(judgement.first.step)}"
    )
    details = [
        ("Source", _source_text(gradient, source)),
        (
            "Usual",
            f"{number(judgement.baseline)}, the median of {judgement.n_baseline} checkpoints before the explosion",
        ),
    ]
    if judgement.n_exploded > 1:
        details.append(("Exploded checkpoints", f"{judgement.n_exploded} in a row, newest at {step_text(last.step)}"))
    if gradient is not None:
        seen_from = spike_visible_ratio(judgement.limit / judgement.baseline, gradient.window_steps, gradient.beta2)
        if seen_from is not None:
            details.append(("Detection power", f"a one-step spike shows from {number(seen_from)} times the usual"))
        details.append(("Note", "gradients in optimizer state are after clipping and loss-scale removal"))
    if newest.update_ratio is not None and source != WEIGHT_UPDATE:
        details.append(("Weight update per step", number(newest.update_ratio)))
    finding = Finding(
        rule=GradientExplosion.name,
        severity=GradientExplosion.severity,
        run=run,
        step=judgement.first.step,
        subject="",
        value=last.value,
        threshold=judgement.limit,
        unit="",
        summary=summary,
        details=tuple(details),
    )
    return replace(finding, unit="per step") if source == WEIGHT_UPDATE else finding
