"""HDF5: the weights of Keras 3 (`.weights.h5`), the older `.h5` of Keras and TF-Keras, and any other HDF5 file."""

from __future__ import annotations

from typing import ClassVar

from monitor.read.bounded_file import BoundedFile
from monitor.read.keras.hdf5 import Hdf5File, sniff_hdf5
from monitor.read.keras.keras_h5 import Hdf5Checkpoint, open_hdf5
from monitor.read.reader import ReadLimits


class Hdf5Reader:
    """The reader of `.h5` files."""

    name: ClassVar[str] = "hdf5"
    suffixes: ClassVar[tuple[str, ...]] = (".h5", ".hdf5")

    @classmethod
    def sniff(cls, head: bytes, path: str) -> bool:  # noqa: ARG003 - the contract gives both
        """Say whether an HDF5 header is there."""
        return sniff_hdf5(head)

    def open(self, file: BoundedFile, limits: ReadLimits) -> Hdf5Checkpoint:
        """Walk the file; raise IncompleteError while its end is not where its header says."""
        opened = Hdf5File(file, limits)
        return open_hdf5(opened, opened.tree(), limits)
