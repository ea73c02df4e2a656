"""A run's own past as the measure of its present: what is usual, and how far above it is too far. Pure arithmetic.

It works on the logarithm, with median and median absolute deviation, so that a few odd values neither raise nor lower
the bar. It knows no rule and no tensor.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median

NORMAL_MAD_RATIO = 1.4826  # standard deviation of a normal distribution over its median absolute deviation
LOG_SPREAD_MIN = 0.05  # a baseline quieter than 5 % is taken as 5 %, so that z does not explode on a flat line


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """When a value is too high.

    `factor`: more than so many times the median of the baseline; or `z_max` robust standard deviations of the logarithm
    if it is at least `ratio_min` times the median. What is too high stays so until it is below `ratio_min` times the
    median. `highest_min`: in any case it must be so many times the highest value of the baseline. `floor`: and above
    this. After `accept_after` in a row a steady new height is the usual one.
    """

    factor: float = 10.0
    z_max: float = 6.0
    ratio_min: float = 3.0
    n_baseline: int = 8
    n_baseline_min: int = 4
    accept_after: int = 16
    highest_min: float = 0.0
    floor: float = 0.0


@dataclass(frozen=True, slots=True)
class Point:
    """One checkpoint's value in the series that is judged; finite and not negative."""

    step: int | None
    value: float


@dataclass(frozen=True, slots=True)
class Judgement:
    """What the series says about its last point: the usual value and the limit, and since when it is too high.

    `baseline` is None while there are too few points; `first` is None unless the last point is too high.
    """

    baseline: float | None
    limit: float | None
    n_baseline: int
    first: Point | None
    n_high: int


def judge(points: Sequence[Point], bar: Bar) -> Judgement:
    """Walk the series from old to new and judge its last point against the values from before it went high.

    High values never enter the baseline, so the median cannot catch up while the trouble lasts. When `accept_after` in
    a row stayed up and have levelled off, they become the baseline, so that it does not last for ever after a change
    that was meant (a new batch size). Zeros (a frozen model) say nothing about the usual size and are left out.
    """
    baseline: deque[float] = deque(maxlen=max(bar.n_baseline, bar.n_baseline_min))
    high: list[Point] = []
    usual = limit = None
    n_baseline = 0
    for point in points:
        n_baseline = len(baseline)
        usual, limit = _limits(baseline, bar)
        if usual is None or limit is None:
            if point.value > 0:
                baseline.append(point.value)
            continue
        if point.value > (max(bar.ratio_min * usual, bar.floor) if high else limit):
            high.append(point)
            if len(high) >= bar.accept_after and _level(high, bar):
                baseline.extend(p.value for p in high)
                high = []
        else:
            high = []
            if point.value > 0:
                baseline.append(point.value)
    return Judgement(
        baseline=usual, limit=limit, n_baseline=n_baseline, first=high[0] if high else None, n_high=len(high)
    )


def _level(high: Sequence[Point], bar: Bar) -> bool:
    latest = [p.value for p in high[-bar.n_baseline :]]
    return max(latest) <= bar.ratio_min * min(latest)


def _limits(baseline: Sequence[float] | deque[float], bar: Bar) -> tuple[float | None, float | None]:
    """Return the median of the baseline and the value above which a point is too high; None with too few."""
    if len(baseline) < bar.n_baseline_min:
        return None, None
    usual = median(baseline)
    limit = min(bar.factor * usual, max(bar.ratio_min * usual, math.exp(min(_z_limit(baseline, bar.z_max), 700.0))))
    return usual, max(limit, bar.highest_min * max(baseline), bar.floor)


def _z_limit(values: Iterable[float], z_max: float) -> float:
    logs = [math.log(v) for v in values]
    centre = median(logs)
    return centre + z_max * max(NORMAL_MAD_RATIO * median(abs(v - centre) for v in logs), LOG_SPREAD_MIN)


def over_steps(moved: float, steps: int | None, steps_now: int | None) -> float:
    """Return how far something that moved so far in `steps` may at most be expected to move in `steps_now`.

    Straight motion grows with the steps, a random walk with their root; the larger of the two is taken, so that another
    save interval alone never looks like more motion. Unknown steps count as equal.
    """
    if not steps or not steps_now or steps < 0 or steps_now < 0:
        return moved
    ratio = steps_now / steps
    return moved * max(ratio, math.sqrt(ratio))
