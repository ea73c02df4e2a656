"""Arrays of NumPy as pickles and archives describe them: dtype, shape, order, and the bytes of their values.

What the two ways of scikit-learn to a file have in common. Every length is checked here; no values are kept.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite, prod

import numpy as np

from monitor.read.access.partial_sources import FieldSource, PartSource, read_bytes
from monitor.read.access.sources import ByteSource, MemorySource
from monitor.read.access.strided import Layout, contiguous_strides
from monitor.read.arrays.numpy_records import ArrayDtype, dtype_of, sizes_of
from monitor.read.pickles.file_pickle import Stretch
from monitor.read.pickles.inert_nodes import Node, Ref
from monitor.read.pickles.inert_view import attributes_of, text_keyed
from monitor.read.pytorch.torch_objects import bytes_of
from monitor.read.reader import CorruptError

_MULTIARRAY = frozenset({"numpy.core.multiarray", "numpy._core.multiarray"})
_FROM_BUFFER = frozenset({"numpy.core.numeric", "numpy._core.numeric"})


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundArray:
    """An array of numbers, text or records; `source` has exactly the bytes that dtype and shape ask for."""

    dtype: ArrayDtype
    shape: tuple[int, ...]
    is_fortran: bool
    source: ByteSource

    @property
    def n_elements(self) -> int:
        """Return the product of the shape."""
        return prod(self.shape)

    def field(self, name: str) -> FoundArray | None:
        """Return one plain field of records as an array of its own, None where there is no such field."""
        for known, plain, place in self.dtype.fields:
            if known == name:
                source = FieldSource(self.source, self.dtype.item_bytes, place, plain.itemsize)
                dtype = ArrayDtype(item_bytes=plain.itemsize, plain=plain)
                return FoundArray(dtype=dtype, shape=self.shape, is_fortran=self.is_fortran, source=source)
        return None

    def layout(self) -> Layout | None:
        """Return how the values lie in `source`, None where they are no plain numbers."""
        plain = self.dtype.plain
        if plain is None:
            return None
        strides = contiguous_strides(self.shape)
        if self.is_fortran:
            strides = tuple(reversed(contiguous_strides(tuple(reversed(self.shape)))))
        return Layout(
            dtype=plain.newbyteorder("="), shape=self.shape, strides=strides, big_endian=plain.byteorder == ">"
        )

    def number(self) -> int | float | None:
        """Return the value of an array of one finite real number, None for any other."""
        plain = self.dtype.plain
        if plain is None or plain.kind not in "biuf" or self.n_elements != 1:
            return None
        value = np.frombuffer(read_bytes(self.source, 0, plain.itemsize), plain)[0].item()
        assert isinstance(value, int | float)
        return value if isfinite(value) else None


def array_of(value: object, source: ByteSource, dimensions_max: int) -> FoundArray | list[object] | None:
    """Return the array that a node stands for, or the items of an array of Python objects; None for anything else.

    `source` is what the pickle lies in. Raises CorruptError for an array whose bytes do not fit its shape.
    """
    if not isinstance(value, Node) or not isinstance(value.function, Ref) or not isinstance(value.args, tuple):
        return None
    module, name = value.function.module, value.function.name
    if name == "NumpyArrayWrapper" and value.items:
        return _of_joblib(value, text_keyed(attributes_of(value)), source, dimensions_max)
    if module in _MULTIARRAY and name == "_reconstruct":
        state = value.state
        if not isinstance(state, tuple) or len(state) != 5:
            return None
        if isinstance(state[4], list):
            return state[4]
        return _made(state[2], state[1], state[4], source, dimensions_max, is_fortran=state[3] is True)
    if module in _MULTIARRAY and name == "scalar" and len(value.args) == 2:
        return _made(value.args[0], (), value.args[1], source, dimensions_max, is_fortran=False)
    if module in _FROM_BUFFER and name == "_frombuffer" and len(value.args) == 4:
        data, dtype, shape, order = value.args
        return _made(dtype, shape, data, source, dimensions_max, is_fortran=order == "F")
    return None


def _of_joblib(
    wrapper: Node, state: Mapping[str, object], source: ByteSource, dimensions_max: int
) -> FoundArray | list[object] | None:
    assert wrapper.items is not None
    values = wrapper.items[0]
    if isinstance(values, Stretch):
        is_fortran = state.get("order") == "F"
        return _made(state.get("dtype"), state.get("shape"), values, source, dimensions_max, is_fortran=is_fortran)
    return array_of(values, source, dimensions_max)


def _made(
    dtype_value: object, shape_value: object, data: object, source: ByteSource, dimensions_max: int, *, is_fortran: bool
) -> FoundArray | None:
    dtype, shape = dtype_of(dtype_value), sizes_of(shape_value, dimensions_max)
    if dtype is None or shape is None:
        return None
    if isinstance(data, Stretch):
        values: ByteSource = PartSource(source, data.offset, data.n_bytes)
    else:
        inline = bytes_of(_unwrapped(data))
        if inline is None:
            inner = _unwrapped(data)
            if not isinstance(inner, Stretch):
                return None
            values = PartSource(source, inner.offset, inner.n_bytes)
        else:
            values = MemorySource(inline)
    if prod(shape) * dtype.item_bytes != values.n_bytes:
        raise CorruptError(
            f"an array has {values.n_bytes} bytes, its shape and dtype need {prod(shape) * dtype.item_bytes}"
        )
    return FoundArray(dtype=dtype, shape=shape, is_fortran=is_fortran and len(shape) > 1, source=values)


def _unwrapped(data: object) -> object:
    """Return what a bytearray is made of, anything else as it is."""
    if isinstance(data, Node) and isinstance(data.function, Ref) and isinstance(data.args, tuple):
        name = (data.function.module, data.function.name)
        if name in (("builtins", "bytearray"), ("__builtin__", "bytearray")) and len(data.args) == 1:
            return data.args[0]
    return data
