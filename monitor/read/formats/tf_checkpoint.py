"""TensorFlow 2 checkpoints: `ckpt-5.index` and `ckpt-5.data-00000-of-00001`, as tf.train.Checkpoint writes them.

The values are renamed into place first, the index is written last; it stands for the group.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import ClassVar

from monitor.read.bounded_unit import BoundedUnit
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
