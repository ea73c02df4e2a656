"""The rule `nonfinite`: NaN or infinity in the newest checkpoint's tensors.

One finding a run, however many tensors are bad: the reader wants to know when it began and which tensor was first.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import ClassVar

from alerts.evidence import is_mask
from alerts.rule import Needs, Outcome, number, quiet, step_text
from storage.records import (
    Finding,
    Severity,
    SnapshotStatus,
    StoredSnapshot,
    TensorKind,
    TensorSummary,
    Window,
)

TENSORS_LISTED_MAX = 10
KIND_TEXT = {
    TensorKind.PARAMETER: ("parameter", "parameters"),
    TensorKind.BUFFER: ("buffer", "buffers"),
    TensorKind.OPTIMIZER: ("optimizer tensor", "optimizer tensors"),
    TensorKind.OTHER: ("other tensor", "other tensors"),
}


class Nonfinite:
    """NaN or infinity in the newest checkpoint."""

    name: ClassVar[str] = "nonfinite"
    severity: ClassVar[Severity] = Severity.CRITICAL
    needs: ClassVar[tuple[Needs, ...]] = (Needs.WEIGHTS,)
    on_tick: ClassVar[bool] = False

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Options:
        """`ignore`: glob patterns of tensor names that may hold NaN or infinity.

        `accept_masks`: a tensor of nothing but zeros and -Inf is an additive attention mask, not trouble.
        """

        ignore: tuple[str, ...] = ()
        accept_masks: bool = True

    def check(self, window: Window, options: Options) -> Outcome:
        """Find the bad tensors of the newest snapshot and the snapshot in which the present stretch began."""
        newest = window.newest
        if newest is None:
            return quiet("no checkpoint yet")
        if newest.status is not SnapshotStatus.COMPLETE:
            return quiet("the newest checkpoint could not be measured")
        if newest.n_nonfinite == 0:
            return Outcome()
        held = [t for t in window.tensors if t.n_nonfinite > 0]
        bad = [t for t in held if not _accepted(t, options)]
        n_accepted = sum(t.n_nonfinite for t in held) - sum(t.n_nonfinite for t in bad)
        if held and not bad:
            return Outcome(notes=(_note(window.run, newest, held),))
        return Outcome(findings=(_finding(window, newest, bad, n_accepted),))


def _accepted(tensor: TensorSummary, options: Nonfinite.Options) -> bool:
    if any(fnmatchcase(tensor.name, pattern) for pattern in options.ignore):
        return True
    return options.accept_masks and is_mask(tensor)


def _note(run: str, newest: StoredSnapshot, held: Sequence[TensorSummary]) -> Finding:
    n_elements = sum(t.n_nonfinite for t in held)
    return Finding(
        rule=Nonfinite.name,
        severity=Severity.INFO,
        run=run,
        step=newest.step,
        subject=held[0].name,
        value=float(n_elements),
        threshold=None,
        unit="elements",
        summary=f"{_elements(n_elements)} infinite or NaN in {len(held)} masks or ignored tensors, as expected",
        identity="accepted",
    )


def _stretch(snapshots: Sequence[StoredSnapshot], n_accepted: int) -> tuple[int, int]:
    """Return the index where the bad stretch that reaches the newest snapshot began, and its number of snapshots.

    Snapshots that could not be measured neither end nor begin a stretch.
    """
    first, n_bad = len(snapshots) - 1, 1
    for index in range(len(snapshots) - 2, -1, -1):
        snapshot = snapshots[index]
        if snapshot.status is not SnapshotStatus.COMPLETE:
            continue
        if snapshot.n_nonfinite <= n_accepted:
            break
        first, n_bad = index, n_bad + 1
    return first, n_bad


def _finding(window: Window, newest: StoredSnapshot, bad: Sequence[TensorSummary], n_accepted: int) -> Finding:
    first_index, n_bad_snapshots = _stretch(window.snapshots, n_accepted)
    first = window.snapshots[first_index]
    bad_now = min(bad, key=lambda t: t.position).name if bad else newest.first_bad_tensor or ""
    subject = bad_now if first is newest else first.first_bad_tensor or bad_now
    since = step_text(first.step)
    if first_index == 0 and n_bad_snapshots > 1:
        since = f"at the latest {since}"  # the window begins inside the stretch; it may be older
    total = sum(t.n_nonfinite for t in bad) if bad else newest.n_nonfinite
    what = _what(bad)
    where = f"{len(bad)} of {len(window.tensors)} tensors" if bad else "the checkpoint"
    summary = f"{what} in {subject or 'the checkpoint'} since {since}: {_elements(total)} in {where}"
    kinds = _kinds(bad)
    if bad and all(t.kind is TensorKind.OPTIMIZER for t in bad):
        summary += "; only optimizer state is hit, the weights are still finite"
    details = (
        [("First bad checkpoint", first.path), ("Hit", kinds)] if kinds else [("First bad checkpoint", first.path)]
    )
    if newest is not first:
        details.append(("Newest checkpoint", f"{step_text(newest.step)}, {n_bad_snapshots} bad in a row"))
    worst = sorted(bad, key=lambda t: (-t.n_nonfinite / max(t.n_elements, 1), t.position))
    details += [(t.name, _counts(t)) for t in worst[:TENSORS_LISTED_MAX]]
    return Finding(
        rule=Nonfinite.name,
        severity=Nonfinite.severity,
        run=window.run,
        step=first.step,
        subject=subject,
        value=float(total),
        threshold=0.0,
        unit="elements",
        summary=summary,
        identity="weights",
        details=tuple(details),
    )


def _what(bad: Sequence[TensorSummary]) -> str:
    has_nan = any(t.n_nan for t in bad)
    has_inf = any(t.n_posinf or t.n_neginf for t in bad)
    if has_nan and has_inf:
        return "NaN and infinity"
    if has_inf:
        return "Infinity"
    return "NaN" if has_nan else "NaN or infinity"


def _elements(count: int) -> str:
    return f"{number(count)} element{'' if count == 1 else 's'}"


def _kinds(bad: Sequence[TensorSummary]) -> str:
    counts = Counter(t.kind for t in bad)
    return ", ".join(f"{counts[kind]} {KIND_TEXT[kind][counts[kind] != 1]}" for kind in TensorKind if counts[kind])


def _counts(tensor: TensorSummary) -> str:
    parts = [
        f"{number(count)} {label}"
        for label, count in (("NaN", tensor.n_nan), ("+Inf", tensor.n_posinf), ("-Inf", tensor.n_neginf))
        if count
    ]
    return f"{', '.join(parts)} of {number(tensor.n_elements)} ({KIND_TEXT[tensor.kind][0]})"
