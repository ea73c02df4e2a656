"""The rule `gradient_explosion`: the gradient norm is far above what this run had before.

Checkpoints hold no gradients. The norm is inferred from Adam's second moment where there is optimizer state, else the
size of the weight update per step stands in for it; the finding says which. Each value is judged against the values
from before the explosion, so that the exploded ones do not raise the bar for themselves.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar

from pydantic import Field

from alerts.baseline import Bar, Judgement, Point, judge, over_steps
from alerts.evidence import rate_rise, steps_between
from alerts.rule import Needs, Outcome, number, quiet, step_text
from storage.records import Finding, GradientEstimate, Severity, SnapshotStatus, StoredSnapshot, Window

WEIGHT_UPDATE = "weight_update"
SOURCE_TEXT = {
    "adam_window": "Adam second moment, over the steps since the checkpoint before",
    "adam_ema": "Adam second moment, running average",
    "adafactor_window": "Adafactor second moment, over the steps since the checkpoint before",
    "adafactor_ema": "Adafactor second moment, running average",
    "rmsprop_window": "RMSprop second moment, over the steps since the checkpoint before",
    "rmsprop_ema": "RMSprop second moment, running average",
    "adagrad_window": "Adagrad sum of squares, over the steps since the checkpoint before",
    "adagrad_ema": "Adagrad sum of squares, mean since the beginning",
    "adam_8bit_bound": "Adam second moment in 8 bits, an upper bound",
    "adamax_max": "Adamax decayed maximum, an upper bound",
    "sgd_momentum": "SGD momentum, as if gradients were mostly noise",
    "lion_momentum": "Lion momentum, as if gradients were mostly noise",
    "logged": "the norms that training logged",
    WEIGHT_UPDATE: "weight update per step (no usable optimizer state)",
}


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
        times the median. Either way it must be `highest_min` times the highest value of the baseline: gradients may
        rise in sound trainings, too. An explosion lasts until the value is below `ratio_min` times the median.
        `baseline_checkpoints`, `baseline_checkpoints_min`: how many checkpoints from before are compared with.
        `accept_after_checkpoints`: after so many exploded checkpoints in a row a steady new height is the usual one.
        """

        factor: Annotated[float, Field(gt=1)] = 10.0
        z_max: Annotated[float, Field(gt=0)] = 6.0
        ratio_min: Annotated[float, Field(gt=1)] = 3.0
        highest_min: Annotated[float, Field(ge=0)] = 3.0
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
        judgement = judge(points, _bar(options))
        if judgement.baseline is None:
            return quiet(
                f"only {judgement.n_baseline} of the {options.baseline_checkpoints_min} checkpoints to compare with"
            )
        if judgement.first is None:
            return Outcome()
        assert judgement.limit is not None
        if source == WEIGHT_UPDATE and points[-1].value <= judgement.limit * rate_rise(window):
            return Outcome()  # the learning rate was raised as planned, and the updates with it
        return Outcome(findings=(_finding(window.run, newest, source, points[-1], judgement),))


def _series(snapshots: Sequence[StoredSnapshot], newest: StoredSnapshot) -> tuple[str, list[Point]]:
    """Return the source of the newest value and all values of that same source, oldest first; none without a newest."""
    is_known = newest.gradient is not None and not newest.gradient.is_assumed
    source = newest.gradient.source if newest.gradient is not None and is_known else WEIGHT_UPDATE
    if _value(newest, source) is None:
        return source, []
    values = ((snapshot, _value(snapshot, source)) for snapshot in snapshots)
    if source != WEIGHT_UPDATE:
        return source, [Point(snapshot.step, value) for snapshot, value in values if value is not None]
    now = steps_between(newest)
    return source, [
        Point(snapshot.step, _update_over(value, steps_between(snapshot), now))
        for snapshot, value in values
        if value is not None
    ]


def _update_over(per_step: float, steps: int | None, steps_now: int | None) -> float:
    """Return the update per step that the same training would show at the newest checkpoint's distance."""
    if steps is None or steps_now is None:
        return per_step
    return over_steps(per_step * steps, steps, steps_now) / steps_now


def _bar(options: GradientExplosion.Options) -> Bar:
    return Bar(
        factor=options.factor,
        z_max=options.z_max,
        ratio_min=options.ratio_min,
        n_baseline=options.baseline_checkpoints,
        n_baseline_min=options.baseline_checkpoints_min,
        accept_after=options.accept_after_checkpoints,
        highest_min=options.highest_min,
    )


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
    if judgement.n_high > 1:
        details.append(("Exploded checkpoints", f"{judgement.n_high} in a row, newest at {step_text(last.step)}"))
    if gradient is not None:
        seen_from = spike_visible_ratio(judgement.limit / judgement.baseline, gradient.window_steps, gradient.beta2)
        if seen_from is not None:
            details.append(("Detection power", f"a one-step spike shows from {number(seen_from)} times the usual"))
    if gradient is not None and gradient.source != "logged":
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
