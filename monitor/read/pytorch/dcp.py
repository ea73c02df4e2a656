"""A checkpoint of torch.distributed.checkpoint: tensors in slices over many files, put together by their global place.

Shared by the readers of all directories that hold one. Only the metadata and the small objects are read here; the
archive of each slice is opened when its values are asked for.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod

from monitor.read.access.sources import ByteSource, FileWindow
from monitor.read.access.strided import ChunkReader, Layout
from monitor.read.access.tiles import Tile, TiledSource, check_tiling
from monitor.read.bounded_unit import BoundedUnit, naming
from monitor.read.dtypes import DTYPES
from monitor.read.naming import printable
from monitor.read.pickles.inert_nodes import Node, PickleResult
from monitor.read.pytorch.dcp_metadata import DcpMetadata, Path, SavedObject, SavedTensor, Stretch, parse_metadata
from monitor.read.pytorch.dcp_tree import StateTree, tensor_node
from monitor.read.pytorch.torch_archive import TorchArchive, open_archive
from monitor.read.pytorch.torch_objects import StorageRef, TensorError, storage_of, tensor_of
from monitor.read.pytorch.torch_storages import TensorStorages, TorchCheckpoint, torch_checkpoint
from monitor.read.reader import CorruptError, IncompleteError, LimitError, ReadLimits, UnsupportedError

METADATA = ".metadata"
OBJECT_BYTES_MAX = 64 * 2**20  # of one object; a larger one is a data loader's and left out
OBJECTS_MAX = 50_000
_OPENED_MAX = 1024  # slices whose archives are remembered

_RANK_METADATA = re.compile(r"__(\d+)\.metadata")
_RANK_DATA = re.compile(r"__(\d+)_\d+\.distcp")
_HEAD_BYTES = 64
_SHOWN = 80
_ZIP_MAGIC = b"PK\x03\x04"


def is_dcp_file(name: str) -> bool:
    """Say whether a base name is one of those that torch.distributed.checkpoint writes."""
    return name == METADATA or name.endswith(".distcp") or _RANK_METADATA.fullmatch(name) is not None


def open_dcp(unit: BoundedUnit, limits: ReadLimits, beside: Sequence[str] = ()) -> TorchCheckpoint:
    """Open the checkpoint in the directory of `unit`, and with it the files of torch.save `beside` it.

    Raises IncompleteError while there is no metadata or a file is shorter than the metadata says, UnsafeReferenceError
    for a file elsewhere, and the other ReadErrors.
    """
    saved = [item for metadata in _metadata(unit, limits) for item in metadata.saved]
    _check_extents(unit, saved)
    tree = StateTree()
    slices = _Slices(unit, limits)
    tensors: dict[Path, list[SavedTensor]] = {}
    for item in saved:
        if isinstance(item, SavedTensor):
            tensors.setdefault(item.path, []).append(item)
    for number, item in enumerate(saved):
        if isinstance(item, SavedObject):
            slices.add_object(f"o{number}", item, tree)
        elif item.path in tensors:
            tree.put(item.path, slices.add_tensor(f"t{number}", _merged(tensors.pop(item.path))))
    for number, name in enumerate(beside):
        with naming(name):
            tree.add(slices.add_file(f"b{number}", name))
    size_bytes = sum(stat.size_bytes for stat in unit.stats.values())
    storages = TensorStorages(slices.find, big_endian=False, size_bytes=size_bytes, limits=limits)
    result = PickleResult(tree.finish(), tuple(sorted(slices.globals_seen)), (), slices.n_objects, 0)
    return torch_checkpoint(result, storages, limits)


def _metadata(unit: BoundedUnit, limits: ReadLimits) -> list[DcpMetadata]:
    """Return the one metadata of all ranks, or that of each rank where ranks wrote their own."""
    names = [METADATA]
    if METADATA not in unit:
        ranks = {int(match[1]) for name in unit.names if (match := _RANK_METADATA.fullmatch(name))}
        writing = {int(match[1]) for name in unit.names if (match := _RANK_DATA.fullmatch(name))}
        missing = (writing | set(range(max(ranks, default=-1) + 1))) - ranks
        if missing or not ranks:
            what = f"__{min(missing)}.metadata" if ranks else METADATA
            raise IncompleteError(f"{what} is not there: it is written last")
        names = [f"__{rank}.metadata" for rank in sorted(ranks)]
    found = []
    for name in names:
        with naming(name):
            found.append(parse_metadata(unit.read(name, limits.pickle_bytes_max), limits))
    if sum(len(metadata.saved) for metadata in found) > limits.tensors_max:
        raise LimitError(f"the checkpoint has more than {limits.tensors_max} entries")
    return found


def _merged(tensors: list[SavedTensor]) -> SavedTensor:
    """Return the tensor of which several ranks described their parts; of a part described twice, the first."""
    first = tensors[0]
    if len(tensors) == 1:
        return first
    if any((tensor.dtype, tensor.shape) != (first.dtype, first.shape) for tensor in tensors):
        raise CorruptError("the ranks disagree on the shape or dtype of a tensor")
    parts = {(part.offsets, part.sizes): part for tensor in reversed(tensors) for part in tensor.parts}
    return replace(first, parts=tuple(parts.values()))


def _check_extents(unit: BoundedUnit, saved: Sequence[SavedTensor | SavedObject]) -> None:
    """Make sure that every file is there, within the directory, and as long as the metadata says."""
    ends: dict[str, int] = {}
    for item in saved:
        stretches = [part.stretch for part in item.parts] if isinstance(item, SavedTensor) else [item.stretch]
        for stretch in stretches:
            ends[stretch.file] = max(ends.get(stretch.file, 0), stretch.offset + stretch.n_bytes)
    for name, end in ends.items():
        size_bytes = unit.open(name).size_bytes
        if end > size_bytes:
            raise IncompleteError(f"'{printable(name, _SHOWN)}' has {size_bytes} bytes, the metadata needs {end}")


class _Slices:
    """The archives in the files of one checkpoint, and what is kept under which key."""

    __slots__ = ("_archives", "_limits", "_opened", "_reader", "_tensors", "_unit", "globals_seen", "n_objects")

    def __init__(self, unit: BoundedUnit, limits: ReadLimits) -> None:
        self._unit = unit
        self._limits = limits
        self._reader = ChunkReader(limits.chunk_bytes_max)
        self._tensors: dict[str, SavedTensor] = {}
        self._archives: dict[str, TorchArchive] = {}
        self._opened: OrderedDict[Stretch, tuple[ByteSource, Layout]] = OrderedDict()
        self.globals_seen: set[str] = set()
        self.n_objects = 0

    def add_tensor(self, key: str, tensor: SavedTensor) -> Node:
        """Take a tensor in, and return the node that stands for it."""
        dtype = DTYPES.get(tensor.dtype)
        if dtype is not None:
            self._tensors[key] = tensor
            check_tiling(tensor.shape, _tiles(tensor))
        n_bytes = 0 if dtype is None else prod(tensor.shape) * dtype.itemsize
        return tensor_node(key, tensor.dtype, tensor.shape, n_bytes)

    def add_object(self, key: str, saved: SavedObject, tree: StateTree) -> None:
        """Place what an archive holds into the tree; what is too large, or in no archive, is left out."""
        stretch = saved.stretch
        if stretch.n_bytes > OBJECT_BYTES_MAX or len(self._archives) >= OBJECTS_MAX:
            return
        window = self._window(stretch)
        if window.head(len(_ZIP_MAGIC)) != _ZIP_MAGIC:
            return
        with naming(stretch.file):
            tree.put(saved.path, self._root(key, open_archive(window, self._limits)))

    def add_file(self, key: str, name: str) -> object:
        """Take in a whole file of torch.save, and return what it holds."""
        return self._root(key, open_archive(self._unit.open(name), self._limits))

    def find(self, storage: StorageRef) -> ByteSource:
        """Return the bytes under the key of a tensor that was taken in, or of a storage of an object's archive."""
        tensor = self._tensors.get(storage.key)
        if tensor is not None:
            return TiledSource(DTYPES[tensor.dtype], tensor.shape, _tiles(tensor), self._open_tile, self._reader)
        key, _, inner = storage.key.partition(":")
        return self._archives[key].find(replace(storage, key=inner))

    def _root(self, key: str, archive: TorchArchive) -> object:
        if archive.big_endian and archive.result.persistents:
            raise UnsupportedError("the values were written by a big-endian machine, which is not read here")
        for persistent in archive.result.persistents:
            storage = storage_of(persistent)
            assert isinstance(persistent.id, tuple)
            persistent.id = (*persistent.id[:2], f"{key}:{storage.key}", *persistent.id[3:])
        if archive.result.persistents:
            self._archives[key] = archive
        self.globals_seen.update(archive.result.globals_seen)
        self.n_objects += archive.result.n_objects
        return archive.result.root

    def _window(self, stretch: Stretch) -> FileWindow:
        return FileWindow(self._unit.open(stretch.file), stretch.offset, stretch.n_bytes)

    def _open_tile(self, tile: Tile) -> tuple[ByteSource, Layout]:
        """Open the archive of one slice, which must hold just the tensor that the metadata describes."""
        assert isinstance(tile.key, _Slice)
        stretch = tile.key.stretch
        known = self._opened.get(stretch)
        if known is not None:
            self._opened.move_to_end(stretch)
            return known
        with naming(stretch.file):
            found = self._tile_at(tile, tile.key)
        self._opened[stretch] = found
        while len(self._opened) > _OPENED_MAX:
            self._opened.popitem(last=False)
        return found

    def _tile_at(self, tile: Tile, described: _Slice) -> tuple[ByteSource, Layout]:
        window = self._window(described.stretch)
        head = window.head(_HEAD_BYTES)
        if not head.startswith(_ZIP_MAGIC):
            if not any(head):
                raise IncompleteError("a slice begins with zeros: its file is still being written")
            if head[8:9] == b"{":
                raise UnsupportedError("the slices were written as safetensors, which is not read here")
            raise CorruptError("a slice is not where the metadata says")
        archive = open_archive(window, self._limits)
        tensor = tensor_of(archive.result.root, self._limits.dimensions_max)
        if tensor is None or tensor.problem is not None:
            why = "it holds no tensor" if tensor is None else tensor.problem
            raise UnsupportedError(f"a slice cannot be read: {why}")
        if (tensor.shape, tensor.dtype) != (tile.sizes, described.dtype):
            raise CorruptError("a slice holds another shape or dtype than the metadata says")
        if archive.big_endian or tensor.conjugate or tensor.negative:
            raise UnsupportedError("a slice is stored big-endian, conjugated or negated, which is not read here")
        try:
            values = archive.storages(self._limits).values(tensor)
        except TensorError as error:
            raise CorruptError(f"a slice has {error}") from None
        return values.source, values.layout


@dataclass(frozen=True, slots=True)
class _Slice:
    """The key of a tile."""

    stretch: Stretch
    dtype: str


def _tiles(tensor: SavedTensor) -> list[Tile]:
    return [Tile(part.offsets, part.sizes, _Slice(part.stretch, tensor.dtype)) for part in tensor.parts]
