"""The rule `variance_range`: the spread of a weight matrix is outside of what any sound model has."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import Field

from alerts.evidence import hit, listed, matrices, why_silent
from alerts.rule import Needs, Outcome, number, quiet
from storage.records import Severity, Window


class VarianceRange:
    """A standard deviation out of range."""

    name: ClassVar[str] = "variance_range"
    severity: ClassVar[Severity] = Severity.WARNING
    needs: ClassVar[tuple[Needs, ...]] = (Needs.WEIGHTS,)
    on_tick: ClassVar[bool] = False

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Options:
        """`std_max`, `std_min`: the limits of a matrix's standard deviation. A constant matrix is left to other rules.

        `ignore`: glob patterns of tensor names.
        """

        std_max: Annotated[float, Field(gt=0)] = 1000.0
        std_min: Annotated[float, Field(ge=0)] = 1e-8
        ignore: tuple[str, ...] = ()

    def check(self, window: Window, options: Options) -> Outcome:
        """Compare the standard deviation of every matrix with the limits; silent without a matrix."""
        if (reason := why_silent(window)) is not None:
            return quiet(reason)
        held = matrices(window.tensors, ignore=options.ignore)
        if not held:
            return quiet("no matrix among the weights")
        wide = [t for t in held if t.std is not None and t.std > options.std_max]
        narrow = [t for t in held if t.std is not None and 0.0 < t.std < options.std_min]
        findings = []
        for found, what, limit in ((wide, "wider", options.std_max), (narrow, "narrower", options.std_min)):
            if found:
                findings.append(
                    hit(
                        self,
                        window,
                        f"{found[0].name} is spread {what} than any sound layer: standard deviation "
                        f"{number(found[0].std)} ({number(len(found))} of {number(len(held))} matrices)",
                        subject=found[0].name,
                        value=found[0].std,
                        threshold=limit,
                        identity=what,
                        details=listed((t.name, f"standard deviation {number(t.std)}") for t in found),
                    )
                )
        return Outcome(findings=tuple(findings))
