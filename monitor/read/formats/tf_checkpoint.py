"""TensorFlow 2 checkpoints: `ckpt-5.index` and `ckpt-5.data-00000-of-00001`, as tf.train.Checkpoint writes them.

The values are renamed into place first, the index is written last; it stands for the group.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import ClassVar

from monitor.read.bounded_unit import BoundedUnit
from monitor.read.notes import FormatNotes
from monitor.read.reader import ReadLimits
from monitor.read.tensorflow.tensor_bundle import open_bundle
from monitor.read.tensorflow.tf_variables import BundleCheckpoint, open_variables
from monitor.read.unit import Claim, DirectoryListing

_DATA = re.compile(r"(?P<prefix>.+)\.data-\d{5}-of-\d{5}", re.DOTALL)
_INDEX = ".index"
_SAVED_MODEL_PART = "variables"  # of a SavedModel that is being written: its own file comes later


class TfCheckpointReader:
    """The reader of TensorFlow checkpoints."""

    name: ClassVar[str] = "tf_checkpoint"
    marks: ClassVar[tuple[str, ...]] = (f"*{_INDEX}",)
    notes: ClassVar[FormatNotes] = FormatNotes(
        files="`NAME.index` with `NAME.data-*-of-*`",
        written_by="`tf.train.Checkpoint`, `CheckpointManager`, and the `Saver` of TensorFlow 1",
        optimizer_state="inside",
        whole=(
            "the index (written last) is closed, its checksums hold, every value that it names is there, and "
            "the checksums of the small tensors hold"
        ),
        not_yet="no index; an index without its end; values that are missing, short, or newer than their index",
        never="a checksum that does not hold, keys out of order, places outside the files",
        step=(
            "a variable of a step's name beside the model, else the optimizer's count of iterations, else the"
            " number in the name (`ckpt-5`)"
        ),
        safety="own parsers of the index and of the graph of objects, with bounds on counts; texts are left alone",
        limits=("variables saved in slices are a tensor's `problem`",),
        tested_in="tests/monitor/read/formats/test_tf_checkpoint.py",
        tested_with="tensorflow-cpu",
    )

    @classmethod
    def claim(cls, directory: DirectoryListing) -> Sequence[Claim]:
        """Claim each group of files of values with its index, from the first file on."""
        groups: dict[str, set[str]] = {}
        for name in directory.files:
            match = _DATA.fullmatch(name)
            if match is not None and (directory.name, match["prefix"]) != (_SAVED_MODEL_PART, _SAVED_MODEL_PART):
                groups.setdefault(match["prefix"], set()).add(name)
        return [
            Claim(
                reader=cls.name,
                index=f"{prefix}{_INDEX}",
                files=frozenset(names | ({f"{prefix}{_INDEX}"} & directory.files)),
            )
            for prefix, names in sorted(groups.items())
        ]

    def open(self, unit: BoundedUnit, limits: ReadLimits) -> BundleCheckpoint:
        """Read the index and the names of the variables."""
        prefix = unit.claim.index.removesuffix(_INDEX)
        return open_variables(open_bundle(unit, prefix, limits), limits)
