"""The rule `clip_saturation`: gradients that were free before are now all clipped, so their size is hidden.

The optimizer sees gradients after clipping. An explosion then shows as a norm that is pinned to one value: the clipping
threshold, which is known from the checkpoint or seen in the series itself.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import median
from typing import Annotated, ClassVar

from pydantic import Field

from alerts.evidence import hit, newest_of, why_silent
from alerts.rule import Needs, Outcome, number, quiet, step_text
from storage.records import Severity, Window

LIMIT = re.compile(r"(?:^|\.)(max_grad_norm|grad_clip|gradient_clip_val|clip_grad|clip_grad_norm|grad_norm_clip)$")
PINNED_SPREAD = 1.001  # highest over lowest of the last norms; free gradients scatter more


class ClipSaturation:
    """Every step is clipped now."""

    name: ClassVar[str] = "clip_saturation"
    severity: ClassVar[Severity] = Severity.WARNING
    needs: ClassVar[tuple[Needs, ...]] = (Needs.OPTIMIZER, Needs.TWO_CHECKPOINTS)
    on_tick: ClassVar[bool] = False

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Options:
        """`share`: a norm above this share of the clipping threshold is saturated, for `checkpoints` in a row.

        `free_share`: and in the median of the `baseline_checkpoints_min` or more before it was below this share.
        """

        share: Annotated[float, Field(gt=0, le=1)] = 0.9
        checkpoints: Annotated[int, Field(ge=2, le=16)] = 3
        free_share: Annotated[float, Field(gt=0, lt=1)] = 0.67
        baseline_checkpoints_min: Annotated[int, Field(ge=2, le=32)] = 4

    def check(self, window: Window, options: Options) -> Outcome:
        """Judge the series of windowed norms; silent without one or with too few checkpoints.

        A run that was clipped from its beginning is quiet: many sound runs are.
        """
        if (reason := why_silent(window)) is not None:
            return quiet(reason)
        newest = newest_of(window)
        if newest.gradient is None or not newest.gradient.source.endswith("_window"):
            return quiet("no gradient norm over the steps since the checkpoint before")
        points = [
            (s.step, s.gradient.norm)
            for s in window.snapshots
            if s.gradient is not None and s.gradient.source.endswith("_window") and s.gradient.norm > 0.0
        ]
        needed = options.checkpoints + options.baseline_checkpoints_min
        if len(points) < needed:
            return quiet(f"only {len(points)} of the {needed} checkpoints to compare with")
        last = [norm for _, norm in points[-options.checkpoints :]]
        stated = _stated_limit(window.scalars)
        pinned = max(last) <= PINNED_SPREAD * min(last)
        limit = stated if stated is not None else max(last)
        if not (min(last) >= options.share * limit if stated is not None else pinned):
            return Outcome()
        first = len(points) - options.checkpoints
        while first > 0 and options.share * limit <= points[first - 1][1] <= limit / options.share:
            first -= 1
        before = [norm for _, norm in points[:first]]
        if len(before) < options.baseline_checkpoints_min or median(before) > options.free_share * limit:
            return Outcome()
        usual = median(before)
        return Outcome(
            findings=(
                hit(
                    self,
                    window,
                    f"All gradients are clipped since {step_text(points[first][0])}: their norm stays at "
                    f"{number(last[-1])}, before it was about {number(usual)}",
                    step=points[first][0],
                    value=last[-1],
                    threshold=limit,
                    details=(
                        ("Clipping threshold", f"{number(limit)}, {'stated' if stated is not None else 'inferred'}"),
                        ("What it means", "the gradients before clipping are larger by an unknown amount"),
                    ),
                ),
            )
        )


def _stated_limit(scalars: Mapping[str, float]) -> float | None:
    found = {value for name, value in scalars.items() if LIMIT.search(name) and value > 0.0}
    return found.pop() if len(found) == 1 else None
