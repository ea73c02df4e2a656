"""The rule `tree_depth`: a decision tree of the newest model is deeper than trees that learn something general.

Readers of XGBoost, LightGBM and scikit-learn models leave the depth of the deepest tree with the snapshot. A chain of
splits that each part off a few samples is memory, not knowledge, and slow to walk.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import Field

from alerts.evidence import hit, why_silent
from alerts.rule import Needs, Outcome, number, quiet
from storage.records import Severity, Window

DEPTH = "depth_max"


class TreeDepth:
    """A decision tree is very deep."""

    name: ClassVar[str] = "tree_depth"
    severity: ClassVar[Severity] = Severity.WARNING
    needs: ClassVar[tuple[Needs, ...]] = (Needs.WEIGHTS,)
    on_tick: ClassVar[bool] = False

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Options:
        """`depth_max`: how many splits one above the other are well."""

        depth_max: Annotated[int, Field(ge=1, le=1_000_000)] = 64

    def check(self, window: Window, options: Options) -> Outcome:
        """Compare the deepest tree with the limit; silent for a model without trees."""
        if (reason := why_silent(window)) is not None:
            return quiet(reason)
        depths = {k: v for k, v in window.scalars.items() if k == DEPTH or k.endswith(f".{DEPTH}")}
        if not depths:
            return quiet("the model has no decision trees")
        name, depth = max(depths.items(), key=lambda item: item[1])
        if depth <= options.depth_max:
            return Outcome()
        group = name.removesuffix(DEPTH).rstrip(".")
        where = f" of {group}" if group not in ("", "trees") else ""
        return Outcome(
            findings=(
                hit(
                    self,
                    window,
                    f"The deepest tree{where} has {number(depth)} splits one above the other, "
                    f"more than {number(options.depth_max)}",
                    value=depth,
                    threshold=float(options.depth_max),
                    unit="splits",
                    details=(("What helps", "a limit on depth or leaves, or more samples in each leaf"),),
                ),
            )
        )
