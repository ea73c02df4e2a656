"""Tensors in memory behind the contract that files are read by, so that one measuring serves both.

Framework-free: whoever knows a framework gives each tensor as a function from a stretch of its elements to NumPy. It
copies no tensor as a whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from math import prod

import numpy as np
import numpy.typing as npt

from monitor.read.dtypes import DTYPES
from monitor.read.naming import UniqueNames
from monitor.read.reader import Chunk, ReadLimits, TensorSpec
from storage.records import TensorKind

CHUNK_BYTES = 2**20

Array = npt.NDArray[np.generic]


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveTensor:
    """One tensor of a model in memory.

    `take(start, stop)` returns the elements start..stop, counted in C order of the shape, as 1-D NumPy values of
    `dtype`. `identity` is equal for tensors that are one and the same, None where that cannot be said. With a `problem`
    the tensor has no values and `take` is never called.
    """

    name: str
    kind: TensorKind
    dtype: str
    shape: tuple[int, ...]
    take: Callable[[int, int], Array] | None = None
    identity: object = None
    problem: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveModel:
    """What an adapter found in a model: tensors in the model's own order, plain numbers, and how far training is."""

    framework: str
    tensors: tuple[LiveTensor, ...]
    scalars: Mapping[str, float] = field(default_factory=dict)
    step: int | None = None
    epoch: float | None = None


@dataclass(frozen=True, slots=True)
class MemoryCheckpoint:
    """An open checkpoint that lies in memory."""

    step: int | None
    epoch: float | None
    scalars: Mapping[str, float]
    tensors: tuple[TensorSpec, ...]

    def chunks(self, spec: TensorSpec) -> Iterator[Chunk]:
        """Yield the values of one tensor in C order of its shape."""
        tensor = spec.key
        if not isinstance(tensor, LiveTensor) or tensor.take is None or spec.problem is not None:
            return
        n_max = max(1, CHUNK_BYTES // DTYPES[spec.dtype].itemsize)
        for start in range(0, spec.n_elements, n_max):
            stop = min(start + n_max, spec.n_elements)
            yield Chunk(start, tensor.take(start, stop))


def memory_checkpoint(model: LiveModel, limits: ReadLimits) -> MemoryCheckpoint:
    """Return a model as an open checkpoint: names unique and printable, the same tensor twice tied."""
    names = UniqueNames(limits.name_characters_max)
    return MemoryCheckpoint(
        step=model.step, epoch=model.epoch, scalars=model.scalars, tensors=tuple(_specs(model.tensors, names))
    )


def _specs(tensors: Iterable[LiveTensor], names: UniqueNames) -> Iterator[TensorSpec]:
    owners: dict[object, str] = {}
    for tensor in tensors:
        name = names.claim(tensor.name)
        problem = tensor.problem
        if problem is None and tensor.dtype not in DTYPES:
            problem = f"values of dtype {tensor.dtype} are not measured"
        tied_to = None
        if problem is None and tensor.identity is not None:
            owner = owners.setdefault(tensor.identity, name)
            tied_to = owner if owner != name else None
        yield TensorSpec(
            name=name,
            kind=tensor.kind,
            dtype=tensor.dtype,
            shape=tensor.shape,
            n_elements=prod(tensor.shape),
            key=tensor,
            tied_to=tied_to,
            problem=problem,
        )


def array_tensor(name: str, kind: TensorKind, array: Array, *, identity: object = None) -> LiveTensor:
    """Return a NumPy array as a tensor; another byte order than the machine's is turned, stretch by stretch."""
    native = array.dtype.newbyteorder("=")

    def take(start: int, stop: int) -> Array:
        if array.flags.c_contiguous:
            return array.reshape(-1)[start:stop].astype(native, copy=False)
        return np.asarray(_stretch(array, start, stop)).astype(native, copy=False)

    return LiveTensor(name=name, kind=kind, dtype=native.name, shape=array.shape, take=take, identity=identity)


def _stretch(array: Array, start: int, stop: int) -> Array:
    """Return elements start..stop in C order of an array that does not lie in that order, without copying all of it."""
    if array.ndim <= 1:
        return array.reshape(-1)[start:stop]
    row = prod(array.shape[1:])
    first, last = start // row, -(-stop // row)
    if last - first == 1:
        return _stretch(array[first], start - first * row, stop - first * row)
    return array[first:last].reshape(-1)[start - first * row : stop - first * row]
