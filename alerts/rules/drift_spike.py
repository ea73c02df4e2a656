"""The rule `drift_spike`: between two checkpoints the weights moved much further than they usually do.

The usual is the run's own past, brought to the same number of steps, so that another save interval alerts nobody. A
rise of the learning rate that was planned (warm-up, warm restart) raises the bar.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import Field

from alerts.baseline import Bar, Judgement, Point, judge, over_steps
from alerts.evidence import drifts_of, hit, listed, newest_of, parameters, rate_rise, steps_between, why_silent
from alerts.rule import Needs, Outcome, number, quiet, step_text
from storage.records import Finding, Severity, SnapshotStatus, StoredSnapshot, TensorDrift, Window

REPLACED_RELATIVE = 0.5  # so much of the weights' size in one jump: other weights, not training
ELEMENTS_MIN = 64


class DriftSpike:
    """The weights jumped."""

    name: ClassVar[str] = "drift_spike"
    severity: ClassVar[Severity] = Severity.WARNING
    needs: ClassVar[tuple[Needs, ...]] = (Needs.TWO_CHECKPOINTS,)
    on_tick: ClassVar[bool] = False

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Options:
        """`factor`: how many times the usual change is a jump, at `floor` of the weights' size or more.

        `z_max` with `ratio_min`: or so many robust standard deviations of the logarithm, if it is at least so many
        times the usual. `tensor_factor`, `tensor_floor`: the same for a single tensor, which scatters more.
        `baseline_checkpoints_min`: how many checkpoints there must be to compare with.
        """

        factor: Annotated[float, Field(gt=1)] = 8.0
        z_max: Annotated[float, Field(gt=0)] = 8.0
        ratio_min: Annotated[float, Field(gt=1)] = 4.0
        floor: Annotated[float, Field(ge=0)] = 0.02
        tensor_factor: Annotated[float, Field(gt=1)] = 10.0
        tensor_floor: Annotated[float, Field(ge=0)] = 0.1
        baseline_checkpoints_min: Annotated[int, Field(ge=2, le=32)] = 4

    def check(self, window: Window, options: Options) -> Outcome:
        """Judge the newest change of all weights, then of each tensor; silent without a reference or a past."""
        if (reason := why_silent(window)) is not None:
            return quiet(reason)
        newest = newest_of(window)
        points = _changes(window)
        if newest.update_ratio is None or not points:
            return quiet("no earlier checkpoint at a known step to compare with")
        excuse = rate_rise(window)
        bar = Bar(
            factor=options.factor * excuse,
            z_max=options.z_max * excuse,
            ratio_min=options.ratio_min * excuse,
            n_baseline_min=options.baseline_checkpoints_min,
            highest_min=2.0,
            floor=options.floor,
        )
        judgement = judge(points, bar)
        if judgement.baseline is None:
            return quiet(
                f"only {judgement.n_baseline} of the {options.baseline_checkpoints_min} checkpoints to compare with"
            )
        if judgement.first is not None:
            return Outcome(findings=(_whole(window, points[-1].value, judgement),))
        found = _tensors(window, options, excuse)
        return Outcome(findings=(_single(window, found),)) if found else Outcome()


def _changes(window: Window) -> list[Point]:
    """Return |W - W0| / |W0| from reference to checkpoint, each over as many steps as the newest one's."""
    now = steps_between(newest_of(window))
    return [
        Point(s.step, over_steps(s.update_ratio * steps, steps, now))
        for s in window.snapshots
        if s.status is SnapshotStatus.COMPLETE
        and s.update_ratio is not None
        and not s.n_nonfinite
        and (steps := steps_between(s)) is not None
    ]


def _tensors(window: Window, options: DriftSpike.Options, excuse: float) -> dict[str, tuple[TensorDrift, Judgement]]:
    bar = Bar(
        factor=options.tensor_factor * excuse,
        z_max=1e9,
        ratio_min=options.tensor_factor * excuse / 2,
        n_baseline_min=options.baseline_checkpoints_min,
        highest_min=4.0,
    )
    now = steps_between(newest_of(window))
    past = [(p.snapshot, drifts_of(p.drifts)) for p in window.past]
    newest = drifts_of(window.drifts)
    found = {}
    for tensor in parameters(window.tensors):
        drift = newest.get(tensor.name)
        if drift is None or tensor.n_elements < ELEMENTS_MIN or not drift.difference_l2:
            continue
        if (drift.relative_l2 or 0.0) < options.tensor_floor:
            continue
        points = [
            Point(s.step, over_steps(d.difference_l2, steps_between(s), now))
            for s, drifts in past
            if (d := drifts.get(tensor.name)) is not None and d.difference_l2
        ]
        judgement = judge([*points, Point(None, drift.difference_l2)], bar)
        if judgement.first is not None:
            found[tensor.name] = (drift, judgement)
    return found


def _whole(window: Window, value: float, judgement: Judgement) -> Finding:
    assert judgement.baseline is not None
    assert judgement.first is not None
    newest = newest_of(window)
    moved = sorted((d for d in window.drifts if d.relative_l2 is not None), key=lambda d: -(d.relative_l2 or 0.0))
    names = {t.name for t in parameters(window.tensors)}
    replaced = value >= REPLACED_RELATIVE
    return hit(
        DriftSpike,
        window,
        f"The weights jumped: they changed by {number(value)} of their size, {number(value / judgement.baseline)} "
        f"times the usual, since {step_text(judgement.first.step)}",
        severity=Severity.CRITICAL if replaced else DriftSpike.severity,
        step=judgement.first.step,
        value=value,
        threshold=judgement.limit,
        unit="of the weights' size",
        details=(
            _between(newest),
            *((("Suspicion", "so much at once: other weights were loaded, or training diverged"),) if replaced else ()),
            *listed((d.name, f"changed by {number(d.relative_l2)} of its size") for d in moved if d.name in names),
        ),
    )


def _single(window: Window, found: dict[str, tuple[TensorDrift, Judgement]]) -> Finding:
    name, (drift, judgement) = max(found.items(), key=lambda item: item[1][0].relative_l2 or 0.0)
    assert drift.difference_l2 is not None
    assert judgement.baseline is not None
    more = f" ({number(len(found))} tensors in all)" if len(found) > 1 else ""
    times = drift.difference_l2 / judgement.baseline
    return hit(
        DriftSpike,
        window,
        f"{name} jumped: it changed by {number(drift.relative_l2)} of its size, {number(times)} times the usual{more}",
        subject=name,
        value=drift.difference_l2,
        threshold=judgement.limit,
        details=(
            _between(newest_of(window)),
            *listed((n, f"changed by {number(d.relative_l2)} of its size") for n, (d, _) in found.items()),
        ),
    )


def _between(newest: StoredSnapshot) -> tuple[str, str]:
    return "Compared with", f"{step_text(newest.reference_step)}, {number(steps_between(newest))} steps before"
