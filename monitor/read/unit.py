"""Checkpoints of more than one file: which names of a directory belong together, and which files those are on disk.

A directory reader claims names; what is claimed is one unit, with one path and one signature. Claiming is pure text.
Here files are listed and asked for their status, never opened.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Protocol

from monitor.read.reader import LimitError, OpenCheckpoint, ReadLimits
from monitor.read.unfinished import is_held_back, is_temporary, is_temporary_inside, unfinished_of
from storage.records import FileStat

if TYPE_CHECKING:
    from monitor.read.bounded_unit import BoundedUnit

UNIT_FILES_MAX = 100_000
LISTED_NAMES_MAX = 1_000_000
_DEPTH_MAX = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class DirectoryListing:
    """The names in one directory, without temporary and held-back ones; `name` is the directory's own."""

    name: str
    files: frozenset[str]  # also links to files
    directories: frozenset[str]  # real ones


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """One checkpoint among the names of a directory.

    `index` "" says that the unit's path is the directory itself; else it is the name of the index file that stands for
    a group of siblings. `files` are the names in this directory that are part of the unit, `directories` are taken
    with every file below. `hidden` names are neither part of it nor checkpoints of their own.
    """

    reader: str
    files: frozenset[str]
    index: str = ""
    directories: frozenset[str] = field(default_factory=frozenset)
    hidden: frozenset[str] = field(default_factory=frozenset)

    @property
    def names(self) -> frozenset[str]:
        """Return every name that nobody else may look at any more."""
        return self.files | self.directories | self.hidden


class DirectoryReader(Protocol):
    """One format of more than one file. Facts are on the class; `open` imports what it needs.

    `marks` are shell patterns of base names whose arrival may complete a unit, and of the index files of groups.
    """

    name: ClassVar[str]
    marks: ClassVar[tuple[str, ...]]

    @classmethod
    def claim(cls, directory: DirectoryListing) -> Sequence[Claim]:
        """Return what in a directory is of this format, as soon as names tell, complete or not; never raise."""

    def open(self, unit: BoundedUnit, limits: ReadLimits) -> OpenCheckpoint:
        """Parse the structure, not the values; raise IncompleteError while the unit is not whole."""


def list_directory(path: str, names_max: int = LISTED_NAMES_MAX) -> DirectoryListing:
    """Return the names in a directory as a scan sees them; OSErrors pass through, LimitError above `names_max`."""
    files: set[str] = set()
    directories: set[str] = set()
    unfinished: set[str] = set()
    with os.scandir(path) as entries:
        for n, entry in enumerate(entries):
            if n >= names_max:
                raise LimitError(f"the directory holds more than {names_max} names")
            marked = unfinished_of(entry.name)
            if marked is not None:
                unfinished.add(marked)
            if entry.is_dir(follow_symlinks=False):
                directories.add(entry.name)
            elif not entry.is_symlink() or entry.is_file():
                files.add(entry.name)
    return listing_of(os.path.basename(path), files, directories, frozenset(unfinished))


def listing_of(
    name: str, files: Iterable[str], directories: Iterable[str], unfinished: frozenset[str] = frozenset()
) -> DirectoryListing:
    """Return the listing of the names that are neither temporary nor marked as unfinished."""
    return DirectoryListing(
        name=name,
        files=frozenset(f for f in files if not is_temporary(f) and not is_held_back(f, unfinished)),
        directories=frozenset(
            d for d in directories if not is_temporary(d, is_directory=True) and not is_held_back(d, unfinished)
        ),
    )


def unit_path(directory: str, claim: Claim) -> str:
    """Return the path that stands for the unit: its directory, or its index file."""
    return os.path.join(directory, claim.index) if claim.index else directory


def claimed_files(directory: str, claim: Claim, files_max: int = UNIT_FILES_MAX) -> tuple[FileStat, ...]:
    """Return the present state of every file of a unit, sorted by relative name; what is gone is left out.

    Links to files are followed for their state; whether they may be read is judged where they are opened. What is no
    regular file is left out. OSErrors other than of a name that is gone pass through. Raises LimitError.
    """
    relative = sorted(claim.files)
    for name in sorted(claim.directories):
        relative += _walk(directory, name, files_max - len(relative))
    if len(relative) > files_max:
        raise LimitError(f"the checkpoint consists of more than {files_max} files")
    found: list[FileStat] = []
    for name in sorted(relative):
        path = f"{directory}/{name}" if directory != "/" else f"/{name}"
        try:
            status = os.stat(path)
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            if error.errno == errno.ELOOP:  # a link that leads in a circle is as good as gone
                continue
            raise
        if stat.S_ISREG(status.st_mode):
            found.append(
                FileStat(
                    path=path,
                    device=status.st_dev,
                    inode=status.st_ino,
                    size_bytes=status.st_size,
                    mtime_ns=status.st_mtime_ns,
                )
            )
    return tuple(found)


def _walk(directory: str, name: str, files_max: int) -> list[str]:
    """Return the relative names of all files below one subdirectory; links to directories are not followed."""
    found: list[str] = []
    pending = [(name, 1)]
    while pending:
        relative, depth = pending.pop()
        try:
            entries = os.scandir(os.path.join(directory, relative))
        except (FileNotFoundError, NotADirectoryError):
            continue
        with entries:
            for entry in entries:
                if is_temporary_inside(entry.name):
                    continue
                below = f"{relative}/{entry.name}"
                if not entry.is_dir(follow_symlinks=False):
                    found.append(below)
                elif depth < _DEPTH_MAX:
                    pending.append((below, depth + 1))
                else:
                    raise LimitError(f"the checkpoint's directories are nested deeper than {_DEPTH_MAX}")
                if len(found) > files_max or len(pending) > files_max:
                    raise LimitError(f"the checkpoint consists of more than {UNIT_FILES_MAX} files")
    return found
