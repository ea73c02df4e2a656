"""The rule `overfit`: the validation loss rises away from the training loss. Off unless enabled: some want it so."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import Field

from alerts.evidence import hit
from alerts.rule import Needs, Outcome, number, quiet
from storage.records import Severity, Window


class Overfit:
    """Validation falls behind training."""

    name: ClassVar[str] = "overfit"
    severity: ClassVar[Severity] = Severity.INFO
    needs: ClassVar[tuple[Needs, ...]] = (Needs.LOG,)
    on_tick: ClassVar[bool] = False
    on_by_default: ClassVar[bool] = False

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Options:
        """`ratio`: by what part the validation loss may be above the training loss, and above its own lowest.

        `checkpoints`: for how many in a row it must be.
        """

        ratio: Annotated[float, Field(gt=0)] = 0.1
        checkpoints: Annotated[int, Field(ge=1, le=8)] = 3

    def check(self, window: Window, options: Options) -> Outcome:
        """Compare both losses of the last checkpoints; silent where the log lacks one of them."""
        pairs = [_losses(p.scalars) for p in window.past] + [_losses(window.scalars)]
        if window.newest is None or pairs[-1] is None:
            return quiet("no training and validation loss in a log beside the checkpoint")
        held = [pair for pair in pairs if pair is not None]
        if len(held) < options.checkpoints + 1:
            return quiet(f"only {len(held)} of the {options.checkpoints + 1} checkpoints with both losses")
        lowest = min(evaluated for _, evaluated in held)
        if any(
            evaluated <= (1.0 + options.ratio) * max(trained, lowest)
            for trained, evaluated in held[-options.checkpoints :]
        ):
            return Outcome()
        trained, evaluated = held[-1]
        return Outcome(
            findings=(
                hit(
                    self,
                    window,
                    f"Validation falls behind: loss {number(evaluated)} in validation, {number(trained)} in training, "
                    f"{number(lowest)} at its lowest",
                    value=evaluated,
                    threshold=(1.0 + options.ratio) * max(trained, lowest),
                ),
            )
        )


def _losses(scalars: Mapping[str, float]) -> tuple[float, float] | None:
    """Return (training, validation) loss where both are known and positive."""
    trained, evaluated = scalars.get("log.loss"), scalars.get("log.eval_loss")
    return (trained, evaluated) if trained and evaluated and trained > 0.0 and evaluated > 0.0 else None
