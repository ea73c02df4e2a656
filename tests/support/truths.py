"""What a training loop writes down of each save, so that it can be compared with what the daemon measured."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt


def statistics(values: npt.NDArray[Any]) -> dict[str, Any]:
    """Return what NumPy says in float64 about the finite elements."""
    array = values.astype(np.float64).ravel()
    finite = array[np.isfinite(array)]
    truth: dict[str, Any] = {
        "shape": list(values.shape),
        "n_nan": int(np.isnan(array).sum()),
        "n_zero": int((array == 0).sum()),
    }
    if finite.size:
        truth |= {
            "min": float(finite.min()),
            "max": float(finite.max()),
            "mean": float(finite.mean()),
            "std": float(finite.std()),
            "norm_l1": float(np.abs(finite).sum()),
            "norm_l2": float(np.sqrt((finite**2).sum())),
            "abs_max": float(np.abs(finite).max()),
        }
    return truth


def write_truth(directory: Path, step: int, tensors: Mapping[str, npt.NDArray[Any]], **more: Any) -> None:
    """Write DIRECTORY/STEP.json, whole from the moment on at which it is there."""
    document = {"step": step, "tensors": {name: statistics(value) for name, value in tensors.items()}, **more}
    temporary = directory / f".{step}.tmp"
    temporary.write_text(json.dumps(document))
    os.replace(temporary, directory / f"{step:06d}.json")
