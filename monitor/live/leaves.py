"""Single tensors of any framework, told apart by the module of their type; no framework is imported for it."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

import numpy as np

from monitor.live.memory import Array, LiveTensor, array_tensor
from monitor.live.torch_models import torch_tensor
from storage.records import TensorKind


def owners(value: object) -> frozenset[str]:
    """Return the top-level packages that a value's class and its bases come from."""
    return frozenset(str(base.__module__).partition(".")[0] for base in type(value).__mro__)


def is_leaf(value: object) -> bool:
    """Say whether a value is one tensor or variable, rather than something that holds some."""
    return hasattr(value, "dtype") and hasattr(value, "shape")


def leaf_tensor(name: str, kind: TensorKind, value: Any) -> LiveTensor:
    """Return a tensor, array or variable of torch, TensorFlow, Keras, JAX or NumPy."""
    packages = owners(value)
    if packages & {"keras", "tf_keras"} and hasattr(value, "value") and not callable(value.value):
        return leaf_tensor(name, kind, value.value)  # what Keras' variable stands for in its backend
    if "torch" in packages:
        return torch_tensor(name, kind, value)
    if isinstance(value, np.ndarray | np.generic):
        return array_tensor(name, kind, np.asarray(value), identity=id(value))
    shape = tuple(int(size) for size in value.shape)
    dtype = str(getattr(value.dtype, "name", value.dtype))
    convert = value.numpy if hasattr(value, "numpy") else lambda: np.asarray(value)
    take = _Converted(convert, prod(shape))
    return LiveTensor(name=name, kind=kind, dtype=dtype, shape=shape, take=take, identity=id(value))


class _Converted:
    """The elements of a tensor whose framework hands it over as a whole; kept from its first to its last element."""

    __slots__ = ("_convert", "_flat", "_n_elements")

    def __init__(self, convert: Callable[[], Any], n_elements: int) -> None:
        self._convert = convert
        self._n_elements = n_elements
        self._flat: Array | None = None

    def __call__(self, start: int, stop: int) -> Array:
        """Return the elements start..stop."""
        flat = self._flat if self._flat is not None else np.asarray(self._convert()).reshape(-1)
        self._flat = None if stop >= self._n_elements else flat
        return flat[start:stop]
