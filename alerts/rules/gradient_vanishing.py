"""The rule `gradient_vanishing`: weights that the optimizer trains receive no gradient, or next to none.

Inferred from Adam's second moment, tensor by tensor. Biases are left out: those before a normalisation have a gradient
of nothing but rounding errors in the best of trainings.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, ClassVar

from pydantic import Field

from alerts.evidence import hit, listed, why_silent
from alerts.optimizer_state import State, adam_states
from alerts.rule import Needs, Outcome, number, quiet, step_text
from storage.records import Finding, Severity, Window

ROUNDING = 5e-8  # by how much of itself one step of decay in float32 may miss, the rounding of beta2 included
SUMMING_STEPS = 10  # what summing adds to it, in steps
ALIVE = 0.01  # so much of the usual energy since the checkpoint before is a gradient beyond any rounding


class GradientVanishing:
    """Weights without a gradient."""

    name: ClassVar[str] = "gradient_vanishing"
    severity: ClassVar[Severity] = Severity.WARNING
    needs: ClassVar[tuple[Needs, ...]] = (Needs.OPTIMIZER,)
    on_tick: ClassVar[bool] = False

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Options:
        """`rms`, `relative`: a root mean square gradient below both, the second times the largest, is next to none.

        `share`: which part of all matrix elements must be hit. `collapse`: by how much the norm of the whole gradient
        must fall from one checkpoint to the next, and below all before. `steps_min`: how many optimizer steps there
        must have been.
        """

        rms: Annotated[float, Field(ge=0)] = 1e-10
        relative: Annotated[float, Field(ge=0)] = 1e-7
        share: Annotated[float, Field(gt=0, le=1)] = 0.5
        collapse: Annotated[float, Field(gt=0, lt=1)] = 1e-3
        steps_min: Annotated[int, Field(ge=1)] = 10

    def check(self, window: Window, options: Options) -> Outcome:
        """Look at the second moment of every matrix and at the norm; silent without Adam's state or too few steps.

        A warning where most of the model is hit, or its first matrix gets exactly nothing (there is no input); only
        information where another matrix gets exactly nothing, since parts of a model may be unused on purpose.
        """
        if (reason := why_silent(window)) is not None:
            return quiet(reason)
        states = [s for s in adam_states(window.tensors, window.scalars) if sum(axis > 1 for axis in s.shape) >= 2]
        held = [(s, rms) for s in states if (s.step or 0.0) >= options.steps_min and (rms := _rms(s)) is not None]
        if not held:
            return quiet(f"no matrix with Adam's state after {options.steps_min} steps or more in the checkpoint")
        collapse = _collapsed(window, options)
        if collapse is not None:
            return Outcome(findings=(collapse,))
        stopped = _stopped(window)
        held = [(s, 0.0 if s.name in stopped else rms) for s, rms in held]
        largest = max(rms for _, rms in held)
        faint = [(s, rms) for s, rms in held if rms == 0.0 or rms < min(options.rms, options.relative * largest)]
        if largest < options.rms:
            faint = held
        n_faint, n_held = (sum(math.prod(s.shape) for s, _ in part) for part in (faint, held))
        serious = n_faint >= options.share * n_held or (
            bool(faint) and faint[0][0] is held[0][0] and faint[0][1] == 0.0
        )
        serious = serious and not (largest < options.rms and _faded(window, options))
        if not serious:
            faint = [(s, rms) for s, rms in faint if rms == 0.0]
        if not faint:
            return Outcome()
        return Outcome(
            findings=(
                hit(
                    self,
                    window,
                    f"Gradients have vanished in {number(len(faint))} of {number(len(held))} weight matrices, "
                    f"{number(100 * n_faint / n_held)} % of their elements",
                    severity=self.severity if serious else Severity.INFO,
                    subject=faint[0][0].name,
                    value=max(rms for _, rms in faint),
                    threshold=options.rms,
                    details=listed((s.name, f"{list(s.shape)}: {_text(rms)}") for s, rms in faint),
                ),
            )
        )


def _faded(window: Window, options: GradientVanishing.Options) -> bool:
    """Say whether the gradient went to nothing little by little, as it does where all data are learned by heart."""
    norms = [s.gradient.norm for s in window.snapshots if s.gradient is not None and s.gradient.norm > 0.0]
    if len(norms) < 3 or norms[-1] > options.collapse * max(norms):
        return False
    return all(new > options.collapse * old for old, new in pairwise(norms))


def _collapsed(window: Window, options: GradientVanishing.Options) -> Finding | None:
    """Return a finding where the gradient norm fell to next to nothing at once, and while it stays there."""
    points = [
        (s.step, s.gradient.norm)
        for s in window.snapshots[-9:]
        if s.gradient is not None and s.gradient.source.endswith("_window")
    ]
    if len(points) < 3 or not window.snapshots or window.snapshots[-1].gradient is None:
        return None
    norms = [norm for _, norm in points]
    for place in range(2, len(norms)):
        limit = options.collapse * min(norms[:place])
        if max(norms[place:]) < limit:
            step, norm = points[-1]
            return hit(
                GradientVanishing,
                window,
                f"The gradient collapsed from {number(norms[place - 1])} to {number(norms[place])} "
                f"at {step_text(points[place][0])}",
                step=points[place][0],
                value=norm,
                threshold=limit,
                details=(("Newest", f"{number(norm)} at {step_text(step)}"),),
            )
    return None


def _stopped(window: Window) -> frozenset[str]:
    """Return the states that got exactly nothing since the checkpoint before, while others did get something.

    Without a gradient the second moment v falls to beta2^k * v in k steps, to the last bits. All states together may do
    so in a training that has converged; one beside others that live cannot.
    """
    if not window.past:
        return frozenset()
    before = {s.name: s for s in adam_states(window.past[-1].tensors, window.past[-1].scalars)}
    pairs = [(s, before[s.name]) for s in adam_states(window.tensors, window.scalars) if s.name in before]
    shares = {new.name: share for new, old in pairs if (share := _recent_share(new, old)) is not None}
    alive = any(share >= ALIVE for share in shares.values())
    return frozenset(name for name, share in shares.items() if share == 0.0) if alive else frozenset()


def _recent_share(new: State, old: State) -> float | None:
    """Return the mean energy of the gradient since the checkpoint before over that of all before it.

    0.0 where it cannot be told from rounding, None where the states do not give it.
    """
    second, beta2 = new.parts["exp_avg_sq"], new.options["betas.1"]
    now, then = second.norm_l1, old.parts["exp_avg_sq"].norm_l1
    if not now or not then or not new.step or not old.step or new.step <= old.step or not 0.0 < beta2 < 1.0:
        return None
    if second.dtype not in ("float32", "float64") or second.n_nonfinite:
        return None
    steps = new.step - old.step
    kept = beta2**steps
    recent = now - kept * then
    if kept == 0.0 or abs(recent) <= ROUNDING * (steps + SUMMING_STEPS) * kept * then:
        return 0.0 if kept else None
    return max(recent, 0.0) / (1.0 - kept) / (then / (1.0 - beta2**old.step)) or None


def _rms(state: State) -> float | None:
    """Return the root mean square gradient over the optimizer's memory, None where the state does not give it."""
    second, beta2 = state.parts["exp_avg_sq"], state.options["betas.1"]
    if second.n_nonfinite or second.norm_l1 is None or not state.step or not 0.0 <= beta2 < 1.0:
        return None
    return math.sqrt(second.norm_l1 / second.n_elements / (1.0 - beta2**state.step))


def _text(rms: float) -> str:
    return "exactly zero" if rms == 0.0 else f"root mean square gradient {number(rms)}"
