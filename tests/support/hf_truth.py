"""Compare what was read from a checkpoint with the values that its writer wrote down."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tests.support.reading import Whole, bits


def assert_is_truth(whole: Whole, truth: Path) -> None:
    """Demand the very names, shapes, dtypes and bits of an .npz; one-element states are compared by value."""
    with np.load(truth) as arrays:
        assert set(whole.specs) == set(arrays.files)
        for name in arrays.files:
            spec = whole.specs[name]
            assert spec.problem is None, (name, spec.problem)
            assert spec.shape == arrays[name].shape, name
            assert spec.dtype == arrays[name].dtype.name, name
            assert bits(whole.values[name]) == bits(arrays[name]), name
