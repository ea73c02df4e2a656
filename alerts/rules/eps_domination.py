"""The rule `eps_domination`: gradients so small that Adam's epsilon decides the step. Off unless enabled.

A run that has converged looks like that, too; it is a hint for those who look for one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import Field

from alerts.evidence import hit, listed, why_silent
from alerts.optimizer_state import State, adam_states, share_below
from alerts.rule import Needs, Outcome, number, quiet
from storage.records import Severity, Window

EPSILON_MAX = 1e-7  # a larger one was chosen to decide
STEPS_MIN = 10


class EpsDomination:
    """Epsilon rules most of the steps."""

    name: ClassVar[str] = "eps_domination"
    severity: ClassVar[Severity] = Severity.INFO
    needs: ClassVar[tuple[Needs, ...]] = (Needs.OPTIMIZER,)
    on_tick: ClassVar[bool] = False
    on_by_default: ClassVar[bool] = False

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Options:
        """`share`: which part of all elements that ever got a gradient must be below epsilon."""

        share: Annotated[float, Field(gt=0, le=1)] = 0.5

    def check(self, window: Window, options: Options) -> Outcome:
        """Count elements with sqrt(v) below epsilon by their histograms; silent without Adam's state."""
        if (reason := why_silent(window)) is not None:
            return quiet(reason)
        held = [s for s in adam_states(window.tensors, window.scalars) if (s.step or 0.0) >= STEPS_MIN]
        held = [s for s in held if 0.0 < s.options.get("eps", 0.0) <= EPSILON_MAX]
        counted = [(s, n, below) for s in held for n, below in [_counts(s)] if n > 0.0]
        if not counted:
            return quiet("no optimizer state of Adam with a usual epsilon in the checkpoint")
        total = sum(n for _, n, _ in counted)
        share = sum(below for _, _, below in counted) / total
        if share <= options.share:
            return Outcome()
        worst = sorted(counted, key=lambda item: -item[2] / item[1])
        return Outcome(
            findings=(
                hit(
                    self,
                    window,
                    f"Epsilon decides the step of {number(100 * share)} % of the weights: their gradients are below it",
                    subject=worst[0][0].name,
                    value=share,
                    threshold=options.share,
                    unit="of the elements",
                    details=listed((s.name, f"{number(100 * below / n)} % below epsilon") for s, n, below in worst),
                ),
            )
        )


def _counts(state: State) -> tuple[float, float]:
    """Return how many elements got a gradient, and how many of them have sqrt(v) below epsilon."""
    second = state.parts["exp_avg_sq"]
    if second.histogram is None or second.n_nonfinite or not state.step:
        return 0.0, 0.0
    zeros = second.n_zero / second.n_elements
    correction = 1.0 - state.options["betas.1"] ** state.step
    limit = state.options["eps"] ** 2 * correction
    below = max(share_below(second.histogram, limit) - zeros, 0.0)
    return (1.0 - zeros) * second.n_elements, (below * second.n_elements if math.isfinite(below) else 0.0)
