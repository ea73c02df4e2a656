"""The rule `all_zero`: weights that were something are nothing but zeros now, or a whole checkpoint is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import Field

from alerts.evidence import hit, listed, matrices, why_silent
from alerts.rule import Needs, Outcome, number, quiet
from storage.records import Severity, TensorSummary, Window


class AllZero:
    """Weights of nothing but zeros."""

    name: ClassVar[str] = "all_zero"
    severity: ClassVar[Severity] = Severity.CRITICAL
    needs: ClassVar[tuple[Needs, ...]] = (Needs.WEIGHTS,)
    on_tick: ClassVar[bool] = False

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Options:
        """`zero_share`: which part of a matrix must be zero.

        `tensor_share`: with so large a part of the model's matrix elements in such matrices a checkpoint is bad even if
        nothing is known of its past. `ignore`: glob patterns of tensor names.
        """

        zero_share: Annotated[float, Field(gt=0, le=1)] = 1.0
        tensor_share: Annotated[float, Field(gt=0, le=1)] = 0.5
        ignore: tuple[str, ...] = ()

    def check(self, window: Window, options: Options) -> Outcome:
        """Find matrices that became zero, or a checkpoint that mostly is; silent without a matrix.

        A matrix that was zero from the start is quiet: some are initialised so (see `untouched_since_init`).
        """
        if (reason := why_silent(window)) is not None:
            return quiet(reason)
        held = matrices(window.tensors, ignore=options.ignore)
        if not held:
            return quiet("no matrix among the weights")
        zero = [t for t in held if _is_zero(t, options)]
        were_something = {t.name for p in window.past for t in p.tensors if t.norm_l2 and not _is_zero(t, options)}
        became = [t for t in zero if t.name in were_something]
        mostly = sum(t.n_elements for t in zero) >= options.tensor_share * sum(t.n_elements for t in held)
        if not became and not mostly:
            return Outcome()
        named = became or zero
        what = "became all zeros" if became else "are all zeros"
        return Outcome(
            findings=(
                hit(
                    self,
                    window,
                    f"{number(len(named))} of {number(len(held))} weight matrices {what}, first {named[0].name}",
                    subject=named[0].name,
                    value=float(len(named)),
                    threshold=0.0,
                    unit="tensors",
                    details=listed((t.name, f"{number(t.n_elements)} elements") for t in named),
                ),
            )
        )


def _is_zero(tensor: TensorSummary, options: AllZero.Options) -> bool:
    return tensor.n_elements > 0 and tensor.n_zero >= options.zero_share * tensor.n_elements
