"""The rule `duplicate_checkpoint`: checkpoints of later steps hold the very same weights as those before.

The training loop runs and saves, but nothing is learned: a learning rate of zero, an optimizer over the wrong
parameters, steps that are all skipped, or the wrong object saved.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import Field

from alerts.evidence import drifts_of, hit, is_unmoved, newest_of, parameters, why_silent
from alerts.rule import Needs, Outcome, number, quiet, step_text
from storage.records import Severity, StoredSnapshot, TensorDrift, TensorSummary, Window


class DuplicateCheckpoint:
    """The same weights again."""

    name: ClassVar[str] = "duplicate_checkpoint"
    severity: ClassVar[Severity] = Severity.WARNING
    needs: ClassVar[tuple[Needs, ...]] = (Needs.TWO_CHECKPOINTS,)
    on_tick: ClassVar[bool] = False

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Options:
        """`checkpoints`: how many in a row must be equal to the one before, each at a later step."""

        checkpoints: Annotated[int, Field(ge=1, le=8)] = 2

    def check(self, window: Window, options: Options) -> Outcome:
        """Count checkpoints in a row without any change; silent without a reference at an earlier step."""
        if (reason := why_silent(window)) is not None:
            return quiet(reason)
        newest = newest_of(window)
        series = [(p.snapshot, p.tensors, p.drifts) for p in window.past]
        series.append((newest, window.tensors, window.drifts))
        if _is_equal(*series[-1]) is None:
            return quiet("no earlier checkpoint at a known step to compare with")
        n_equal = 0
        for entry in reversed(series):
            if not _is_equal(*entry):
                break
            n_equal += 1
        if n_equal < options.checkpoints:
            return Outcome()
        return Outcome(
            findings=(
                hit(
                    self,
                    window,
                    f"Nothing is learned: the weights at {step_text(newest.step)} are those of "
                    f"{step_text(series[-n_equal][0].reference_step)}, bit for bit",
                    subject=newest.path,
                    step=series[-n_equal][0].step,
                    value=float(n_equal),
                    threshold=float(options.checkpoints),
                    unit="checkpoints",
                    details=(("Equal checkpoints", f"{number(n_equal)} in a row"),),
                ),
            )
        )


def _is_equal(
    snapshot: StoredSnapshot, tensors: tuple[TensorSummary, ...], drifts: tuple[TensorDrift, ...]
) -> bool | None:
    """Say whether no parameter moved since the reference; None where there is nothing to compare."""
    if snapshot.step is None or snapshot.reference_step is None or snapshot.step <= snapshot.reference_step:
        return None
    by_name = drifts_of(drifts)
    held = [by_name.get(t.name) for t in parameters(tensors)]
    if not held or any(d is None for d in held):
        return None
    return all(d is not None and is_unmoved(d) for d in held)
