"""The rule `loss_not_decreasing`: after many checkpoints the logged loss is still where it began."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import Field

from alerts.evidence import hit
from alerts.rule import Needs, Outcome, number, quiet, step_text
from storage.records import Severity, Window


class LossNotDecreasing:
    """No progress at all."""

    name: ClassVar[str] = "loss_not_decreasing"
    severity: ClassVar[Severity] = Severity.INFO
    needs: ClassVar[tuple[Needs, ...]] = (Needs.LOG,)
    on_tick: ClassVar[bool] = False

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Options:
        """`checkpoints`: over how many. `decrease`: by what part of the first loss it must have fallen at some time."""

        checkpoints: Annotated[int, Field(ge=3, le=9)] = 8
        decrease: Annotated[float, Field(gt=0, lt=1)] = 0.01

    def check(self, window: Window, options: Options) -> Outcome:
        """Compare the lowest loss of a run's first checkpoints with its first one; silent without a log.

        Only the beginning of a run is judged: later a loss that rests has converged.
        """
        if window.newest is None or "log.loss" not in window.scalars:
            return quiet("no loss in a log beside the checkpoint")
        if len(window.past) + 1 < len(window.snapshots) or window.previous_attempt is not None:
            return Outcome()
        entries = [(p.snapshot.step, p.scalars.get("log.loss")) for p in window.past]
        known = [(step, loss) for step, loss in entries if loss is not None]
        if len(known) + 1 < options.checkpoints:
            return quiet(f"only {len(known) + 1} of the {options.checkpoints} checkpoints with a logged loss")
        (first_step, first), now = known[0], window.scalars["log.loss"]
        lowest = min(now, *(loss for _, loss in known[1:]))
        if first <= 0.0 or lowest < first * (1.0 - options.decrease):
            return Outcome()
        return Outcome(
            findings=(
                hit(
                    self,
                    window,
                    f"The loss has not fallen since {step_text(first_step)}: {number(first)} then, {number(now)} now",
                    value=lowest,
                    threshold=first * (1.0 - options.decrease),
                    details=(("Checkpoints", number(len(known) + 1)),),
                ),
            )
        )
