"""The rule `frozen_low_precision`: 16-bit weights whose updates are rounded away, so that they stand still.

A bfloat16 weight of 0.02 cannot change by less than 0.00008; at a small learning rate nothing is learned although the
loss curve looks alive. It speaks only where there is evidence that the weights were meant to move.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import Field

from alerts.evidence import drifts_of, hit, is_unmoved, listed, matrices, why_silent
from alerts.optimizer_state import states
from alerts.rule import Needs, Outcome, number, quiet
from storage.records import Finding, Severity, TensorDrift, TensorSummary, Window

LOW_PRECISION = ("bfloat16", "float16", "float8")


class FrozenLowPrecision:
    """Updates too small for the precision of the weights."""

    name: ClassVar[str] = "frozen_low_precision"
    severity: ClassVar[Severity] = Severity.WARNING
    needs: ClassVar[tuple[Needs, ...]] = (Needs.TWO_CHECKPOINTS, Needs.OPTIMIZER)
    on_tick: ClassVar[bool] = False

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Options:
        """`changed_share_max`: a matrix in which at most this share of elements changed stands still.

        `share`: which part of all 16-bit matrix elements must stand still, `checkpoints`: for how many in a row.
        """

        changed_share_max: Annotated[float, Field(ge=0, lt=1)] = 0.01
        share: Annotated[float, Field(gt=0, le=1)] = 0.5
        checkpoints: Annotated[int, Field(ge=2, le=8)] = 3

    def check(self, window: Window, options: Options) -> Outcome:
        """Count 16-bit matrices that stand still although they are trained; silent without any or without a past."""
        if (reason := why_silent(window)) is not None:
            return quiet(reason)
        low = [t for t in matrices(window.tensors) if t.dtype.startswith(LOW_PRECISION)]
        if not low:
            return quiet("no weights of 16 bits or fewer")
        series = [drifts_of(window.drifts), *(drifts_of(p.drifts) for p in reversed(window.past))]
        series = series[: options.checkpoints]
        if len(series) < options.checkpoints or not all(series):
            return quiet(f"fewer than {options.checkpoints} checkpoints in a row to compare with the one before")
        held = [t for t in low if all(t.name in drifts for drifts in series)]
        still = [t for t in held if all(_stands_still(t, drifts[t.name], options) for drifts in series)]
        if not still:
            return Outcome()
        stuck = _meant_to_move(window, still)
        n_stuck = sum(t.n_elements for t in stuck)
        # Layers frozen on purpose are not counted at all, neither as stuck nor as moving.
        n_trained = n_stuck + sum(t.n_elements for t in held if t not in still)
        if not stuck:
            return quiet("nothing says whether the weights that stand still are trained: no optimizer state for them")
        if n_stuck < options.share * n_trained:
            return Outcome()
        return Outcome(findings=(_finding(window, stuck, n_stuck / n_trained),))


def _stands_still(tensor: TensorSummary, drift: TensorDrift, options: FrozenLowPrecision.Options) -> bool:
    if drift.n_changed is not None:
        return drift.n_changed <= options.changed_share_max * tensor.n_elements
    return is_unmoved(drift)


def _meant_to_move(window: Window, still: Iterable[TensorSummary]) -> list[TensorSummary]:
    """Return those at rest that change a little, or for whose shape there is optimizer state left over.

    A checkpoint does not say which state belongs to which parameter, so the states are dealt out by shape: first to the
    parameters that move, what is left to those at rest.
    """
    now = drifts_of(window.drifts)
    still = list(still)
    resting = {t.name for t in still}
    spare = Counter(
        s.shape
        for s in states(window.tensors, window.scalars)
        if "exp_avg" in s.parts and (s.parts["exp_avg"].abs_max or 0.0) > 0.0
    )
    spare -= Counter(t.shape for t in matrices(window.tensors) if t.name not in resting)
    stuck = []
    for tensor in still:
        if now[tensor.name].n_changed:
            stuck.append(tensor)
        elif spare[tensor.shape] > 0:
            spare[tensor.shape] -= 1
            stuck.append(tensor)
    return stuck


def _finding(window: Window, stuck: list[TensorSummary], share: float) -> Finding:
    now = drifts_of(window.drifts)
    return hit(
        FrozenLowPrecision,
        window,
        f"Updates are rounded away: {number(100 * share)} % of the trained {stuck[0].dtype} weights stand still",
        subject=stuck[0].name,
        value=share,
        threshold=FrozenLowPrecision.Options().share,
        unit="of the elements",
        details=(
            ("What helps", "float32 master weights, stochastic rounding, or a higher learning rate"),
            *listed((t.name, f"{number(now[t.name].n_changed)} of {number(t.n_elements)} changed") for t in stuck),
        ),
    )
