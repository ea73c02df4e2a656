"""The rule `overtraining`: the validation loss no longer improves. Off unless enabled: early stopping is a choice."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import Field

from alerts.evidence import hit
from alerts.rule import Needs, Outcome, number, quiet, step_text
from storage.records import Severity, Window


class Overtraining:
    """Training beyond the best."""

    name: ClassVar[str] = "overtraining"
    severity: ClassVar[Severity] = Severity.INFO
    needs: ClassVar[tuple[Needs, ...]] = (Needs.LOG,)
    on_tick: ClassVar[bool] = False
    on_by_default: ClassVar[bool] = False

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Options:
        """`checkpoints`: for how many in a row the validation loss must not fall below its lowest before.

        `delta`: by what part of it a fall counts.
        """

        checkpoints: Annotated[int, Field(ge=1, le=8)] = 5
        delta: Annotated[float, Field(ge=0, lt=1)] = 0.001

    def check(self, window: Window, options: Options) -> Outcome:
        """Compare the last validation losses with the lowest before them; silent without enough of them."""
        now = window.scalars.get("log.eval_loss")
        if window.newest is None or now is None:
            return quiet("no validation loss in a log beside the checkpoint")
        series = [(p.snapshot.step, v) for p in window.past if (v := p.scalars.get("log.eval_loss")) is not None]
        series.append((window.newest.step, now))
        if len(series) <= options.checkpoints:
            return quiet(f"only {len(series)} of the {options.checkpoints + 1} checkpoints with a validation loss")
        best_step, best = min(series[: -options.checkpoints], key=lambda entry: entry[1])
        limit = best - options.delta * abs(best)
        if min(loss for _, loss in series[-options.checkpoints :]) < limit:
            return Outcome()
        return Outcome(
            findings=(
                hit(
                    self,
                    window,
                    f"No progress in validation since {step_text(best_step)}: loss {number(best)} then, "
                    f"{number(now)} now",
                    value=now,
                    threshold=limit,
                ),
            )
        )
