"""Tensors of PyTorch and the storages they lie in: checked against each other, tied where they are the same.

What archives of PyTorch have in common, whatever keeps the storages. It must not know how an archive lies on disk.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite, prod

from monitor.read.access.sources import ByteSource, MemorySource
from monitor.read.access.strided import ChunkReader, Layout
from monitor.read.arrays.flatten import NamedTensor, flatten
from monitor.read.dtypes import DTYPES
from monitor.read.naming import as_epoch, as_step
from monitor.read.optimizer_names import stated_states
from monitor.read.pickles.inert_nodes import PickleResult
from monitor.read.pytorch.torch_objects import FoundTensor, StorageRef, TensorError
from monitor.read.reader import Chunk, ReadLimits, TensorSpec
from storage.records import TensorKind

_CALLBACKS = "callbacks."
_VIEW_BYTES_RATIO_MAX = 4  # overlapping views may make us read the file so often, no more


# 0x1950a86a20f9469cfc6c, the first pickle of torch.save before its zip format, as every protocol from 2 on writes it.
_LEGACY_MAGIC_NUMBER = b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
LEGACY_MAGIC_WITHIN = 32


def begins_legacy(head: bytes) -> bool:
    """Say whether a file that begins with `head` is one that torch.save wrote before its zip format."""
    return head[:1] == b"\x80" and _LEGACY_MAGIC_NUMBER in head[:LEGACY_MAGIC_WITHIN]


@dataclass(frozen=True, slots=True)
class StoredValues:
    """The key of a spec: where its values lie."""

    layout: Layout
    source: ByteSource


@dataclass(frozen=True, slots=True)
class TorchCheckpoint:
    """An open file of torch.save.

    `globals_seen` are the dotted names of everything the pickle would have imported, sorted, not yet printable;
    `n_objects` counts the calls it would have made.
    """

    step: int | None
    epoch: float | None
    scalars: Mapping[str, float]
    tensors: tuple[TensorSpec, ...]
    globals_seen: tuple[str, ...]
    n_objects: int
    reader: ChunkReader

    def chunks(self, spec: TensorSpec) -> Iterator[Chunk]:
        """Yield the values of one tensor in C order of its shape."""
        if not isinstance(spec.key, StoredValues) or spec.problem is not None:
            return iter(())
        return self.reader.chunks(spec.key.source, spec.key.layout)


class TensorStorages:
    """The storages of one archive, and how many bytes of views of them may still be read.

    `find` returns the bytes of a storage, and raises a ReadError for one that the archive lacks.
    """

    __slots__ = ("_big_endian", "_budget_bytes", "_find", "_sources")

    def __init__(
        self, find: Callable[[StorageRef], ByteSource], *, big_endian: bool, size_bytes: int, limits: ReadLimits
    ) -> None:
        self._find = find
        self._big_endian = big_endian
        self._sources: dict[str, ByteSource] = {}
        self._budget_bytes = max(limits.expanded_bytes_min, _VIEW_BYTES_RATIO_MAX * size_bytes)

    def values(self, tensor: FoundTensor) -> StoredValues:
        """Return where the values lie; raise TensorError when the tensor does not fit its storage."""
        dtype = DTYPES[tensor.dtype]
        big_endian = tensor.big_endian if tensor.storage is None else self._big_endian
        layout = Layout(
            dtype=dtype,
            shape=tensor.shape,
            strides=tensor.strides,
            offset=tensor.offset,
            big_endian=big_endian,
            conjugate=tensor.conjugate,
            negative=tensor.negative,
        )
        if tensor.storage is None:
            source: ByteSource = MemorySource(tensor.data or b"")
        else:
            source = self._source(tensor.storage)
        if layout.stop * dtype.itemsize > source.n_bytes:
            raise TensorError(
                f"shape, strides and offset reach byte {layout.stop * dtype.itemsize} of a storage of {source.n_bytes}"
            )
        return StoredValues(layout, source)

    def charge(self, n_bytes: int) -> None:
        """Take the bytes of one tensor out of the budget; raise TensorError when it is spent."""
        if n_bytes > self._budget_bytes:
            raise TensorError("views that share storages expand to many times the file; this one is not read")
        self._budget_bytes -= n_bytes

    def _source(self, storage: StorageRef) -> ByteSource:
        known = self._sources.get(storage.key)
        if known is None:
            known = self._sources[storage.key] = self._find(storage)
        if storage.n_bytes > known.n_bytes:
            raise TensorError(
                f"the pickle claims a storage of {storage.n_bytes} bytes, the archive has {known.n_bytes}"
            )
        return known


def torch_checkpoint(result: PickleResult, storages: TensorStorages, limits: ReadLimits) -> TorchCheckpoint:
    """Flatten what a pickle of torch.save holds, and check every tensor against its storage."""
    flat = flatten(result.root, limits)
    reader = ChunkReader(limits.chunk_bytes_max)
    progress = flat.progress
    step, epoch = progress.step, progress.epoch
    if step is None:
        steps = (as_step(single_value(tensor, storages, reader)) for tensor in progress.step_tensors)
        step = next((value for value in steps if value is not None), None)
    if epoch is None:
        epochs = (as_epoch(single_value(tensor, storages, reader)) for tensor in progress.epoch_tensors)
        epoch = next((value for value in epochs if value is not None), None)
    scores = [named for named in flat.tensors if _is_score(named)]
    read = {named.name: single_value(named.tensor, storages, reader) for named in scores[: limits.scalars_max]}
    numbers = {name: float(value) for name, value in read.items() if value is not None}
    tensors, scalars = stated_states(
        tuple(_specs([named for named in flat.tensors if not _is_score(named)], storages)),
        dict([*flat.scalars.items(), *numbers.items()][: limits.scalars_max]),
        flat.state_names,
    )
    return TorchCheckpoint(
        step=step,
        epoch=epoch,
        scalars=scalars,
        tensors=tensors,
        globals_seen=result.globals_seen,
        n_objects=result.n_objects,
        reader=reader,
    )


def _is_score(named: NamedTensor) -> bool:
    """Say whether a tensor is a number that a callback of Lightning keeps, infinite until there is one to compare."""
    return named.kind is TensorKind.OTHER and named.name.startswith(_CALLBACKS) and named.tensor.shape == ()


def _specs(found: Sequence[NamedTensor], storages: TensorStorages) -> Iterator[TensorSpec]:
    first_with: dict[object, str] = {}
    for named in found:
        tensor, problem, values, tied_to = named.tensor, named.tensor.problem, None, None
        n_elements = prod(tensor.shape)
        if problem is None:
            try:
                values = storages.values(tensor)
                identity = _identity(tensor)
                tied_to = first_with.get(identity)
                if tied_to is None:
                    storages.charge(n_elements * values.layout.dtype.itemsize)
                    first_with[identity] = named.name
            except TensorError as error:
                problem, values = str(error), None
        yield TensorSpec(
            name=named.name,
            kind=named.kind,
            dtype=tensor.dtype,
            shape=tensor.shape,
            n_elements=n_elements,
            key=values,
            tied_to=tied_to,
            problem=problem,
        )


def _identity(tensor: FoundTensor) -> tuple[object, ...]:
    where = id(tensor.data) if tensor.storage is None else tensor.storage.key
    flags = (tensor.storage is None, tensor.conjugate, tensor.negative)
    return (where, tensor.dtype, tensor.offset, tensor.shape, tensor.strides, flags)


def single_value(tensor: FoundTensor, storages: TensorStorages, reader: ChunkReader) -> int | float | None:
    """Return the value of a tensor of one real element, None for any other."""
    if tensor.problem is not None or prod(tensor.shape) != 1 or DTYPES[tensor.dtype].kind not in "iuf":
        return None
    try:
        values = storages.values(tensor)
    except TensorError:
        return None
    number = next(reader.chunks(values.source, values.layout)).values[0].item()
    assert isinstance(number, int | float)
    return number if isfinite(number) else None
