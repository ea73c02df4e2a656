"""The values of torch tensors as NumPy arrays, also of dtypes that torch does not hand to NumPy."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import numpy.typing as npt
import torch


def numpy_of(value: torch.Tensor) -> npt.NDArray[np.generic]:
    """Return the values in C order of the tensor's shape."""
    value = value.detach().resolve_conj().resolve_neg().contiguous()
    name = str(value.dtype).removeprefix("torch.")
    if hasattr(ml_dtypes, name):
        raw: npt.NDArray[np.generic] = value.reshape(-1).view(torch.uint8).numpy()
        shaped: npt.NDArray[np.generic] = raw.view(np.dtype(getattr(ml_dtypes, name))).reshape(tuple(value.shape))
        return shaped
    array: npt.NDArray[np.generic] = value.numpy()
    return array
