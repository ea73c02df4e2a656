"""The rule `loss_scale_collapse`: the loss scale of mixed precision fell and fell, because gradients overflow."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import Field

from alerts.evidence import hit, newest_of
from alerts.rule import Needs, Outcome, number, quiet, step_text
from storage.records import Severity, SnapshotStatus, Window

COMPANIONS = ("growth_factor", "backoff_factor", "growth_interval", "_growth_tracker")
OWN_NAMES = ("cur_scale", "loss_scale")


class LossScaleCollapse:
    """The loss scale is at its end."""

    name: ClassVar[str] = "loss_scale_collapse"
    severity: ClassVar[Severity] = Severity.CRITICAL
    needs: ClassVar[tuple[Needs, ...]] = (Needs.OPTIMIZER,)
    on_tick: ClassVar[bool] = False

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Options:
        """`scale_min`: a scale below this has collapsed. `drop`: or one that fell to this part of the one before.

        The drop counts only after the second checkpoint: a scale is often started far too high.
        """

        scale_min: Annotated[float, Field(ge=0)] = 1.0
        drop: Annotated[float, Field(gt=0, lt=1)] = 1 / 256

    def check(self, window: Window, options: Options) -> Outcome:
        """Compare the scale with its limit and with the one before; silent where the checkpoint states none."""
        newest = window.newest
        if newest is None:
            return quiet("no checkpoint yet")
        if newest.status is not SnapshotStatus.COMPLETE:
            return quiet("the newest checkpoint could not be measured")
        scales = loss_scales(window.scalars)
        if not scales:
            return quiet("no loss scale in the checkpoint")
        name, scale = min(scales.items(), key=lambda item: item[1])
        series = [(p.snapshot.step, s) for p in window.past if (s := loss_scales(p.scalars).get(name)) is not None]
        before = series[-1][1] if len(series) >= 2 else None
        fell = before is not None and scale <= options.drop * before
        if scale >= options.scale_min and not fell:
            return Outcome()
        history = [f"{number(s)} at {step_text(step)}" for step, s in series[-4:]]
        return Outcome(
            findings=(
                hit(
                    self,
                    window,
                    f"The loss scale collapsed to {number(scale)}"
                    + (f" from {number(before)}" if before is not None else "")
                    + ": gradients overflow at every scale",
                    subject=name,
                    step=newest_of(window).step,
                    value=scale,
                    threshold=options.scale_min if scale < options.scale_min else options.drop * (before or 0.0),
                    details=(("Before", ", ".join(history)),) if history else (),
                ),
            )
        )


def loss_scales(scalars: Mapping[str, float]) -> dict[str, float]:
    """Return the loss scales that a checkpoint states, by name: torch's GradScaler and others that name it so."""
    found = {}
    for name, value in scalars.items():
        prefix, _, last = name.rpartition(".")
        dot = f"{prefix}." if prefix else ""
        own = last in OWN_NAMES
        if own or (last == "scale" and any(f"{dot}{companion}" in scalars for companion in COMPANIONS)):
            found[name] = value
    return found
