"""The rule `resume_discontinuity`: the run goes on, but not from where it was.

After a restart the optimizer's own count of steps begins anew although the training step does not, or the weights are
not those that were saved. A training that starts over from step 0 is no discontinuity.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import Field

from alerts.evidence import hit, listed, matrices, newest_of, why_silent
from alerts.optimizer_state import states
from alerts.rule import Needs, Outcome, number, quiet, step_text
from storage.records import Finding, PastSnapshot, Severity, TensorSummary, Window

RESUMED_SHARE_MIN = 0.5  # a first checkpoint beyond this share of the old last step did not begin at 0
MATRICES_MIN = 2


class ResumeDiscontinuity:
    """State was lost or swapped at a restart."""

    name: ClassVar[str] = "resume_discontinuity"
    severity: ClassVar[Severity] = Severity.WARNING
    needs: ClassVar[tuple[Needs, ...]] = (Needs.TWO_CHECKPOINTS,)
    on_tick: ClassVar[bool] = False

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Options:
        """`norm_ratio`: a matrix whose norm is other by this factor after a restart is not the one that was saved.

        `share`: for which part of all matrices that must hold.
        """

        norm_ratio: Annotated[float, Field(gt=1)] = 1.5
        share: Annotated[float, Field(gt=0, le=1)] = 0.5

    def check(self, window: Window, options: Options) -> Outcome:
        """Compare the optimizer's steps, and after a restart the norms; silent without an earlier checkpoint."""
        if (reason := why_silent(window)) is not None:
            return quiet(reason)
        if not window.past and window.previous_attempt is None:
            return quiet("no earlier checkpoint to compare with")
        found = _optimizer_lost(window)
        if found is None and window.previous_attempt is not None:
            found = _other_weights(window, window.previous_attempt, options)
        return Outcome(findings=(found,)) if found is not None else Outcome()


def _optimizer_lost(window: Window) -> Finding | None:
    """Find an optimizer that counts from zero again: its steps fell back while the training's went on."""
    newest = newest_of(window)
    now = _optimizer_steps(window.tensors, window.scalars)
    if now is None or newest.step is None:
        return None
    for past in reversed(window.past):
        before = _optimizer_steps(past.tensors, past.scalars)
        step = past.snapshot.step
        if before is not None and step is not None and now < before and newest.step > step:
            return _lost(window, past, now, before)
    old = window.previous_attempt
    if old is None or not old.snapshot.step or not newest.step:
        return None
    before = _optimizer_steps(old.tensors, old.scalars)
    # Optimizer steps for each training step: the same after a sound restart, wherever it went on from.
    if before and now < before and now / newest.step < 0.5 * before / old.snapshot.step:
        return _lost(window, old, now, before)
    return None


def _lost(window: Window, past: PastSnapshot, now: float, before: float) -> Finding:
    return hit(
        ResumeDiscontinuity,
        window,
        f"The optimizer state was lost on resuming: it counts {number(now)} steps, "
        f"after {number(before)} at {step_text(past.snapshot.step)}",
        value=now,
        threshold=before,
        unit="steps",
        identity="optimizer",
        details=(
            ("Before", past.snapshot.path),
            ("What it means", "moments start from zero: the first steps are badly scaled, and a spike is likely"),
        ),
    )


def _optimizer_steps(tensors: tuple[TensorSummary, ...], scalars: Mapping[str, float]) -> float | None:
    steps = [s.step for s in states(tensors, scalars) if s.step is not None]
    return max(steps) if steps else None


def _other_weights(window: Window, old: PastSnapshot, options: ResumeDiscontinuity.Options) -> Finding | None:
    newest = newest_of(window)
    was_resumed = newest.step is not None and newest.step > RESUMED_SHARE_MIN * (old.snapshot.step or math.inf)
    if window.past or not was_resumed:
        return None
    before = {t.name: t for t in matrices(old.tensors)}
    pairs = [
        (t, ratio)
        for t in matrices(window.tensors)
        if t.name in before
        and t.shape == before[t.name].shape
        and (ratio := _norm_ratio(t, before[t.name])) is not None
    ]
    other = [(t, r) for t, r in pairs if max(r, 1 / r) > options.norm_ratio]
    if len(pairs) < MATRICES_MIN or len(other) < options.share * len(pairs):
        return None
    first, ratio = max(other, key=lambda item: abs(math.log(item[1])))
    return hit(
        ResumeDiscontinuity,
        window,
        f"The run went on with other weights: {number(len(other))} of {number(len(pairs))} matrices are not the size "
        f"they had at {step_text(old.snapshot.step)}",
        subject=first.name,
        value=ratio,
        threshold=options.norm_ratio,
        unit="times the norm",
        identity="weights",
        details=(("Before", old.snapshot.path), *listed((t.name, f"{number(r)} times the norm") for t, r in other)),
    )


def _norm_ratio(new: TensorSummary, old: TensorSummary) -> float | None:
    return new.norm_l2 / old.norm_l2 if new.norm_l2 and old.norm_l2 else None
