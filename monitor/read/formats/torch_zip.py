"""What torch.save writes since PyTorch 1.6: a zip of one pickle and one member a storage.

The pickle is interpreted inertly and the storages are read by offset; nothing of PyTorch is imported and nothing that
the file names is run.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import isfinite, prod
from typing import ClassVar

from monitor.read.bounded_file import BoundedFile
from monitor.read.dtypes import DTYPES
from monitor.read.flatten import NamedTensor, flatten
from monitor.read.inert_pickle import parse
from monitor.read.naming import as_epoch, as_step, printable
from monitor.read.reader import (
    AmbiguousError,
    Chunk,
    CorruptError,
    IncompleteError,
    ReadLimits,
    TensorSpec,
    UnsupportedError,
)
from monitor.read.sources import ByteSource, MemorySource
from monitor.read.strided import ChunkReader, Layout
from monitor.read.torch_objects import FoundTensor, StorageRef, TensorError, storage_of
from monitor.read.zip_directory import ZipDirectory, ZipMember, read_zip_directory

_PICKLE = "data.pkl"
_BYTE_ORDERS = {b"little": False, b"big": True}
_BYTE_ORDER_BYTES_MAX = 64
_VIEW_BYTES_RATIO_MAX = 4  # overlapping views may make us read the file so often, no more
_SHOWN = 80


@dataclass(frozen=True, slots=True)
class _Values:
    """The key of a spec: where its values lie."""

    layout: Layout
    source: ByteSource


@dataclass(frozen=True, slots=True)
class TorchZipCheckpoint:
    """An open torch.save archive.

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
        if not isinstance(spec.key, _Values) or spec.problem is not None:
            return iter(())
        return self.reader.chunks(spec.key.source, spec.key.layout)


class TorchZipReader:
    """The reader of `.pt`, `.pth`, `.bin`, `.ckpt` and `.pth.tar` files in PyTorch's zip format."""

    name: ClassVar[str] = "torch_zip"
    suffixes: ClassVar[tuple[str, ...]] = (".pt", ".pth", ".bin", ".ckpt", ".tar")

    @classmethod
    def sniff(cls, head: bytes, path: str) -> bool:
        """Say whether a zip begins whose first member is in a folder, or that has a name of this format."""
        if not head.startswith(b"PK\x03\x04"):
            return False
        first_name = head[30 : 30 + int.from_bytes(head[26:28], "little")]
        return b"/" in first_name or path.lower().endswith(cls.suffixes)

    def open(self, file: BoundedFile, limits: ReadLimits) -> TorchZipCheckpoint:
        """Read the directory and the pickle, and check every tensor against its storage."""
        directory = read_zip_directory(file, limits)
        prefix, member = _pickle_member(directory)
        big_endian = _is_big_endian(directory, prefix)
        result = parse(directory.read(member, limits.pickle_bytes_max), limits)
        for persistent in result.persistents:
            try:
                storage_of(persistent)
            except TensorError as error:
                raise CorruptError(f"the pickle has {error}") from None
        flat = flatten(result.root, limits)
        storages = _Storages(directory, prefix, big_endian, file.size_bytes)
        tensors = tuple(_specs(flat.tensors, storages))
        reader = ChunkReader(limits.chunk_bytes_max)
        progress = flat.progress
        step, epoch = progress.step, progress.epoch
        if step is None:
            read = (as_step(_single(tensor, storages, reader)) for tensor in progress.step_tensors)
            step = next((value for value in read if value is not None), None)
        if epoch is None:
            read_epochs = (as_epoch(_single(tensor, storages, reader)) for tensor in progress.epoch_tensors)
            epoch = next((value for value in read_epochs if value is not None), None)
        return TorchZipCheckpoint(
            step=step,
            epoch=epoch,
            scalars=flat.scalars,
            tensors=tensors,
            globals_seen=result.globals_seen,
            n_objects=result.n_objects,
            reader=reader,
        )


def _pickle_member(directory: ZipDirectory) -> tuple[str, ZipMember]:
    """Return the folder of the archive (with its slash) and the one member that is the pickle."""
    found = [m for name, m in directory.members.items() if name.lower().rpartition("/")[2] == _PICKLE]
    if len(found) > 1:
        raise AmbiguousError(f"the archive has {len(found)} members named {_PICKLE}")
    if not found or not found[0].name.endswith(_PICKLE):
        ours = ("/version", "/byteorder", "/.data/serialization_id")
        if any(name.endswith(ours) for name in directory.members):
            raise IncompleteError(f"the archive has no {_PICKLE}: torch.save failed half-way or is not done")
        raise UnsupportedError(f"the file is a zip archive without {_PICKLE}, so not one that torch.save wrote")
    return found[0].name.removesuffix(_PICKLE), found[0]


def _is_big_endian(directory: ZipDirectory, prefix: str) -> bool:
    member = directory.members.get(f"{prefix}byteorder")
    if member is None:
        return False  # older versions wrote none, and always little-endian
    text = directory.read(member, _BYTE_ORDER_BYTES_MAX)
    if text not in _BYTE_ORDERS:
        raise CorruptError(f"the archive states the byte order '{printable(text.decode('latin-1'), 20)}'")
    return _BYTE_ORDERS[text]


class _Storages:
    """The storages of one archive, and how many bytes of views of them may still be read."""

    __slots__ = ("_big_endian", "_budget_bytes", "_directory", "_prefix", "_sources")

    def __init__(self, directory: ZipDirectory, prefix: str, big_endian: bool, size_bytes: int) -> None:
        self._directory = directory
        self._prefix = prefix
        self._big_endian = big_endian
        self._sources: dict[str, ByteSource] = {}
        self._budget_bytes = max(directory.limits.expanded_bytes_min, _VIEW_BYTES_RATIO_MAX * size_bytes)

    def values(self, tensor: FoundTensor) -> _Values:
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
        return _Values(layout, source)

    def charge(self, n_bytes: int) -> None:
        """Take the bytes of one tensor out of the budget; raise TensorError when it is spent."""
        if n_bytes > self._budget_bytes:
            raise TensorError("views that share storages expand to many times the file; this one is not read")
        self._budget_bytes -= n_bytes

    def _source(self, storage: StorageRef) -> ByteSource:
        known = self._sources.get(storage.key)
        if known is None:
            member = self._directory.members.get(f"{self._prefix}data/{storage.key}")
            if member is None:
                raise CorruptError(f"the archive has no storage '{printable(storage.key, _SHOWN)}'")
            known = self._sources[storage.key] = self._directory.source(member)
        if storage.n_bytes > known.n_bytes:
            raise TensorError(
                f"the pickle claims a storage of {storage.n_bytes} bytes, the archive has {known.n_bytes}"
            )
        return known


def _specs(found: list[NamedTensor], storages: _Storages) -> Iterator[TensorSpec]:
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


def _single(tensor: FoundTensor, storages: _Storages, reader: ChunkReader) -> int | float | None:
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
