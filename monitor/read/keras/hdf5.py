"""HDF5 files as a list of datasets and where their bytes lie; the only place that imports h5py.

The library parses the structure over reads that we answer ourselves: it opens no file, takes no lock, and follows no
link. Contiguous values are read by offset without it. Whatever leads out of the file is refused. It must not know
layers or optimizers. A file of the library that is left open crashes the interpreter at exit: every one is closed here.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from monitor.read.access.slabs import slabs
from monitor.read.access.sources import FileSource
from monitor.read.access.strided import ChunkReader, Layout, contiguous_strides
from monitor.read.bounded_file import BoundedFile
from monitor.read.dtypes import DTYPES, to_native
from monitor.read.naming import printable
from monitor.read.reader import (
    Chunk,
    CorruptError,
    IncompleteError,
    LimitError,
    ReadError,
    ReadLimits,
    UnsafeReferenceError,
    UnsupportedError,
)

SIGNATURE = b"\x89HDF\r\n\x1a\n"

_OBJECTS_MAX = 200_000
_DEPTH_MAX = 64
_ATTRIBUTES_MAX = 256  # per object
_TEXT_BYTES_MAX = 16 * 2**20
_TEXTS_MAX = 200_000
_CHUNKS_MAX = 1_000_000
_CHUNK_BYTES_MAX = 32 * 2**20  # of one chunk, unpacked
_CACHE_BYTES = 64 * 2**20  # unpacked chunks that the library keeps
_CACHE_SLOTS = 10_007
_SHOWN = 80
_HEAP = b"GCOL"
# What HDF5 and h5py bring along: deflate, shuffle, fletcher32, nbit, scaleoffset, lzf. Others would load a plugin.
_FILTERS = frozenset({1, 2, 3, 5, 6, 32000})
_LIBRARY_ERRORS = (OSError, RuntimeError, LookupError, ValueError, TypeError, AttributeError, SystemError, MemoryError)


@dataclass(frozen=True, slots=True, kw_only=True)
class Hdf5Dataset:
    """One dataset: `path` is its place from the root with slashes, `raw_path` the same as the library wants it.

    `address` is where its header lies, which tells hard links to one dataset apart from two datasets, and tells the
    order of creation. `offset` is where its contiguous bytes begin in the file, None when only the library can read
    them. `dtype` is "" where `problem` says that the type is none that is read.
    """

    path: str
    raw_path: bytes
    address: int
    dtype: str
    big_endian: bool
    shape: tuple[int, ...]
    offset: int | None
    problem: str | None


@dataclass(frozen=True, slots=True)
class Hdf5Tree:
    """Every dataset of a file, and of every group the attributes that are texts or lists of texts."""

    datasets: tuple[Hdf5Dataset, ...]
    attributes: Mapping[str, Mapping[str, tuple[str, ...]]]


def sniff_hdf5(head: bytes) -> bool:
    """Say whether a file that begins with `head` is an HDF5 file."""
    return head.startswith(SIGNATURE)


class Hdf5File:
    """An HDF5 file within a stretch of a watched file; holds nothing open."""

    __slots__ = ("_base", "_file", "_limits", "_n_bytes", "_reader")

    def __init__(self, file: BoundedFile, limits: ReadLimits, *, base: int = 0, n_bytes: int | None = None) -> None:
        """Take the stretch of `n_bytes` (None: to the end) that begins at `base`."""
        self._file = file
        self._limits = limits
        self._base = base
        self._n_bytes = file.size_bytes - base if n_bytes is None else n_bytes
        self._reader = ChunkReader(limits.chunk_bytes_max)

    def tree(self) -> Hdf5Tree:
        """Walk the whole file.

        Raises IncompleteError while the file is shorter or longer than its own header says, or marked as open for
        writing; CorruptError, LimitError, or UnsafeReferenceError for what leads out of it.
        """
        self._check_superblock()
        with self._opened() as (h5py, root):
            return _Walk(h5py, self._base, self._n_bytes, self._limits).run(root)

    def chunks(self, dataset: Hdf5Dataset) -> Iterator[Chunk]:
        """Yield the values of one dataset in C order of its shape."""
        if dataset.problem is not None or 0 in dataset.shape:
            return iter(())
        dtype = DTYPES[dataset.dtype]
        if dataset.offset is None:
            return self._through_library(dataset, dtype)
        layout = Layout(
            dtype=dtype,
            shape=dataset.shape,
            strides=contiguous_strides(dataset.shape),
            big_endian=dataset.big_endian,
        )
        n_bytes = prod(dataset.shape) * dtype.itemsize
        return self._reader.chunks(FileSource(self._file, dataset.offset, n_bytes), layout)

    def _through_library(self, dataset: Hdf5Dataset, dtype: np.dtype[np.generic]) -> Iterator[Chunk]:
        first = 0
        with self._opened() as (h5py, root):
            values = h5py.Dataset(h5py.h5d.open(root.id, dataset.raw_path))
            for slab in slabs(dataset.shape, max(1, self._limits.chunk_bytes_max // dtype.itemsize)):
                raw = np.ascontiguousarray(values[slab]).reshape(-1).view(np.uint8)
                if dtype.itemsize * prod(s.stop - s.start for s in slab) != raw.size:
                    raise CorruptError(f"dataset '{printable(dataset.path, _SHOWN)}' reads as another type than it is")
                chunk = to_native(raw, dtype, big_endian=dataset.big_endian)
                yield Chunk(first, chunk)
                first += chunk.size

    @contextmanager
    def _opened(self) -> Iterator[tuple[Any, Any]]:
        """Yield h5py and the open file; what goes wrong inside becomes a ReadError."""
        # Late, because it takes longer than reading most files of other formats. The environment says once more what
        # every open says: no lock, no plugin.
        os.environ["HDF5_USE_FILE_LOCKING"] = "FALSE"
        os.environ["HDF5_PLUGIN_PRELOAD"] = "::"
        import h5py  # noqa: PLC0415

        view = _View(self._file, self._base, self._n_bytes)
        try:
            with h5py.File(view, "r", locking=False, rdcc_nbytes=_CACHE_BYTES, rdcc_nslots=_CACHE_SLOTS) as root:
                yield h5py, root
        except ReadError:
            raise
        except _LIBRARY_ERRORS as error:
            if view.error is not None:
                raise view.error from None
            what = printable(str(error), 200)
            raise CorruptError(f"the HDF5 structure cannot be read ({type(error).__name__}: {what})") from error

    def _check_superblock(self) -> None:
        """Hold the end of file that the header states against the real one; HDF5 files grow at both ends meanwhile."""
        head = self._file.read(self._base, min(96, self._n_bytes))
        if not SIGNATURE.startswith(head[:8]):
            if not any(head):
                raise IncompleteError("the file begins with zeros only; HDF5 writes its header last")
            raise CorruptError("the file has the name of an HDF5 file but does not begin like one")
        if len(head) < 48:
            raise IncompleteError(f"the file has {self._n_bytes} bytes, fewer than an HDF5 header")
        version = head[8]
        if version in (0, 1):
            n, at = head[13], 24 if version == 0 else 28
            base, end = head[at : at + n], head[at + 2 * n : at + 3 * n]
        elif version in (2, 3):
            n = head[9]
            base, end = head[12 : 12 + n], head[12 + 2 * n : 12 + 3 * n]
            if head[11] & 0b101:
                raise IncompleteError("the HDF5 file is marked as open for writing")
        else:
            raise UnsupportedError(f"the HDF5 header has version {version}; 0 to 3 are read")
        if n not in (2, 4, 8) or len(end) != n:
            raise CorruptError(f"the HDF5 header gives addresses {n} bytes")
        if int.from_bytes(base, "little") != 0:
            raise UnsupportedError("the HDF5 file has a user block; files with one are not read")
        stated = int.from_bytes(end, "little")
        if stated != self._n_bytes:
            raise IncompleteError(f"the HDF5 header says that the file ends at byte {stated}, it has {self._n_bytes}")


class _View(io.RawIOBase):
    """The stretch of a watched file as the library wants to read it; keeps the first error."""

    def __init__(self, file: BoundedFile, base: int, n_bytes: int) -> None:
        super().__init__()
        self._file = file
        self._base = base
        self._n_bytes = n_bytes
        self._position = 0
        self.error: ReadError | None = None

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        self._position = offset + (0, self._position, self._n_bytes)[whence]
        return self._position

    def tell(self) -> int:
        return self._position

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        n = max(0, min(view.nbytes, self._n_bytes - self._position))
        try:
            self._file.read_into(self._base + self._position, view[:n])
        except ReadError as error:
            self.error = self.error or error
            raise OSError(str(error)) from error
        if view[:4] == _HEAP:
            self._check_heap(self._position)
        self._position += n
        return n

    def _check_heap(self, offset: int) -> None:
        """Refuse a heap of texts with a free stretch of no length, on which the library would turn in a circle."""
        left = self._n_bytes - offset
        total = int.from_bytes(self._file.read(self._base + offset + 8, 8), "little") if left >= 16 else 0
        is_sound = 16 <= total <= min(left, _TEXT_BYTES_MAX)
        heap = self._file.read(self._base + offset, total) if is_sound else b""
        at = 16
        while is_sound and at + 16 <= total:
            index, n = int.from_bytes(heap[at : at + 2], "little"), int.from_bytes(heap[at + 8 : at + 16], "little")
            step = n if index == 0 else 16 + (n + 7) // 8 * 8
            is_sound = step >= 16 and at + step <= total
            at += step
        if not is_sound:
            self.error = self.error or CorruptError("the texts of the HDF5 file are not where their heap says")
            raise OSError(str(self.error))


class _Walk:
    """One walk over all groups, with its counters."""

    def __init__(self, h5py: Any, base: int, n_bytes: int, limits: ReadLimits) -> None:
        self._h5py = h5py
        self._base = base
        self._n_bytes = n_bytes
        self._limits = limits
        self._n_objects = 0
        self._n_texts = 0
        self._stored: dict[int, int] = {}  # by address: a hard link costs nothing
        self._groups: set[int] = set()
        self._datasets: list[Hdf5Dataset] = []
        self._attributes: dict[str, dict[str, tuple[str, ...]]] = {}

    def run(self, root: Any) -> Hdf5Tree:
        waiting: list[tuple[str, bytes, Any, int]] = [("", b"", self._h5py.h5g.open(root.id, b"/"), 0)]
        while waiting:
            path, raw_path, group, depth = waiting.pop()
            address = self._address(group)
            if address in self._groups:
                continue
            self._groups.add(address)
            if depth > _DEPTH_MAX:
                raise LimitError(f"the HDF5 groups are nested deeper than {_DEPTH_MAX}")
            texts = self._texts(group)
            if texts:
                self._attributes[path] = texts
            for raw_name in group:
                self._n_objects += 1
                if self._n_objects > _OBJECTS_MAX:
                    raise LimitError(f"the HDF5 file has more than {_OBJECTS_MAX} objects")
                name = raw_name.decode("utf-8", "surrogateescape")
                inner = f"{path}/{name}" if path else name
                raw_inner = raw_path + b"/" + raw_name
                self._check_link(group, raw_name, inner)
                found = self._h5py.h5o.open(group, raw_name)
                if isinstance(found, self._h5py.h5g.GroupID):
                    waiting.append((inner, raw_inner, found, depth + 1))
                elif isinstance(found, self._h5py.h5d.DatasetID):
                    self._datasets.append(self._dataset(inner, raw_inner, found))
        if sum(self._stored.values()) > self._n_bytes:
            raise CorruptError("the HDF5 datasets overlap: together they need more bytes than the file has")
        if len(self._datasets) > self._limits.tensors_max:
            raise LimitError(f"the file has {len(self._datasets)} datasets, the limit is {self._limits.tensors_max}")
        return Hdf5Tree(tuple(sorted(self._datasets, key=lambda d: d.address)), self._attributes)

    def _address(self, found: Any) -> int:
        return int(self._h5py.h5o.get_info(found).addr)

    def _check_link(self, group: Any, raw_name: bytes, path: str) -> None:
        if group.links.get_info(raw_name).type != self._h5py.h5l.TYPE_HARD:
            raise UnsafeReferenceError(
                f"'{printable(path, _SHOWN)}' is a soft or external link; checkpoints hold their own data"
            )

    def _dataset(self, path: str, raw_path: bytes, found: Any) -> Hdf5Dataset:
        shown = f"dataset '{printable(path, _SHOWN)}'"
        properties = found.get_create_plist()
        layout = properties.get_layout()
        if layout == self._h5py.h5d.VIRTUAL or properties.get_external_count():
            raise UnsafeReferenceError(f"{shown} has its values in another file; that is never followed")
        address = self._address(found)
        dtype, big_endian, problem = _dtype(found, self._texts(found).get("dtype", ()))
        is_null = found.get_space().get_simple_extent_type() == self._h5py.h5s.NULL
        shape = () if is_null else tuple(int(size) for size in found.shape)
        if len(shape) > self._limits.dimensions_max:
            raise LimitError(f"{shown} has {len(shape)} dimensions, the limit is {self._limits.dimensions_max}")
        if is_null:
            problem = "the dataset holds nothing, not even a shape"
        offset = None
        declared = prod(shape) * (DTYPES[dtype].itemsize if dtype else 1)
        if problem is None and declared:
            stored = int(found.get_storage_size())
            self._check_expansion(shown, declared, stored)
            if layout == self._h5py.h5d.CONTIGUOUS:
                offset = found.get_offset()
                if offset is None or stored != declared:
                    problem = "its values were never written"
                else:
                    self._stored[address] = stored
                    self._check_extent(shown, offset, stored)
                    offset = int(offset) + self._base
            elif layout == self._h5py.h5d.CHUNKED:
                problem = self._chunked_problem(shown, found, properties, shape, DTYPES[dtype].itemsize)
                self._stored[address] = stored
        return Hdf5Dataset(
            path=path,
            raw_path=raw_path,
            address=address,
            dtype=dtype,
            big_endian=big_endian,
            shape=shape,
            offset=offset,
            problem=problem,
        )

    def _check_extent(self, shown: str, offset: int, n_bytes: int) -> None:
        if offset < 0 or offset + n_bytes > self._n_bytes:
            raise CorruptError(f"{shown} lies at bytes {offset} to {offset + n_bytes}, the file has {self._n_bytes}")

    def _check_expansion(self, shown: str, declared: int, stored: int) -> None:
        if declared > max(self._limits.expanded_bytes_min, self._limits.expanded_ratio_max * stored):
            raise LimitError(f"{shown} claims {declared} bytes, {stored} are stored")

    def _chunked_problem(
        self, shown: str, found: Any, properties: Any, shape: tuple[int, ...], itemsize: int
    ) -> str | None:
        """Return why a chunked dataset cannot be read in bounded memory, None when it can; check where chunks lie."""
        filters = {int(properties.get_filter(i)[0]) for i in range(properties.get_nfilters())}
        if filters - _FILTERS:
            return f"its values are packed with HDF5 filter {min(filters - _FILTERS)}, which is not read"
        chunk = tuple(int(size) for size in properties.get_chunk())
        if prod(chunk) * itemsize > _CHUNK_BYTES_MAX:
            return f"its chunks are larger than {_CHUNK_BYTES_MAX} bytes"
        if chunk[0] * prod(shape[1:]) * itemsize > _CACHE_BYTES and any(
            c < s for c, s in zip(chunk, shape, strict=True)
        ):
            band = prod(-(-s // c) * c for s, c in zip(shape[1:], chunk[1:], strict=True)) * chunk[0] * itemsize
            if chunk[1:] != shape[1:] and band > _CACHE_BYTES:
                return "its chunks lie across the order of its elements, and are too many to be kept in memory"
        if found.get_num_chunks() > _CHUNKS_MAX:
            raise LimitError(f"{shown} has {found.get_num_chunks()} chunks, the limit is {_CHUNKS_MAX}")
        found.chunk_iter(lambda c: self._check_extent(shown, int(c.byte_offset), int(c.size)))
        return None

    def _texts(self, found: Any) -> dict[str, tuple[str, ...]]:
        """Return the attributes that are texts or one-dimensional lists of texts."""
        h5a, texts = self._h5py.h5a, {}
        if h5a.get_num_attrs(found) > _ATTRIBUTES_MAX:
            raise LimitError(f"an HDF5 object has more than {_ATTRIBUTES_MAX} attributes")
        for i in range(h5a.get_num_attrs(found)):
            attribute = h5a.open(found, index=i)
            if attribute.get_type().get_class() != self._h5py.h5t.STRING or len(attribute.shape) > 1:
                continue
            n = prod(attribute.shape)
            self._n_texts += n
            if self._n_texts > _TEXTS_MAX or attribute.get_storage_size() > _TEXT_BYTES_MAX:
                raise LimitError("the attributes of the HDF5 file are too many or too large")
            if attribute.get_space().get_simple_extent_type() == self._h5py.h5s.NULL:
                continue
            raw = np.empty(attribute.shape, attribute.dtype)
            attribute.read(raw)
            texts[attribute.name.decode("utf-8", "replace")] = tuple(_text(value) for value in raw.reshape(-1).tolist())
        return texts


def _text(value: object) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def _dtype(found: Any, stated: tuple[str, ...]) -> tuple[str, bool, str | None]:
    """Return (dtype, big endian, problem); `stated` is what Keras notes where HDF5 has no such type."""
    try:
        dtype: np.dtype[Any] = found.dtype
    except (TypeError, ValueError, RuntimeError, OSError) as error:
        return "", False, f"its type is none that is read: {printable(str(error), 100)}"
    if dtype.kind == "V" and dtype.names is None and stated and stated[0] in DTYPES:
        noted = DTYPES[stated[0]]
        if noted.itemsize == dtype.itemsize:
            return noted.name, False, None
    name = dtype.newbyteorder("=").name if dtype.kind in "biufc" else ""
    if name not in DTYPES:
        return "", False, f"its type is none that is read: {printable(str(dtype), 100)}"
    return name, dtype.byteorder == ">", None
