"""HDF5: the weights of Keras 3 (`.weights.h5`), the older `.h5` of Keras and TF-Keras, and any other HDF5 file."""

from __future__ import annotations

from typing import ClassVar

from monitor.read.bounded_file import BoundedFile
from monitor.read.keras.hdf5 import Hdf5File, sniff_hdf5
from monitor.read.keras.keras_h5 import Hdf5Checkpoint, open_hdf5
from monitor.read.notes import FormatNotes
from monitor.read.reader import ReadLimits


class Hdf5Reader:
    """The reader of `.h5` files."""

    name: ClassVar[str] = "hdf5"
    suffixes: ClassVar[tuple[str, ...]] = (".h5", ".hdf5")
    notes: ClassVar[FormatNotes] = FormatNotes(
        files="`.weights.h5` `.h5` `.hdf5`",
        written_by="Keras 3 `save_weights`, `ModelCheckpoint`; the older `.h5` of Keras and TF-Keras; h5py",
        optimizer_state="inside",
        whole="the file ends where its own header says, and is not marked as open for writing",
        not_yet="it is shorter or longer than that, or begins with zeros",
        never=(
            "links, datasets in other files or virtual ones; datasets that overlap, leave the file, or claim "
            "a hundred times what is stored"
        ),
        step="the optimizer's count of iterations; of other files a dataset without dimensions of a step's name",
        safety=(
            "the HDF5 library is given no file to open, only bytes that were asked for: no lock is ever taken"
            " on a file that a training may be writing"
        ),
        limits=(
            (
                "chunks of more than 32 MiB, filters that HDF5 and h5py do not bring along, and chunks that lie "
                "across the order of the elements with more than 64 MiB beside each other are a tensor's "
                "`problem`"
            ),
        ),
        tested_in="tests/monitor/read/formats/test_hdf5.py",
        tested_with="h5py",
    )

    @classmethod
    def sniff(cls, head: bytes, path: str) -> bool:  # noqa: ARG003 - the contract gives both
        """Say whether an HDF5 header is there."""
        return sniff_hdf5(head)

    def open(self, file: BoundedFile, limits: ReadLimits) -> Hdf5Checkpoint:
        """Walk the file; raise IncompleteError while its end is not where its header says."""
        opened = Hdf5File(file, limits)
        return open_hdf5(opened, opened.tree(), limits)
