"""A part of a checkpoint of several files, opened as the format that its own content or names show."""

from __future__ import annotations

import posixpath

from monitor.read.bounded_unit import BoundedUnit, naming
from monitor.read.directories import claim_units, reader_of
from monitor.read.naming import printable
from monitor.read.reader import SNIFF_BYTES_MAX, OpenCheckpoint, ReadLimits, UnsupportedError
from monitor.read.registry import detect
from monitor.read.unit import listing_of


def open_inner(unit: BoundedUnit, name: str, limits: ReadLimits) -> OpenCheckpoint:
    """Open one file of a unit by its content: safetensors, what torch.save wrote, or any other single-file format.

    Errors carry the file's name. Raises IncompleteError for a file that is empty or not there yet.
    """
    with naming(name):
        file = unit.open(name)
        return detect(file.head(SNIFF_BYTES_MAX), name).open(file, limits)


def open_inner_directory(unit: BoundedUnit, directory: str, limits: ReadLimits) -> OpenCheckpoint:
    """Open one subdirectory of a unit as the format that claims it by its names, as if it stood alone.

    Errors carry the directory's name. Raises UnsupportedError where no reader claims it.
    """
    with naming(directory):
        view = unit.below(directory)
        listing = listing_of(posixpath.basename(directory), view.claim.files, view.claim.directories)
        claim = next((claim for claim in claim_units(listing) if not claim.index), None)
        if claim is None:
            shown = ", ".join(sorted(printable(name, 40) for name in (*listing.files, *listing.directories))[:5])
            raise UnsupportedError(f"the directory is in no format that is read here; in it are {shown or 'no files'}")
        return reader_of(claim).open(view, limits)
