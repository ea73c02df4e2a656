"""One archive of torch.save: its pickle interpreted inertly, and the storages that lie beside it.

What readers of single archives and of many small ones in a larger file have in common. It must not know what the
pickle means.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from monitor.read.access.sources import ByteSource, PositionedFile
from monitor.read.access.zip_directory import ZipDirectory, ZipMember, read_zip_directory
from monitor.read.bounded_unit import BoundedUnit, naming
from monitor.read.naming import printable
from monitor.read.pickles.inert_nodes import PickleResult
from monitor.read.pickles.inert_pickle import parse
from monitor.read.pytorch.torch_objects import StorageRef, TensorError, storage_of
from monitor.read.pytorch.torch_storages import TensorStorages
from monitor.read.reader import AmbiguousError, CorruptError, IncompleteError, ReadLimits, UnsupportedError

_PICKLE = "data.pkl"
_BYTE_ORDERS = {b"little": False, b"big": True}
_BYTE_ORDER_BYTES_MAX = 64
_ZIP_MAGIC = b"PK\x03\x04"
_SHOWN = 80


@dataclass(frozen=True, slots=True)
class TorchArchive:
    """What the pickle of an archive holds; `find` returns the bytes of a storage and raises CorruptError without it."""

    result: PickleResult
    find: Callable[[StorageRef], ByteSource]
    big_endian: bool
    size_bytes: int

    def storages(self, limits: ReadLimits) -> TensorStorages:
        """Return the storages with a budget of their own for views of them."""
        return TensorStorages(self.find, big_endian=self.big_endian, size_bytes=self.size_bytes, limits=limits)


def open_archive(file: PositionedFile, limits: ReadLimits) -> TorchArchive:
    """Read the directory and the pickle of an archive that fills `file`, and check every reference to a storage.

    Raises IncompleteError for an archive without its end or its pickle, and the other errors of zips and pickles.
    """
    directory = read_zip_directory(file, limits)
    prefix, member = _pickle_member(directory)
    big_endian = _is_big_endian(directory, prefix)
    result = parse(directory.read(member, limits.pickle_bytes_max), limits)
    for persistent in result.persistents:
        try:
            storage_of(persistent)
        except TensorError as error:
            raise CorruptError(f"the pickle has {error}") from None

    def find(storage: StorageRef) -> ByteSource:
        found = directory.members.get(f"{prefix}data/{storage.key}")
        if found is None:
            raise CorruptError(f"the archive has no storage '{printable(storage.key, _SHOWN)}'")
        return directory.source(found)

    return TorchArchive(result, find, big_endian, file.size_bytes)


def open_archive_in(unit: BoundedUnit, name: str, limits: ReadLimits) -> TorchArchive:
    """Open one file of a unit as an archive whose tensors can be read; errors carry the file's name.

    Raises IncompleteError for a file that is empty or begins with zeros, UnsupportedError for torch.save's older format
    and for the byte order of other machines.
    """
    with naming(name):
        file = unit.open(name)
        head = file.head(len(_ZIP_MAGIC))
        if not any(head):
            raise IncompleteError("the file is empty, or begins with zeros: it is still being written")
        if not _ZIP_MAGIC.startswith(head):
            raise UnsupportedError("the file is not in the zip format of torch.save, the only one read here")
        archive = open_archive(file, limits)
        if archive.big_endian:
            raise UnsupportedError("the values were written by a big-endian machine, which is not read here")
        return archive


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
