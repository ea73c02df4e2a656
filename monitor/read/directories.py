"""Which formats of more than one file there are, and what in a directory belongs to them.

Asked by the scan, which only needs names, and by whoever opens a path. The order of the table is the order in which
claims are made: what one reader claims, those after it do not see.
"""

from __future__ import annotations

import fnmatch
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib import import_module

from monitor.read.plugins import claims_of, load_plugins
from monitor.read.unit import Claim, DirectoryListing, DirectoryReader, claimed_files, list_directory
from storage.records import FileStat

DIRECTORY_READERS = {
    # From the one whose names say most to the one whose names say least; see docs/formats.md.
    "deepspeed": "monitor.read.formats.deepspeed:DeepSpeedReader",
    "megatron": "monitor.read.formats.megatron:MegatronReader",
    "torch_dcp": "monitor.read.formats.torch_dcp:TorchDcpReader",
    "hf_trainer": "monitor.read.formats.hf_trainer:HfTrainerReader",
    "accelerate": "monitor.read.formats.accelerate:AccelerateReader",
    "peft": "monitor.read.formats.peft:PeftReader",
    "keras_sharded": "monitor.read.formats.keras_sharded:KerasShardedReader",
    "orbax": "monitor.read.formats.orbax:OrbaxReader",
    "saved_model": "monitor.read.formats.saved_model:SavedModelReader",
    "tf_checkpoint": "monitor.read.formats.tf_checkpoint:TfCheckpointReader",
    "onnx_external": "monitor.read.formats.onnx_external:OnnxExternalReader",
    "sharded": "monitor.read.formats.sharded:ShardedReader",
}
DIRECTORY_ENTRY_POINT_GROUP = "ckptwatch.directory_readers"

_FAILED: set[str] = set()  # the plugins of which it was said that they fail


@dataclass(frozen=True, slots=True)
class Located:
    """A unit that was found under a path: the directory in which its names are, and what is claimed there."""

    directory: str
    claim: Claim


@cache
def directory_reader(name: str) -> type[DirectoryReader]:
    """Import the built-in directory reader of this name; raise KeyError for an unknown one."""
    module_name, _, class_name = DIRECTORY_READERS[name].partition(":")
    found: type[DirectoryReader] = getattr(import_module(module_name), class_name)
    return found


@cache
def directory_readers() -> tuple[type[DirectoryReader], ...]:
    """Import all directory readers, built-in ones first; a plugin that cannot be used is logged and left out."""
    own = tuple(directory_reader(name) for name in DIRECTORY_READERS)
    return own + load_plugins(DIRECTORY_ENTRY_POINT_GROUP, DIRECTORY_READERS, "marks", ("claim", "open"))


def reader_of(claim: Claim) -> DirectoryReader:
    """Return the reader that made a claim."""
    return next(reader for reader in directory_readers() if reader.name == claim.reader)()


def unit_marks() -> tuple[str, ...]:
    """Return the patterns of all names whose arrival may complete a checkpoint of several files."""
    return tuple(sorted({mark for reader in directory_readers() for mark in reader.marks}))


def claim_units(listing: DirectoryListing) -> tuple[Claim, ...]:
    """Return the checkpoints of several files in a directory, judged by names alone; no name is in two of them.

    At most one stands for the directory itself, and then it is the last one.
    """
    claims: list[Claim] = []
    for reader in directory_readers():
        if not listing.files and not listing.directories:
            break
        is_own = reader.name in DIRECTORY_READERS
        for claim in reader.claim(listing) if is_own else claims_of(reader, listing, _FAILED):
            if claims and not claim.index and not claims[-1].index:
                continue
            claims.append(claim)
            listing = replace(listing, files=listing.files - claim.names, directories=listing.directories - claim.names)
        if claims and not claims[-1].index:
            break
    return tuple(claims)


def locate(path: str) -> Located | None:
    """Return the unit that a path stands for, None where it stands for none.

    A directory that is no checkpoint itself stands for the one group of siblings in it, where there is just one; an
    index or a marker stands for the unit that it belongs to. OSErrors pass through; raises LimitError for a directory
    of too many names.
    """
    real = os.path.realpath(path)
    if os.path.isdir(real):
        claims: Sequence[Claim] = claim_units(list_directory(real))
        own = [claim for claim in claims if not claim.index] or (list(claims) if len(claims) == 1 else [])
        return Located(real, own[0]) if own else None
    directory, name = os.path.split(os.path.abspath(path))
    if not _marks_pattern().fullmatch(name) or not os.path.isdir(directory):
        return None
    directory = os.path.realpath(directory)
    claims = claim_units(list_directory(directory))
    found = next((claim for claim in claims if claim.index == name), None)
    found = found or next((claim for claim in claims if name in claim.files), None)
    return Located(directory, found) if found else None


def unit_files(path: str) -> tuple[FileStat, ...] | None:
    """Return the present files of the unit that a path stands for, sorted by name; None when it is gone.

    OSErrors other than of what is gone pass through; raises LimitError.
    """
    try:
        located = locate(path)
        if located is None:
            return None
        return claimed_files(located.directory, located.claim) or None
    except (FileNotFoundError, NotADirectoryError):
        return None


@cache
def _marks_pattern() -> re.Pattern[str]:
    return re.compile("|".join(fnmatch.translate(mark) for mark in unit_marks()) or r"(?!)", re.IGNORECASE)
