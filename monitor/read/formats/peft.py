"""A PEFT adapter: `adapter_model.safetensors` and, written after it, `adapter_config.json`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import ClassVar

from monitor.read.bounded_unit import BoundedUnit
from monitor.read.inner import open_inner
from monitor.read.notes import FormatNotes
from monitor.read.reader import IncompleteError, OpenCheckpoint, ReadLimits
from monitor.read.unit import Claim, DirectoryListing

_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
_CONFIG = "adapter_config.json"
_CHECKPOINT_NAME = re.compile(r"checkpoint[-_]\d+")


class PeftReader:
    """The reader of directories that `save_pretrained` of a PEFT model writes."""

    name: ClassVar[str] = "peft"
    marks: ClassVar[tuple[str, ...]] = (_CONFIG,)
    notes: ClassVar[FormatNotes] = FormatNotes(
        files="directories with `adapter_model.safetensors` or `.bin`",
        written_by="`save_pretrained` of a PEFT model",
        optimizer_state="none",
        whole="`adapter_config.json` (written last) parses, and the weights are whole",
        not_yet="no configuration",
        never="weights that are broken",
        step="none inside; the number in the directory's name",
        safety="as `safetensors` or `torch_zip`",
        tested_in="tests/monitor/read/formats/test_peft.py",
        tested_with="peft",
    )

    @classmethod
    def claim(cls, directory: DirectoryListing) -> Sequence[Claim]:
        """Claim an adapter's weights; a directory in which other checkpoints lie is not one."""
        weights = directory.files & set(_WEIGHTS)
        if not weights or any(_CHECKPOINT_NAME.fullmatch(name) for name in directory.directories):
            return ()
        return [Claim(reader=cls.name, files=weights | (directory.files & {_CONFIG}))]

    def open(self, unit: BoundedUnit, limits: ReadLimits) -> OpenCheckpoint:
        """Open the weights; raise IncompleteError while the configuration is missing."""
        if _CONFIG not in unit:
            raise IncompleteError(f"{_CONFIG} is not there (yet); it is written after the weights")
        unit.read_json(_CONFIG)
        return open_inner(unit, next(name for name in _WEIGHTS if name in unit), limits)
