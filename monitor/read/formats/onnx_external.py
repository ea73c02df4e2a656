"""ONNX models whose values lie in files beside them: `X.onnx` with `X.onnx.data`, `X.onnx_data` and their like.

Which files belong to a model is judged by their names; what the model names must be one of them, or it is not read.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import ClassVar

from monitor.read.bounded_file import BoundedFile
from monitor.read.bounded_unit import BoundedUnit
from monitor.read.models.onnx_checkpoint import OnnxCheckpoint, open_onnx
from monitor.read.notes import FormatNotes
from monitor.read.reader import ReadLimits
from monitor.read.unit import Claim, DirectoryListing

_SUFFIX = ".onnx"
_AFTER_NAME = re.compile(r"[._](?:data|weights|bin)(?:[._-]?\d+)?")
_AFTER_STEM = re.compile(r"\.(?:data|weights)")
_UUID_DATA = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}\.data")  # what onnx.save takes without a name


class OnnxExternalReader:
    """The reader of `.onnx` files with files of values beside them."""

    name: ClassVar[str] = "onnx_external"
    marks: ClassVar[tuple[str, ...]] = ("*.onnx",)
    notes: ClassVar[FormatNotes] = FormatNotes(
        files="`.onnx` with `.onnx.data`, `.onnx_data`, `.data` or `.weights` beside it",
        written_by="ONNX exporters for large models",
        optimizer_state="none",
        whole="as `onnx`, and external values lie within their file",
        not_yet="as `onnx`, or a file of values that is missing or too short",
        never="values that do not fit their shape, a location that is not a sibling",
        step="as `onnx`",
        safety=(
            "as `onnx`; a location is followed only where it is the name of a file beside the model that belongs to it"
        ),
        limits=("as `onnx`",),
        tested_in="tests/monitor/read/formats/test_onnx.py",
        tested_with="onnx",
    )

    @classmethod
    def claim(cls, directory: DirectoryListing) -> Sequence[Claim]:
        """Claim each model that has files of values beside it."""
        models = sorted(name for name in directory.files if name.lower().endswith(_SUFFIX))
        claims = []
        for model in models:
            stem = model[: -len(_SUFFIX)]
            beside = {
                name
                for name in directory.files
                if (name.startswith(model) and _AFTER_NAME.fullmatch(name[len(model) :]))
                or (name.startswith(stem) and _AFTER_STEM.fullmatch(name[len(stem) :]))
                or (len(models) == 1 and _UUID_DATA.fullmatch(name))
            }
            if beside:
                claims.append(Claim(reader=cls.name, files=frozenset({model, *beside}), index=model))
        return claims

    def open(self, unit: BoundedUnit, limits: ReadLimits) -> OnnxCheckpoint:
        """Walk the model, and find every value that lies in a file of the unit."""

        def open_external(location: str) -> BoundedFile | None:
            return unit.open(location) if location in unit else None

        return open_onnx(unit.open(unit.claim.index), limits, open_external)
