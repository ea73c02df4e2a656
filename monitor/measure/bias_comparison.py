"""The values of a recurrent layer's biases in Keras against those in PyTorch.

Worker processes only, since it imports the kernel.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from monitor.measure.comparison import PairResult
from monitor.measure.exact_drift import ExactDrift
from monitor.measure.name_rules import is_gru
from monitor.measure.recurrent_bias import ELEMENTS_MAX, JoinedBias
from monitor.measure.stored import Array, numpy_dtype
from monitor.read.reader import OpenCheckpoint

_GRU_BLOCKS = (1, 0, 2)


def compare_biases(old: OpenCheckpoint, new: OpenCheckpoint, bias: JoinedBias) -> Iterator[PairResult]:
    """Yield what `bias` is found to be: one result for each tensor of the newer checkpoint.

    Keras keeps one row, the sum, or two rows, the gates of a GRU in its own order. Nothing where a name or a value is
    missing.
    """
    keras, torch = (old, new) if bias.is_old else (new, old)
    single = _values(keras, bias.single)
    parts = [_values(torch, name) for name in (bias.first, bias.second)]
    if single is None or parts[0] is None or parts[1] is None or parts[0].size != parts[1].size:
        return
    n = parts[0].size
    blocks = _GRU_BLOCKS if is_gru(bias.single, bias.first) and n % 3 == 0 else ()
    if blocks:  # the order is its own inverse
        parts = [part.reshape(3, -1)[list(blocks)].reshape(-1) for part in parts if part is not None]
    text = f" blocks ({','.join(map(str, blocks))})" if blocks else ""
    torch_rows: npt.NDArray[Any] = np.stack([part for part in parts if part is not None])
    if single.size == n:
        with np.errstate(all="ignore"):
            torch_rows = torch_rows[:1] + torch_rows[1:]
        text = f"sum of {bias.first} and {bias.second}{text}"
    elif single.size != 2 * n:
        return
    if not bias.is_old:
        layout = text if single.size == n else f"rows {bias.first} and {bias.second}{text}"
        yield _result(bias.single, bias.first, layout, single, torch_rows.reshape(-1))
        return
    rows = single.reshape(-1, n)
    for place, name in enumerate((bias.first, bias.second)):
        row = place if len(rows) == 2 else 0
        layout = text if single.size == n else f"row {row}{text}"
        yield _result(name, bias.single, layout, torch_rows[row], rows[row])


def _result(name: str, other_name: str, layout: str, new: Array, old: Array) -> PairResult:
    drift = ExactDrift(new.size)
    drift.update(np.ascontiguousarray(new), np.ascontiguousarray(old))
    return PairResult(name=name, other_name=other_name, layout=layout, drift=drift.finish(name, None))


def _values(checkpoint: OpenCheckpoint, name: str) -> Array | None:
    spec = next((s for s in checkpoint.tensors if s.name == name), None)
    if spec is None or spec.problem is not None or not 0 < spec.n_elements <= 2 * ELEMENTS_MAX:
        return None
    found = np.empty(spec.n_elements, numpy_dtype(spec.dtype))
    for chunk in checkpoint.chunks(spec):
        found[chunk.offset_elements : chunk.offset_elements + chunk.values.size] = chunk.values
    return found
