"""The rule `impossible_adam_state`: moments that no sequence of gradients can produce.

For Adam |m| is at most a fixed multiple of sqrt(v), element by element. Where more elements of m are large than of v
allow, judged by their histograms, the state was damaged, cast to a type too narrow, or put together from two runs; the
next steps may then be thousands of times too large.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import Field

from alerts.evidence import hit, listed, why_silent
from alerts.optimizer_state import State, adam_states, moment_ratio_max, share_beyond
from alerts.rule import Needs, Outcome, number, quiet
from storage.records import Severity, Window

SLACK = 1.05  # what rounding of bfloat16 states can do on top
UNDERFLOW_ROOT = 2.0**-63  # root of the smallest normal float32: v below it is rounded to 0, and m still stands


class ImpossibleAdamState:
    """Moments that cannot be."""

    name: ClassVar[str] = "impossible_adam_state"
    severity: ClassVar[Severity] = Severity.CRITICAL
    needs: ClassVar[tuple[Needs, ...]] = (Needs.OPTIMIZER,)
    on_tick: ClassVar[bool] = False

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Options:
        """`share_max`: which part of a tensor's elements may be beyond the bound."""

        share_max: Annotated[float, Field(ge=0, lt=1)] = 0.001

    def check(self, window: Window, options: Options) -> Outcome:
        """Hold every state against the bound; silent without Adam's state or where it keeps it nowhere.

        Optimizers that only share Adam's names break the bound in every tensor from the start: their state is none of
        Adam's and is not judged, unless an earlier checkpoint kept the bound.
        """
        if (reason := why_silent(window)) is not None:
            return quiet(reason)
        held = [(s, b) for s in adam_states(window.tensors, window.scalars) if (b := _bound(s)) is not None and s.step]
        if not held:
            return quiet("no optimizer state of Adam in the checkpoint")
        negative = [(s, "a negative second moment") for s, _ in held if (s.parts["exp_avg_sq"].min or 0.0) < 0.0]
        beyond = [(s, _beyond(s, bound)) for s, bound in held]
        found = negative + [
            (s, f"{number(100 * share)} % of the elements beyond the bound")
            for s, share in beyond
            if share > options.share_max
        ]
        if not found:
            return Outcome()
        if all(not _keeps_norm(s, bound) for s, bound in held) and not _kept_before(window):
            return quiet("the state breaks Adam's bound everywhere: it is another optimizer's")
        worst = max((share for _, share in beyond), default=0.0)
        return Outcome(
            findings=(
                hit(
                    self,
                    window,
                    f"The optimizer state cannot be Adam's: {found[0][1]} in {found[0][0].name} "
                    f"({number(len(found))} of {number(len(held))} states)",
                    subject=found[0][0].name,
                    value=worst,
                    threshold=options.share_max,
                    unit="of the elements",
                    details=(
                        ("Bound", f"|m| is at most {number(held[0][1])} times sqrt(v)"),
                        ("What it means", "the next steps may be far too large; do not resume with this state"),
                        *listed((s.name, text) for s, text in found),
                    ),
                ),
            )
        )


def _bound(state: State) -> float | None:
    bound = moment_ratio_max(state.options["betas.0"], state.options["betas.1"])
    return None if bound is None else bound * SLACK


def _beyond(state: State, bound: float) -> float:
    moment, second = state.parts["exp_avg"].histogram, state.parts["exp_avg_sq"].histogram
    if moment is None or second is None:
        return 0.0
    # In float16 the same happens to gradients of everyday size, and that is what this rule is to find.
    lost = 0.0 if state.parts["exp_avg_sq"].dtype == "float16" else bound * UNDERFLOW_ROOT
    return share_beyond(moment, second, bound, at_least=lost)


def _keeps_norm(state: State, bound: float) -> bool:
    """Say whether the state keeps the bound in its norms, |m|^2 <= bound^2 * sum of v: what every Adam does."""
    moment, second = state.parts["exp_avg"].norm_l2, state.parts["exp_avg_sq"].norm_l1
    return moment is not None and second is not None and moment**2 <= bound**2 * second


def _kept_before(window: Window) -> bool:
    earlier = window.past or ((window.previous_attempt,) if window.previous_attempt is not None else ())
    return any(
        all((bound := _bound(s)) is None or _keeps_norm(s, bound) for s in adam_states(p.tensors, p.scalars))
        for p in earlier
        if adam_states(p.tensors, p.scalars)
    )
