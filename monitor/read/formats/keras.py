"""The `.keras` archive of Keras 3: a zip of two JSON texts and an HDF5 file with the weights.

The configuration is read as data, for the names of frozen layers and the settings of the optimizer; nothing that it
describes is ever built.
"""

from __future__ import annotations

from typing import ClassVar

from monitor.read.access.zip_directory import STORED, read_zip_directory
from monitor.read.bounded_file import BoundedFile
from monitor.read.keras.hdf5 import Hdf5File
from monitor.read.keras.keras_h5 import Hdf5Checkpoint, open_hdf5
from monitor.read.keras.keras_optimizer import parse_config, parse_json
from monitor.read.notes import FormatNotes
from monitor.read.reader import CorruptError, IncompleteError, ReadError, ReadLimits, UnsupportedError

_METADATA, _CONFIG, _WEIGHTS = "metadata.json", "config.json", "model.weights.h5"
_CONFIG_BYTES_MAX = 64 * 2**20
_FIRST = tuple(name.encode() for name in (_METADATA, _CONFIG, _WEIGHTS))


class KerasReader:
    """The reader of `.keras` files."""

    name: ClassVar[str] = "keras"
    suffixes: ClassVar[tuple[str, ...]] = (".keras",)
    notes: ClassVar[FormatNotes] = FormatNotes(
        files="`.keras`",
        written_by="Keras 3 `save`, `ModelCheckpoint`",
        optimizer_state="inside, with the settings from which the gradient norm follows",
        whole="the zip is whole and the weights in it are a whole HDF5 file",
        not_yet="no end record",
        never="weights that are missing, cut or packed",
        step="the optimizer's count of iterations",
        safety="as `hdf5`; the configuration is read as data, and nothing that it describes is built",
        limits=("as `hdf5`",),
        tested_in="tests/monitor/read/formats/test_keras.py",
        tested_with="keras",
    )

    @classmethod
    def sniff(cls, head: bytes, path: str) -> bool:
        """Say whether a zip begins whose first member is one of the three, or that has the name of one."""
        if not head.startswith(b"PK\x03\x04"):
            return False
        first_name = head[30 : 30 + int.from_bytes(head[26:28], "little")]
        return first_name in _FIRST or path.lower().endswith(cls.suffixes)

    def open(self, file: BoundedFile, limits: ReadLimits) -> Hdf5Checkpoint:
        """Read the directory and the structure of the weights; raise IncompleteError while the zip has no end."""
        directory = read_zip_directory(file, limits)
        weights = directory.members.get(_WEIGHTS)
        if weights is None:
            others = [name for name in directory.members if name.endswith((".weights.h5", ".weights.json", ".npz"))]
            if others:
                raise UnsupportedError("the archive has its weights in shards or as npz; save one .weights.h5")
            raise CorruptError(f"the archive has no {_WEIGHTS}")
        if weights.method != STORED:
            raise UnsupportedError(f"{_WEIGHTS} is packed within the archive; Keras stores it as it is")
        config = directory.members.get(_CONFIG)
        described = parse_json(directory.read(config, _CONFIG_BYTES_MAX)) if config is not None else None
        opened = Hdf5File(file, limits, base=weights.data_offset, n_bytes=weights.n_bytes)
        try:
            tree = opened.tree()
        except IncompleteError as error:  # the archive is whole: what the weights lack will not come
            raise _final(error) from None
        return open_hdf5(opened, tree, limits, parse_config(described))


def _final(error: ReadError) -> ReadError:
    return CorruptError(f"member '{_WEIGHTS}': {error}")
