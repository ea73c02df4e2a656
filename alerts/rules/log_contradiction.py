"""The rule `log_contradiction`: the weights are broken, and the training log says that all is well.

Some trainers replace a loss of NaN by the mean of earlier ones before they log it. Then the curve looks sound while the
run is lost. `nonfinite` raises the alarm; this says why nobody saw it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from alerts.evidence import hit, is_mask, newest_of
from alerts.rule import Needs, Outcome, number, quiet
from storage.records import Severity, SnapshotStatus, TensorKind, Window


class LogContradiction:
    """A clean log over broken weights."""

    name: ClassVar[str] = "log_contradiction"
    severity: ClassVar[Severity] = Severity.INFO
    needs: ClassVar[tuple[Needs, ...]] = (Needs.WEIGHTS, Needs.LOG)
    on_tick: ClassVar[bool] = False

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Options:
        """There is nothing to set."""

    def check(self, window: Window, options: Options) -> Outcome:  # noqa: ARG002 - the contract of every rule
        """Compare the newest checkpoint's elements with the log of the steps before it; silent without a log."""
        newest = window.newest
        if newest is None:
            return quiet("no checkpoint yet")
        if newest.status is not SnapshotStatus.COMPLETE:
            return quiet("the newest checkpoint could not be measured")
        loss = window.scalars.get("log.loss_last")
        if loss is None:
            return quiet("no loss in a log beside the checkpoint")
        bad = [
            t
            for t in window.tensors
            if t.n_nonfinite and t.kind in (TensorKind.PARAMETER, TensorKind.OPTIMIZER) and not is_mask(t)
        ]
        if not bad or window.scalars.get("log.n_nonfinite", 0.0) > 0.0:
            return Outcome()
        return Outcome(
            findings=(
                hit(
                    self,
                    window,
                    f"The log shows a loss of {number(loss)}, but {bad[0].name} holds NaN or infinity: "
                    "do not trust the curve",
                    subject=bad[0].name,
                    value=loss,
                    details=(
                        ("Checkpoint", newest_of(window).path),
                        ("Possible reason", "the trainer replaces a NaN loss before logging (logging_nan_inf_filter)"),
                    ),
                ),
            )
        )
