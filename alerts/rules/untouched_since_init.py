"""The rule `untouched_since_init`: a tensor is still the constant it was initialised with, while others are trained.

A scale of exactly one, a bias or an adapter of exactly zero after several checkpoints was never updated.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import Field

from alerts.evidence import drifts_of, hit, is_unmoved, listed, parameters, why_silent
from alerts.rule import Needs, Outcome, number, quiet
from storage.records import Severity, TensorSummary, Window

TRAINED_NAMES = ("weight", "bias", "kernel", "gamma", "beta", "scale")
ADAPTERS = ("lora_b", "lora_up", "zero_conv")


class UntouchedSinceInit:
    """A constant that training never touched."""

    name: ClassVar[str] = "untouched_since_init"
    severity: ClassVar[Severity] = Severity.WARNING
    needs: ClassVar[tuple[Needs, ...]] = (Needs.TWO_CHECKPOINTS,)
    on_tick: ClassVar[bool] = False

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Options:
        """`checkpoints`: how many there must be, all with the same constant. `ignore`: glob patterns of names."""

        checkpoints: Annotated[int, Field(ge=2, le=9)] = 3
        ignore: tuple[str, ...] = ()

    def check(self, window: Window, options: Options) -> Outcome:
        """Look for constant tensors that did not move; silent with too few checkpoints or where nothing moved.

        A warning for an adapter whose zero output layer never moved, since then nothing of it is in use; else only
        information, since scales and biases are also frozen on purpose.
        """
        if (reason := why_silent(window)) is not None:
            return quiet(reason)
        if len(window.past) < options.checkpoints - 1:
            return quiet(f"fewer than {options.checkpoints} checkpoints")
        now = drifts_of(window.drifts)
        held = [t for t in parameters(window.tensors, ignore=options.ignore) if t.name in now]
        if not any(not is_unmoved(now[t.name]) for t in held):
            return quiet("no parameter moved at all")
        past = [{t.name: t for t in p.tensors} for p in window.past[-(options.checkpoints - 1) :]]
        untouched = [
            t
            for t in held
            if _is_constant(t) and all((old := p.get(t.name)) and _is_constant(old) and old.min == t.min for p in past)
        ]
        adapters = [t for t in untouched if any(word in t.name.lower() for word in ADAPTERS)]
        if not untouched:
            return Outcome()
        named = adapters or untouched
        value = "zero" if named[0].min == 0.0 else number(named[0].min)
        return Outcome(
            findings=(
                hit(
                    self,
                    window,
                    f"{named[0].name} was never trained: all of it is still exactly {value} "
                    f"({number(len(untouched))} of {number(len(held))} parameters are like that)",
                    severity=self.severity if adapters else Severity.INFO,
                    subject=named[0].name,
                    value=float(len(untouched)),
                    threshold=0.0,
                    unit="tensors",
                    details=listed((t.name, f"{number(t.n_elements)} elements of {number(t.min)}") for t in named),
                ),
            )
        )


def _is_constant(tensor: TensorSummary) -> bool:
    return (
        tensor.n_elements >= 2
        and tensor.name.rpartition(".")[2] in TRAINED_NAMES
        and tensor.min is not None
        and tensor.min == tensor.max
    )
