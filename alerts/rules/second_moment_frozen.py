"""The rule `second_moment_frozen`: Adam's second moment is kept in a type too narrow to follow the gradients.

In bfloat16 with beta2 = 0.999 it can no longer fall: 0.1 % less rounds to the same number. In float16 small ones become
zero, and the step that they divide grows without bounds. So a state that was wider before has lost what it needs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import Field

from alerts.evidence import drifts_of, hit, is_unmoved, listed, why_silent
from alerts.optimizer_state import State, adam_states
from alerts.rule import Needs, Outcome, number, quiet, step_text
from storage.records import Severity, TensorDrift, Window

BFLOAT16_EPSILON = 2.0**-8
ELEMENTS_MIN = 64


class SecondMomentFrozen:
    """The second moment no longer follows."""

    name: ClassVar[str] = "second_moment_frozen"
    severity: ClassVar[Severity] = Severity.WARNING
    needs: ClassVar[tuple[Needs, ...]] = (Needs.OPTIMIZER,)
    on_tick: ClassVar[bool] = False

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Options:
        """`changed_share_max`: with at most this share of elements changed a tensor counts as frozen.

        `zero_share`: how much larger the share of zeros in v than in m may be. `share`: in which part of the states.
        """

        changed_share_max: Annotated[float, Field(ge=0, lt=1)] = 0.05
        zero_share: Annotated[float, Field(gt=0, le=1)] = 0.05
        share: Annotated[float, Field(gt=0, le=1)] = 0.5

    def check(self, window: Window, options: Options) -> Outcome:
        """Look at second moments of 16 bits; silent without any."""
        if (reason := why_silent(window)) is not None:
            return quiet(reason)
        held = [s for s in adam_states(window.tensors, window.scalars) if s.parts["exp_avg_sq"].dtype in NARROW]
        held = [s for s in held if s.parts["exp_avg_sq"].n_elements >= ELEMENTS_MIN]
        if not held:
            return quiet("no second moment of 16 bits in the checkpoint")
        drifts = drifts_of(window.drifts)
        was_wide = {
            t.name: (t.dtype, p.snapshot.step)
            for p in window.past
            for t in p.tensors
            if t.dtype in ("float32", "float64")
        }
        found = [
            (s, text) for s in held if (text := _narrowed(s, was_wide) or _trouble(s, drifts, options)) is not None
        ]
        if not found or len(found) < options.share * len(held):
            return Outcome()
        first, text = found[0]
        return Outcome(
            findings=(
                hit(
                    self,
                    window,
                    f"Adam's second moment in {first.parts['exp_avg_sq'].dtype} does not follow the gradients: {text} "
                    f"in {first.name} ({number(len(found))} of {number(len(held))} states)",
                    subject=first.name,
                    value=float(len(found)),
                    threshold=options.share * len(held),
                    unit="states",
                    details=(
                        ("What helps", "keep exp_avg_sq in float32, or a lower beta2"),
                        *listed((s.name, t) for s, t in found),
                    ),
                ),
            )
        )


NARROW = ("bfloat16", "float16")


def _narrowed(state: State, was_wide: Mapping[str, tuple[str, int | None]]) -> str | None:
    second = state.parts["exp_avg_sq"]
    if second.dtype != "float16" or second.name not in was_wide:
        return None
    dtype, step = was_wide[second.name]
    return f"it was {dtype} at {step_text(step)}, and float16 holds nothing below 6e-8"


def _trouble(state: State, drifts: Mapping[str, TensorDrift], options: SecondMomentFrozen.Options) -> str | None:
    second, moment = state.parts["exp_avg_sq"], state.parts["exp_avg"]
    if second.dtype == "float16":
        excess = (second.n_zero - moment.n_zero) / second.n_elements
        return f"{number(100 * excess)} % of it were rounded to zero" if excess > options.zero_share else None
    if 1.0 - state.options["betas.1"] >= BFLOAT16_EPSILON:
        return None  # a step of this size is not rounded away
    drift = drifts.get(second.name)
    if drift is None or not second.norm_l1:
        return None
    n_changed = drift.n_changed if drift.n_changed is not None else 0 if is_unmoved(drift) else None
    if n_changed is None or n_changed > options.changed_share_max * second.n_elements:
        return None
    return f"{number(n_changed)} of {number(second.n_elements)} elements changed since {drift.reference_step}"
