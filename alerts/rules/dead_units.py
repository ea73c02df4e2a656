"""The rule `dead_units`: many weights behind the first layer have had no gradient for hundreds of steps.

A unit that no input switches on gives and gets exactly nothing: the rows and columns of its weights have a first moment
that has decayed to nothing. Only layers with a bias are judged, since unused rows of a table are normal, and not the
first matrix, whose inputs may always be zero.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Annotated, ClassVar

from pydantic import Field

from alerts.evidence import hit, listed, matrices, why_silent
from alerts.optimizer_state import State, adam_states, share_below
from alerts.rule import Needs, Outcome, number, quiet
from storage.records import Severity, Window

TABLE = re.compile(r"emb|wte|wpe|token|vocab|lookup|table|codebook|position|expert|lora", re.IGNORECASE)
NOTHING = 1e-15  # of the root mean square: Adam's first moment is there about 330 steps after the last gradient
ELEMENTS_MIN = 64


class DeadUnits:
    """Units that no longer take part."""

    name: ClassVar[str] = "dead_units"
    severity: ClassVar[Severity] = Severity.WARNING
    needs: ClassVar[tuple[Needs, ...]] = (Needs.OPTIMIZER,)
    on_tick: ClassVar[bool] = False

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Options:
        """`share`: which part of a matrix must be without a gradient. `steps_min`: optimizer steps before it judges."""

        share: Annotated[float, Field(gt=0, le=1)] = 0.7
        steps_min: Annotated[int, Field(ge=1)] = 400

    def check(self, window: Window, options: Options) -> Outcome:
        """Count elements without a first moment; silent without Adam's state or with too few steps."""
        if (reason := why_silent(window)) is not None:
            return quiet(reason)
        states = adam_states(window.tensors, window.scalars)
        layers = {s.name for s, after in zip_longest(states, states[1:]) if _is_layer(s, after, states)}
        held = [s for s in states if sum(axis > 1 for axis in s.shape) >= 2]
        tables = {t.shape for t in matrices(window.tensors) if TABLE.search(t.name)}
        held = [s for s in held[1:] if s.name in layers and s.shape not in tables and not TABLE.search(s.name)]
        held = [s for s in held if s.parts["exp_avg"].n_elements >= ELEMENTS_MIN]
        held = [s for s in held if (s.step or 0.0) >= options.steps_min]
        if not held:
            return quiet(f"no matrix behind the first with Adam's state after {options.steps_min} steps or more")
        dead = [(s, share) for s in held if (share := _dead_share(s)) >= options.share]
        if not dead:
            return Outcome()
        first, share = dead[0]
        return Outcome(
            findings=(
                hit(
                    self,
                    window,
                    f"Dead units: {number(100 * share)} % of {first.name} {list(first.shape)} get no gradient any more "
                    f"({number(len(dead))} of {number(len(held))} matrices)",
                    subject=first.name,
                    value=share,
                    threshold=options.share,
                    unit="of the elements",
                    details=listed((s.name, f"{list(s.shape)}: {number(100 * part)} % dead") for s, part in dead),
                ),
            )
        )


def _is_layer(state: State, after: State | None, states: Sequence[State]) -> bool:
    """Say whether a state belongs to a layer with a bias, by its name or by what comes next; tables have none."""
    prefix, _, last = state.name.rpartition(".")
    if not last.isdecimal():
        return any(s.name == f"{prefix}.bias" for s in states)
    return after is not None and after.shape in (state.shape[:1], state.shape[-1:])


def _dead_share(state: State) -> float:
    moment = state.parts["exp_avg"]
    if moment.norm_l2 is None or moment.n_nonfinite or moment.histogram is None:
        return 0.0
    if moment.norm_l2 == 0.0:
        return 1.0
    if "float16" in moment.dtype:  # bfloat16, too: small moments are zero there without being dead
        return 0.0
    return share_below(moment.histogram, NOTHING * moment.norm_l2 / math.sqrt(moment.n_elements))
