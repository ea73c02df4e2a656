"""The rule `size_change`: files are suddenly much smaller or larger, and the tensors in them do not explain it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from statistics import median
from typing import Annotated, ClassVar

from pydantic import Field

from alerts.evidence import hit, newest_of, of_same_family
from alerts.rule import Needs, Outcome, number, quiet
from storage.records import Severity, SnapshotStatus, TensorSummary, Window

BYTES_MIN = 64 * 1024  # a small file is made of what surrounds the tensors


class SizeChange:
    """Files of another size for the same tensors."""

    name: ClassVar[str] = "size_change"
    severity: ClassVar[Severity] = Severity.INFO
    needs: ClassVar[tuple[Needs, ...]] = (Needs.FILES, Needs.TWO_CHECKPOINTS)
    on_tick: ClassVar[bool] = False

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Options:
        """`ratio`: how many times larger or smaller than the median of those before is a change.

        `baseline_checkpoints_min`: how many there must be to compare with.
        """

        ratio: Annotated[float, Field(gt=1)] = 1.5
        baseline_checkpoints_min: Annotated[int, Field(ge=1, le=8)] = 2

    def check(self, window: Window, options: Options) -> Outcome:
        """Compare the size with those before; quiet where the number of elements changed, which other rules tell."""
        newest = window.newest
        if newest is None:
            return quiet("no checkpoint yet")
        if newest.status is not SnapshotStatus.COMPLETE:
            return quiet("the newest checkpoint could not be measured")
        past = of_same_family(window)
        if len(past) < options.baseline_checkpoints_min:
            return quiet(f"only {len(past)} of the {options.baseline_checkpoints_min} checkpoints to compare with")
        usual = median(p.snapshot.size_bytes for p in past)
        if max(usual, newest.size_bytes) < BYTES_MIN or not usual or not newest.size_bytes:
            return Outcome()
        ratio = newest.size_bytes / usual
        if max(ratio, 1 / ratio) < options.ratio or _n_bits(window.tensors) != _n_bits(past[-1].tensors):
            return Outcome()
        return Outcome(
            findings=(
                hit(
                    self,
                    window,
                    f"The checkpoint has {number(newest.size_bytes)} bytes, {number(ratio)} times the usual, "
                    "with the same tensors",
                    subject=newest_of(window).path,
                    value=float(newest.size_bytes),
                    threshold=options.ratio * usual if ratio > 1 else usual / options.ratio,
                    unit="bytes",
                ),
            )
        )


def _n_bits(tensors: Iterable[TensorSummary]) -> dict[str, int]:
    """Return the number of elements by dtype, each storage once."""
    counts: dict[str, int] = {}
    for tensor in tensors:
        if tensor.tied_to is None:
            counts[tensor.dtype] = counts.get(tensor.dtype, 0) + tensor.n_elements
    return counts
