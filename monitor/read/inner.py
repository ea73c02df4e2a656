"""A file inside a checkpoint of several files, opened as the single-file format that its content shows."""

from __future__ import annotations

from monitor.read.bounded_unit import BoundedUnit, naming
from monitor.read.reader import SNIFF_BYTES_MAX, OpenCheckpoint, ReadLimits
from monitor.read.registry import detect


def open_inner(unit: BoundedUnit, name: str, limits: ReadLimits) -> OpenCheckpoint:
    """Open one file of a unit by its content: safetensors, what torch.save wrote, or any other single-file format.

    Errors carry the file's name. Raises IncompleteError for a file that is empty or not there yet.
    """
    with naming(name):
        file = unit.open(name)
        return detect(file.head(SNIFF_BYTES_MAX), name).open(file, limits)
