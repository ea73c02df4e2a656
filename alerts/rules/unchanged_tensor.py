"""The rule `unchanged_tensor`: a parameter stands still, bit for bit, while the others are trained.

Frozen layers are everyday life in fine-tuning. What counts is a parameter that moved in this run and stopped, or a
single layer that never moved with trained ones before and behind it; others that never moved are only mentioned, and
only where they are few. One that weight decay shrinks, and nothing else changes, stands still too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Annotated, ClassVar

from pydantic import Field

from alerts.evidence import drifts_of, hit, is_unmoved, listed, parameters, why_silent
from alerts.rule import Needs, Outcome, number, quiet
from storage.records import Finding, Severity, TensorDrift, TensorSummary, Window

LOW_PRECISION = ("bfloat16", "float16", "float8")
TRAINED_NAMES = ("weight", "kernel")
SHRINKS_MIN = 5e-5  # relative change below which rounding hides its direction
SHRINKS_SIDEWAYS = 1e-3  # how much of the squared change may point elsewhere than to zero
SHRINKS_ELEMENTS = 16  # few numbers point the same way by chance


class UnchangedTensor:
    """A parameter stopped moving."""

    name: ClassVar[str] = "unchanged_tensor"
    severity: ClassVar[Severity] = Severity.WARNING
    needs: ClassVar[tuple[Needs, ...]] = (Needs.TWO_CHECKPOINTS,)
    on_tick: ClassVar[bool] = False

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Options:
        """`checkpoints`: for how many in a row a parameter must be bit-identical to the one before.

        `relative_min`: how far the others must move in the median, |W - W0| / |W0|, and it itself when it last did.
        `lone_share_max`: the largest
        share of parameters that never moved in which they count as left out by mistake and not as frozen on purpose.
        `ignore`: glob patterns of names that may stand still.
        """

        checkpoints: Annotated[int, Field(ge=2, le=8)] = 3
        relative_min: Annotated[float, Field(ge=0)] = 1e-5
        lone_share_max: Annotated[float, Field(ge=0, le=1)] = 0.34
        ignore: tuple[str, ...] = ()

    def check(self, window: Window, options: Options) -> Outcome:
        """Look for parameters without any change over the last checkpoints; silent without so many comparisons."""
        if (reason := why_silent(window)) is not None:
            return quiet(reason)
        now = drifts_of(window.drifts)
        held = [t for t in parameters(window.tensors, ignore=options.ignore) if t.name in now]
        past = [drifts_of(p.drifts) for p in window.past]
        if not held or len([p for p in past if p]) < options.checkpoints - 1:
            return quiet(f"fewer than {options.checkpoints} checkpoints in a row to compare with the one before")
        moved = [now[t.name].relative_l2 or 0.0 for t in held if not _rests(t, now[t.name])]
        if not moved:
            return quiet("no parameter moved at all")
        if median(moved) < options.relative_min:
            return quiet("the learning rate is too low to tell a parameter that stands still from one that rests")
        still = {
            t.name: series
            for t in held
            if not t.dtype.startswith(LOW_PRECISION)
            and len(series := [p[t.name] for p in past if t.name in p] + [now[t.name]]) >= options.checkpoints
            and all(_rests(t, d) for d in series[-options.checkpoints :])
        }
        stopped = [t for t in held if t.name in still and _last_move(t, still[t.name]) >= options.relative_min]
        alone = _left_alone(held, now_still={t.name for t in held if is_unmoved(now[t.name])}, options=options)
        never = [t for t in alone if t.name in still and _last_move(t, still[t.name]) == 0.0]
        if not stopped and not never:
            return Outcome()
        last_moving = max(t.position for t in held if not _rests(t, now[t.name]))
        serious = bool(stopped) or _is_one_layer(never, before=last_moving)
        return Outcome(findings=(_finding(window, stopped, never, len(held), serious=serious),))


def _rests(tensor: TensorSummary, drift: TensorDrift) -> bool:
    """Say whether nothing trains a tensor: it is bit-identical, or all that happened to it is that it shrank.

    A change sideways by s of the size turns a tensor by the cosine distance s^2 / 2; shrinking does not turn it.
    """
    if is_unmoved(drift):
        return True
    change, turned = drift.relative_l2, drift.cosine_distance
    if change is None or turned is None or change < SHRINKS_MIN or tensor.n_elements < SHRINKS_ELEMENTS:
        return False
    return abs(turned) < SHRINKS_SIDEWAYS * change**2 / 2


def _last_move(tensor: TensorSummary, series: Sequence[TensorDrift]) -> float:
    """Return how far the tensor moved when it last did, 0.0 if never: one that faded away was rounded, not stopped."""
    return next((d.relative_l2 or 0.0 for d in reversed(series) if not _rests(tensor, d)), 0.0)


def _left_alone(
    held: Sequence[TensorSummary], now_still: set[str], options: UnchangedTensor.Options
) -> list[TensorSummary]:
    """Return the parameters at rest that no one freezes on purpose: few, behind a trained one, no constant, no mask."""
    if len(now_still) > options.lone_share_max * len(held):
        return []
    first_moving = min(t.position for t in held if t.name not in now_still)
    return [t for t in held if t.name in now_still and t.position > first_moving and _is_trained_by_name(t)]


def _is_one_layer(tensors: Sequence[TensorSummary], *, before: int) -> bool:
    """Say whether the tensors are those of a single layer that comes before a position, and not its bias alone.

    A bias in front of a normalisation rests by itself: whatever it adds is taken away again.
    """
    layers = {t.name.rpartition(".")[0] for t in tensors}
    if all(t.name.rpartition(".")[2] == "bias" for t in tensors):
        return False
    return len(layers) == 1 and "" not in layers and max(t.position for t in tensors) < before


def _is_trained_by_name(tensor: TensorSummary) -> bool:
    last = tensor.name.rpartition(".")[2]
    is_bias = last == "bias" and sum(axis > 1 for axis in tensor.shape) <= 1
    return (is_bias or any(name in TRAINED_NAMES for name in (last, *last.split("_")))) and bool(tensor.std)


def _finding(
    window: Window, stopped: list[TensorSummary], never: list[TensorSummary], n_held: int, *, serious: bool
) -> Finding:
    named = stopped or never
    count = f"{number(len(named))} of {number(n_held)} parameters"
    what = "stopped moving" if stopped else "never moved while those around them are trained"
    details = [(t.name, "moved before") for t in stopped] + [(t.name, "never moved in sight") for t in never]
    return hit(
        UnchangedTensor,
        window,
        f"{named[0].name} stands still: {count} {what}",
        severity=UnchangedTensor.severity if serious else Severity.INFO,
        subject=named[0].name,
        value=float(len(named)),
        threshold=0.0,
        unit="tensors",
        details=listed(details),
    )
