"""What rules ask of a window before they judge: is there something to judge, which tensors count, what came before.

Pure functions over records, shared by the rules; none of them judges.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import PurePosixPath
from typing import Any

from storage.records import (
    Finding,
    PastSnapshot,
    Severity,
    SnapshotStatus,
    StoredSnapshot,
    TensorDrift,
    TensorKind,
    TensorSummary,
    Window,
)

LISTED_MAX = 10
_DIGITS = re.compile(r"\d+")
_RATE = re.compile(r"^optimizer(?:\.\d+)?\.param_groups\.\d+\.(lr|initial_lr)$")


def why_silent(window: Window) -> str | None:
    """Return why nothing can be said about the newest snapshot's numbers, None where something can.

    A checkpoint with NaN or infinity is the business of the rule `nonfinite` alone: its other numbers are about what is
    left, and a second alert about the same collapse helps nobody. Masks do not count.
    """
    newest = window.newest
    if newest is None:
        return "no checkpoint yet"
    if newest.status is not SnapshotStatus.COMPLETE:
        return "the newest checkpoint could not be measured"
    held = [t for t in window.tensors if t.n_nonfinite > 0]
    if any(not is_mask(t) for t in held) or (newest.n_nonfinite > 0 and not held):
        return "the newest checkpoint holds NaN or infinity"
    return None


def is_mask(tensor: TensorSummary) -> bool:
    """Say whether the tensor holds nothing but zeros and -Inf, at least one of each, and is no optimizer state."""
    return (
        tensor.kind is not TensorKind.OPTIMIZER
        and tensor.n_neginf > 0
        and tensor.n_zero > 0
        and tensor.n_neginf + tensor.n_zero == tensor.n_elements
    )


def newest_of(window: Window) -> StoredSnapshot:
    """Return the newest snapshot of a window that has one."""
    assert window.newest is not None
    return window.newest


def hit(rule: Any, window: Window, summary: str, **facts: Any) -> Finding:
    """Return a finding of a rule (its class or itself) about the newest snapshot; `facts` replace the plain ones."""
    newest = newest_of(window)
    plain: dict[str, Any] = {
        "severity": rule.severity,
        "step": newest.step,
        "subject": "",
        "value": None,
        "threshold": None,
        "unit": "",
    }
    severity = facts.get("severity", plain["severity"])
    assert isinstance(severity, Severity)
    return Finding(rule=rule.name, run=window.run, summary=summary, **{**plain, **facts})


def parameters(tensors: Iterable[TensorSummary], *, ignore: Sequence[str] = ()) -> list[TensorSummary]:
    """Return the parameters that were measured, each storage once, without those of an ignored name (glob patterns)."""
    return [
        t
        for t in tensors
        if t.kind is TensorKind.PARAMETER
        and t.tied_to is None
        and t.problem is None
        and t.n_elements > 0
        and not any(fnmatchcase(t.name, pattern) for pattern in ignore)
    ]


def matrices(tensors: Iterable[TensorSummary], *, ignore: Sequence[str] = ()) -> list[TensorSummary]:
    """Return the parameters with at least two axes longer than one, which are never a bias or a scale."""
    return [t for t in parameters(tensors, ignore=ignore) if sum(axis > 1 for axis in t.shape) >= 2]


def drifts_of(drifts: Iterable[TensorDrift]) -> Mapping[str, TensorDrift]:
    """Return the drifts by tensor name."""
    return {d.name: d for d in drifts}


def is_unmoved(drift: TensorDrift) -> bool:
    """Say whether a tensor is bit-identical to the reference: no element changed, or a sketch that is exactly equal."""
    return drift.n_changed == 0 if drift.n_changed is not None else drift.difference_l2 == 0.0


def steps_between(snapshot: StoredSnapshot) -> int | None:
    """Return the steps between a snapshot and its reference, None where unknown or not positive."""
    if snapshot.step is None or snapshot.reference_step is None or snapshot.step <= snapshot.reference_step:
        return None
    return snapshot.step - snapshot.reference_step


def family(path: str) -> str:
    """Return a checkpoint's name without its numbers, with its directory's where that is numbered.

    Checkpoints of one kind share it; a generator beside a discriminator, or a final export, has another one.
    """
    pure = PurePosixPath(path)
    name = _DIGITS.sub("#", pure.name)
    return name if "#" in name else f"{_DIGITS.sub('#', pure.parent.name)}/{name}"


def of_same_family(window: Window) -> list[PastSnapshot]:
    """Return the past snapshots whose paths are of the newest one's kind, oldest first."""
    mine = family(newest_of(window).path)
    return [p for p in window.past if family(p.snapshot.path) == mine]


def learning_rate(scalars: Mapping[str, float]) -> float | None:
    """Return the highest learning rate that a checkpoint states, else the logged one; None where there is none."""
    stated = [v for k, v in scalars.items() if (m := _RATE.match(k)) and m[1] == "lr"]
    return max(stated) if stated else scalars.get("log.learning_rate")


def rate_rise(window: Window) -> float:
    """Return by how much a rise of the learning rate that was planned excuses larger steps; at least 1.

    A warm-up and a warm restart rise to what the run had before or to the schedule's initial rate, and no further: a
    rate above both is no excuse, it may be the fault itself.
    """
    now = learning_rate(window.scalars)
    before = [r for p in window.past if (r := learning_rate(p.scalars)) is not None and r > 0.0]
    if now is None or not before:
        return 1.0
    planned = [v for k, v in window.scalars.items() if (m := _RATE.match(k)) and m[1] == "initial_lr"]
    allowed = min(now, max([*before, *planned]))
    return max(1.0, allowed / min(before))


def listed(tensors: Iterable[tuple[str, str]]) -> tuple[tuple[str, str], ...]:
    """Return the first few (name, text) pairs for the details of a finding."""
    return tuple(pair for _, pair in zip(range(LISTED_MAX), tensors, strict=False))
