"""An open checkpoint over arrays that were found in a pickle or an archive of scikit-learn."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from monitor.read.access.strided import ChunkReader
from monitor.read.models.estimators import Estimated, NamedArray
from monitor.read.naming import printable
from monitor.read.pytorch.torch_storages import StoredValues
from monitor.read.reader import Chunk, ReadLimits, TensorSpec


@dataclass(frozen=True, slots=True)
class ArrayCheckpoint:
    """The arrays of estimators, in the order of their attributes."""

    step: int | None
    epoch: float | None
    scalars: Mapping[str, float]
    tensors: tuple[TensorSpec, ...]
    reader: ChunkReader

    def chunks(self, spec: TensorSpec) -> Iterator[Chunk]:
        """Yield the values of one array in C order of its shape."""
        if not isinstance(spec.key, StoredValues) or spec.problem is not None:
            return iter(())
        return self.reader.chunks(spec.key.source, spec.key.layout)


def array_checkpoint(estimated: Estimated, limits: ReadLimits, *, is_stream: bool) -> ArrayCheckpoint:
    """Make a checkpoint of what a walk found; `is_stream` says that reading back and forth would unpack it anew."""
    return ArrayCheckpoint(
        step=estimated.step,
        epoch=estimated.epoch,
        scalars={printable(name, limits.name_characters_max): number for name, number in estimated.scalars.items()},
        tensors=tuple(_spec(named, limits, is_stream=is_stream) for named in estimated.arrays),
        reader=ChunkReader(limits.chunk_bytes_max),
    )


def _spec(named: NamedArray, limits: ReadLimits, *, is_stream: bool) -> TensorSpec:
    array = named.array
    layout = array.layout() if array is not None else None
    if array is None or layout is None:
        why = named.problem or "values that are no plain numbers are not read"
        return TensorSpec(name=named.name, kind=named.kind, dtype="unknown", shape=(), n_elements=1, problem=why)
    problem = named.problem
    if is_stream and not layout.is_contiguous and array.source.n_bytes > limits.chunk_bytes_max:
        problem = "a large compressed array in Fortran order is not read; save it in C order or uncompressed"
    return TensorSpec(
        name=named.name,
        kind=named.kind,
        dtype=layout.dtype.name,
        shape=layout.shape,
        n_elements=layout.n_elements,
        key=StoredValues(layout, array.source),
        tied_to=named.tied_to,
        problem=problem,
    )
