"""Read a whole checkpoint into memory, the way no part of the product does: for comparison only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from monitor.read.reader import ReadLimits, TensorSpec
from monitor.read.registry import open_path


@dataclass(frozen=True)
class Whole:
    format: str
    step: int | None
    epoch: float | None
    scalars: Mapping[str, float]
    specs: dict[str, TensorSpec]
    values: dict[str, npt.NDArray[np.generic]]


def read_whole(path: Path, limits: ReadLimits | None = None) -> Whole:
    """Return every tensor with its values in its shape, ties resolved; check that chunks follow each other."""
    with open_path(str(path), limits) as opened:
        checkpoint = opened.checkpoint
        specs = {spec.name: spec for spec in checkpoint.tensors}
        assert len(specs) == len(checkpoint.tensors), "names are not unique"
        values: dict[str, npt.NDArray[np.generic]] = {}
        for spec in checkpoint.tensors:
            parts = []
            place = 0
            for chunk in checkpoint.chunks(spec):
                assert chunk.offset_elements == place
                assert chunk.values.ndim == 1
                place += chunk.values.size
                parts.append(chunk.values.copy())
            if spec.problem is None:
                assert place == spec.n_elements
                dtype = parts[0].dtype if parts else np.dtype(np.uint8)
                values[spec.name] = np.concatenate(parts or [np.empty(0, dtype)]).reshape(spec.shape)
        opened.file.verify_unchanged()
        return Whole(opened.format, checkpoint.step, checkpoint.epoch, checkpoint.scalars, specs, values)


def bits(array: npt.NDArray[np.generic]) -> bytes:
    """Return the values as bytes, so that NaN equals itself and -0.0 differs from 0.0."""
    return np.ascontiguousarray(array).tobytes()
