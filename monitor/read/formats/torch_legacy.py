"""What torch.save wrote before PyTorch 1.6, and still writes on request: five pickles, then the raw storages.

The pickles are interpreted inertly and the storages are read by offset; nothing of PyTorch is imported and nothing that
the file names is run. It is whole when the last storage ends where the file ends.
"""

from __future__ import annotations

from typing import ClassVar

from monitor.read.access.sources import FileSource
from monitor.read.bounded_file import BoundedFile
from monitor.read.naming import printable
from monitor.read.notes import FormatNotes
from monitor.read.pickles.file_pickle import parse_at
from monitor.read.pickles.inert_nodes import PickleResult
from monitor.read.pickles.inert_view import entries_of, text_keyed
from monitor.read.pytorch.torch_objects import StorageRef, TensorError, storage_of
from monitor.read.pytorch.torch_storages import (
    LEGACY_MAGIC_WITHIN,
    TensorStorages,
    TorchCheckpoint,
    begins_legacy,
    torch_checkpoint,
)
from monitor.read.reader import CorruptError, IncompleteError, LimitError, ReadLimits, UnsupportedError

_PROTOCOL_VERSION = 1001
_COUNT_BYTES = 8
_SHOWN = 80


class TorchLegacyReader:
    """The reader of `.pt`, `.pth` and `.bin` files in PyTorch's format of before 1.6."""

    name: ClassVar[str] = "torch_legacy"
    suffixes: ClassVar[tuple[str, ...]] = (".pt", ".pth", ".bin", ".ckpt", ".tar")
    keeps_module_order: ClassVar[bool] = True
    notes: ClassVar[FormatNotes] = FormatNotes(
        files="`.pt` `.pth` `.bin`",
        written_by="`torch.save` before PyTorch 1.6, and later with `_use_new_zipfile_serialization=False`",
        optimizer_state="inside",
        whole="the five pickles parse and the last storage ends where the file ends",
        not_yet="any of it is missing",
        never="a storage of another size than its tensors say, bytes after the last storage",
        step="as in `torch_zip`",
        safety=(
            "the pickle is walked opcode by opcode into inert nodes; nothing that it names is imported, "
            "called or hashed; storages are read by offset"
        ),
        limits=("files written on a big-endian machine are refused: they say too little of themselves",),
        tested_in="tests/monitor/read/formats/test_torch_legacy.py",
        tested_with="torch",
    )

    @classmethod
    def sniff(cls, head: bytes, path: str) -> bool:
        """Say whether the file begins with a pickle of PyTorch's magic number, or may when more of it is there."""
        is_early = len(head) < LEGACY_MAGIC_WITHIN and head[:1] == b"\x80"
        return begins_legacy(head) or (is_early and path.lower().endswith(cls.suffixes))

    def open(self, file: BoundedFile, limits: ReadLimits) -> TorchCheckpoint:
        """Read the pickles, find every storage, and check every tensor against its storage."""
        whole = FileSource(file, 0, file.size_bytes)
        head = file.head(LEGACY_MAGIC_WITHIN)
        if head[:1] == b"P" and b"PK\x03\x04".startswith(head):  # given to us by its name alone
            raise IncompleteError("the file has hardly begun: the first bytes of a zip archive and no more")
        if head[:1] != b"\x80":
            raise CorruptError(
                "the file has the name of a PyTorch file, but is neither a zip archive nor a pickle; "
                f"it begins with {head[:8].hex(' ')}"
            )
        if not begins_legacy(head) and len(head) == LEGACY_MAGIC_WITHIN:
            raise UnsupportedError("the file is a pickle, but not one that torch.save wrote")
        magic = parse_at(whole, 0, limits)
        version = parse_at(whole, magic.n_bytes, limits)
        if version.root != _PROTOCOL_VERSION:
            raise UnsupportedError(f"the file has no protocol version {_PROTOCOL_VERSION} of torch.save")
        system = parse_at(whole, version.n_bytes, limits)
        if text_keyed(entries_of(system.root) or []).get("little_endian") is not True:
            raise UnsupportedError("the file was written on a big-endian machine, by a format that says too little")
        result = parse_at(whole, system.n_bytes, limits, lazy_bytes_min=2**63)
        keys = parse_at(whole, result.n_bytes, limits)
        places = _storages(file, result, keys, limits)

        def find(storage: StorageRef) -> FileSource:
            place = places.get(storage.key)
            if place is None:
                raise CorruptError(f"the file has no storage '{printable(storage.key, _SHOWN)}'")
            return FileSource(file, *place)

        storages = TensorStorages(find, big_endian=False, size_bytes=file.size_bytes, limits=limits)
        return torch_checkpoint(result, storages, limits)


def _storages(
    file: BoundedFile, result: PickleResult, keys: PickleResult, limits: ReadLimits
) -> dict[str, tuple[int, int]]:
    """Return offset and length in bytes of every storage; each must be there in full, and the last end the file."""
    known: dict[str, StorageRef] = {}
    for persistent in result.persistents:
        try:
            storage = storage_of(persistent)
        except TensorError as error:
            raise CorruptError(f"the pickle has {error}") from None
        known.setdefault(storage.key, storage)
    if not isinstance(keys.root, list):
        raise CorruptError("the list of storages is no list")
    if len(keys.root) > limits.tensors_max:
        raise LimitError(f"the file has {len(keys.root)} storages, the limit is {limits.tensors_max}")
    places: dict[str, tuple[int, int]] = {}
    position = keys.n_bytes
    for key in keys.root:
        found = known.get(key) if type(key) is str else None
        if found is None or found.key in places:
            raise CorruptError("the list of storages names one that no tensor has, or one twice")
        if position + _COUNT_BYTES > file.size_bytes:
            raise IncompleteError(f"storage {len(places)} of {len(keys.root)} is not there yet")
        count = int.from_bytes(file.read(position, _COUNT_BYTES), "little", signed=True)
        if count != found.n_elements:
            raise CorruptError(f"a storage has {count} elements, the pickle says {found.n_elements}")
        position += _COUNT_BYTES
        if position + found.n_bytes > file.size_bytes:
            raise IncompleteError(f"a storage needs {position + found.n_bytes} bytes, the file has {file.size_bytes}")
        places[found.key] = (position, found.n_bytes)
        position += found.n_bytes
    if position != file.size_bytes:
        raise CorruptError(f"{file.size_bytes - position} bytes follow the last storage")
    return places
