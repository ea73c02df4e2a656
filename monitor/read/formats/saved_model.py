"""TensorFlow SavedModel directories: the variables are read, the program in `saved_model.pb` is left alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from monitor.read.bounded_unit import BoundedUnit
from monitor.read.notes import FormatNotes
from monitor.read.reader import ReadLimits
from monitor.read.tensorflow.tensor_bundle import open_bundle
from monitor.read.tensorflow.tf_variables import BundleCheckpoint, open_variables
from monitor.read.unit import Claim, DirectoryListing

_PROGRAM = "saved_model.pb"
_VARIABLES = "variables"
_FILES = frozenset({_PROGRAM, "fingerprint.pb", "keras_metadata.pb"})
_HIDDEN = frozenset({"assets", "assets.extra", "debug"})


class SavedModelReader:
    """The reader of SavedModel directories."""

    name: ClassVar[str] = "saved_model"
    marks: ClassVar[tuple[str, ...]] = (_PROGRAM, "fingerprint.pb")
    notes: ClassVar[FormatNotes] = FormatNotes(
        files="directories with `saved_model.pb` and `variables/`",
        written_by="`tf.saved_model.save`, Keras `export`; the program is left alone",
        optimizer_state="inside, where it is saved",
        whole="as `tf_checkpoint`, with `saved_model.pb` (written after the variables) there",
        not_yet="as `tf_checkpoint`",
        never="as `tf_checkpoint`",
        step="as `tf_checkpoint`",
        safety="as `tf_checkpoint`; the program in `saved_model.pb` is never opened",
        limits=("as `tf_checkpoint`",),
        tested_in="tests/monitor/read/formats/test_tf_checkpoint.py",
        tested_with="tensorflow-cpu",
    )

    @classmethod
    def claim(cls, directory: DirectoryListing) -> Sequence[Claim]:
        """Claim a directory that holds a program and variables; the program is written after the variables."""
        if _PROGRAM not in directory.files or _VARIABLES not in directory.directories:
            return ()
        return (
            Claim(
                reader=cls.name,
                files=_FILES & directory.files,
                directories=frozenset({_VARIABLES}),
                hidden=_HIDDEN & directory.directories,
            ),
        )

    def open(self, unit: BoundedUnit, limits: ReadLimits) -> BundleCheckpoint:
        """Read the index of the variables."""
        return open_variables(open_bundle(unit.below(_VARIABLES), _VARIABLES, limits), limits)
