"""The result of measuring one file: what a worker sends back to the daemon.

Facts only; the daemon imports this, so neither the kernel nor a reader's machinery may come in here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from storage.records import TensorDrift, TensorKind, TensorSummary


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What one checkpoint file holds, in numbers.

    `step` and `epoch` are None where the content names none. `tensors` are in the checkpoint's own order. `scalars`
    are finite. `exact_drifts` is empty when no reference file was read; their reference_step is that of the reference
    file's own content and may be None. `bytes_read` counts both files.
    """

    format: str
    step: int | None
    epoch: float | None
    scalars: Mapping[str, float]
    tensors: tuple[TensorSummary, ...]
    exact_drifts: tuple[TensorDrift, ...]
    bytes_read: int
    n_parameters: int


def count_parameters(tensors: tuple[TensorSummary, ...]) -> int:
    """Return the number of elements of all parameters, each tied storage once."""
    return sum(t.n_elements for t in tensors if t.kind is TensorKind.PARAMETER and t.tied_to is None)
