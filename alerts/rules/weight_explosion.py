"""The rule `weight_explosion`: weights grew far beyond what this run had, all of them, one tensor or one element.

A single element that jumps while the rest of its tensor stays is what a flipped bit or a damaged write looks like. The
running variance of a normalisation layer is judged like a weight: it shows inputs of another size, which the layer
keeps from everything behind it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import Field

from alerts.baseline import Bar, Judgement, Point, judge
from alerts.evidence import hit, listed, matrices, of_same_family, why_silent
from alerts.rule import Needs, Outcome, number, quiet, step_text
from storage.records import Finding, PastSnapshot, Severity, SnapshotStatus, TensorKind, TensorSummary, Window

NEVER = 1e9  # a z that no value reaches: only the factor decides
RMS_MIN = 1e-3  # smaller weights may still be growing out of an initialisation at zero
ABS_MAX_MIN = 1e-3
ELEMENTS_MIN = 64
STATISTICS = re.compile(r"(?:^|[./_])(?:running_var|moving_variance)(?:$|[/:])")
STATISTICS_MIN = 4  # checkpoints to compare with: running statistics still settle in a run's first ones
BULK_CHANGE_MAX = 0.5  # how far the mean magnitude of the other elements may have moved when one element jumps


class WeightExplosion:
    """Weights far larger than before."""

    name: ClassVar[str] = "weight_explosion"
    severity: ClassVar[Severity] = Severity.CRITICAL
    needs: ClassVar[tuple[Needs, ...]] = (Needs.TWO_CHECKPOINTS,)
    on_tick: ClassVar[bool] = False

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Options:
        """`factor`: how many times its earlier size a norm, or the largest element, may reach.

        `ratio_min` with `z_max`: the weight norm of the whole model is held more closely, to so many robust standard
        deviations of its logarithm, if it is at least so many times the median.
        `steady_factor`: how many times its size the largest element may reach where it hardly moved before.
        """

        factor: Annotated[float, Field(gt=1)] = 10.0
        ratio_min: Annotated[float, Field(gt=1)] = 3.0
        z_max: Annotated[float, Field(gt=0)] = 6.0
        steady_factor: Annotated[float, Field(gt=1)] = 4.0

    def check(self, window: Window, options: Options) -> Outcome:
        """Judge the norm of all weights, then each matrix's norm and largest element; silent without a past."""
        if (reason := why_silent(window)) is not None:
            return quiet(reason)
        past = of_same_family(window)
        if not past:
            return quiet("no earlier checkpoint of the same kind to compare with")
        found = _whole(window, options)
        if found is None:
            found = (
                _tensors(window, past, options)
                or _elements(window, past, options)
                or _statistics(window, past, options)
            )
        return Outcome(findings=(found,)) if found is not None else Outcome()


def _whole(window: Window, options: WeightExplosion.Options) -> Finding | None:
    bar = Bar(
        factor=options.factor, z_max=options.z_max, ratio_min=options.ratio_min, n_baseline_min=3, highest_min=1.5
    )
    points = [
        Point(s.step, s.weight_norm)
        for s in window.snapshots
        if s.status is SnapshotStatus.COMPLETE and s.weight_norm is not None
    ]
    judgement = judge(points, bar)
    if judgement.first is None or judgement.baseline is None:
        return None
    value = points[-1].value
    grown = sorted(matrices(window.tensors), key=lambda t: -(_rms(t) or 0.0))
    return hit(
        WeightExplosion,
        window,
        f"The weights grew to {number(value / judgement.baseline)} times their usual size: norm {number(value)}, "
        f"usually {number(judgement.baseline)}, since {step_text(judgement.first.step)}",
        step=judgement.first.step,
        value=value,
        threshold=judgement.limit,
        details=listed((t.name, f"root mean square {number(_rms(t))}") for t in grown),
    )


def _tensors(window: Window, past: list[PastSnapshot], options: WeightExplosion.Options) -> Finding | None:
    bar = Bar(factor=options.factor, z_max=NEVER, n_baseline_min=2, highest_min=options.factor)
    found = _judged(window, past, _rms, bar, at_least=RMS_MIN)
    if not found:
        return None
    return _about(window, found, "the weights", "root mean square")


def _statistics(window: Window, past: list[PastSnapshot], options: WeightExplosion.Options) -> Finding | None:
    bar = Bar(factor=options.factor, z_max=NEVER, n_baseline_min=STATISTICS_MIN, highest_min=options.factor)
    held = [t for t in window.tensors if t.kind is TensorKind.BUFFER and STATISTICS.search(t.name)]
    found = _judged(window, past, _rms, bar, at_least=RMS_MIN, among=held)
    return _about(window, found, "the variance of its inputs", "root mean square") if found else None


def _elements(window: Window, past: list[PastSnapshot], options: WeightExplosion.Options) -> Finding | None:
    wide = Bar(factor=options.factor, z_max=NEVER, n_baseline_min=1, highest_min=options.factor)
    found = _judged(window, past, _largest, wide, at_least=ABS_MAX_MIN)
    if len(past) >= 3:
        close = Bar(
            factor=options.steady_factor,
            z_max=NEVER,
            ratio_min=min(options.steady_factor, 3.0),
            n_baseline_min=3,
            highest_min=options.steady_factor,
        )
        steady = _judged(window, past, _largest, close, at_least=ABS_MAX_MIN)
        found = {**{n: j for n, j in steady.items() if _was_steady(n, past)}, **found}
    bulk = {t.name: _bulk(t) for t in past[0].tensors}
    lone = {
        t.name: found[t.name]
        for t in window.tensors
        if t.name in found and _is_near(_bulk(t), bulk.get(t.name)) and t.n_elements >= ELEMENTS_MIN
    }
    if not lone:
        return None
    return _about(window, lone, "a few elements", "largest magnitude")


def _about(window: Window, found: Mapping[str, tuple[float, Judgement]], who: str, what: str) -> Finding:
    first = next(iter(found))
    value, judgement = found[first]
    assert judgement.baseline is not None
    assert judgement.first is not None
    count = f" ({number(len(found))} tensors in all)" if len(found) > 1 else ""
    return hit(
        WeightExplosion,
        window,
        f"In {first}, {who} grew to {number(value / judgement.baseline)} times the size before: "
        f"{what} {number(value)}, usually {number(judgement.baseline)}{count}",
        subject=first,
        step=judgement.first.step,
        value=value,
        threshold=judgement.limit,
        details=listed((n, f"{what} {number(v)}, usually {number(j.baseline)}") for n, (v, j) in found.items()),
    )


def _judged(
    window: Window,
    past: list[PastSnapshot],
    measure: Callable[[TensorSummary], float | None],
    bar: Bar,
    *,
    at_least: float,
    among: Sequence[TensorSummary] | None = None,
) -> dict[str, tuple[float, Judgement]]:
    """Return the matrices, or the tensors given, whose measure is too high, with value and judgement, in order."""
    before = [{t.name: t for t in p.tensors} for p in past]
    found = {}
    for tensor in matrices(window.tensors) if among is None else among:
        value = measure(tensor)
        points = [
            Point(p.snapshot.step, old)
            for p, tensors in zip(past, before, strict=True)
            if tensor.name in tensors
            and tensors[tensor.name].shape == tensor.shape
            and (old := measure(tensors[tensor.name])) is not None
            and old >= at_least
        ]
        if value is None or not points:
            continue
        judgement = judge([*points, Point(None, value)], bar)
        if judgement.first is not None:
            found[tensor.name] = (value, judgement)
    return found


def _rms(tensor: TensorSummary) -> float | None:
    return tensor.norm_l2 / math.sqrt(tensor.n_elements) if tensor.norm_l2 is not None and tensor.n_elements else None


def _largest(tensor: TensorSummary) -> float | None:
    return tensor.abs_max


def _bulk(tensor: TensorSummary) -> float | None:
    """Return the mean magnitude of all elements but the largest, None where float64 cannot tell it any more."""
    if tensor.norm_l1 is None or tensor.abs_max is None or tensor.n_elements < 2:
        return None
    rest = tensor.norm_l1 - tensor.abs_max
    return rest / (tensor.n_elements - 1) if rest > tensor.norm_l1 * 1e-12 else None


def _is_near(now: float | None, before: float | None) -> bool:
    """Say whether the other elements stayed; they count as having stayed where one element drowns them."""
    return now is None or before is None or abs(now - before) <= BULK_CHANGE_MAX * before


def _was_steady(name: str, past: list[PastSnapshot]) -> bool:
    values = [t.abs_max for p in past for t in p.tensors if t.name == name and t.abs_max]
    head = values[:3]  # the jump itself may lie within the past, but not in its beginning
    return len(head) == 3 and max(head) <= 1.5 * min(head)
