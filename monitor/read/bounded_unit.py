"""The files of one checkpoint that consists of several: opened by relative name, never outside, under one bracket.

As bounded_file.py is for one file, this is the only place that opens the files of a unit. It holds few descriptors,
whatever the number of files, and a read that it answers is of the very file that was there when the unit was opened.
"""

from __future__ import annotations

import errno
import json
import os
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import Self

from monitor.read.bounded_file import OPEN_FLAGS, BoundedFile, as_read_error, checked_stat
from monitor.read.bounded_json import check_json_cost
from monitor.read.naming import printable
from monitor.read.reader import (
    ChangedError,
    FileIOError,
    IncompleteError,
    LimitError,
    ReadError,
    UnsafeReferenceError,
    VanishedError,
)
from monitor.read.unit import Claim, claimed_files, unit_path
from storage.records import FileStat

DESCRIPTORS_MAX = 4
JSON_BYTES_MAX = 16 * 2**20
_DIRECTORY_FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECTORY | os.O_NOFOLLOW
_SHOWN = 200


class _Shelf:
    """The open descriptors of one unit, at most DESCRIPTORS_MAX, and how many bytes were read through them."""

    __slots__ = ("_on_read", "_open", "bytes_read", "directory")

    def __init__(self, directory: str, on_read: Callable[[int], None] | None) -> None:
        self.directory = directory
        self.bytes_read = 0
        self._on_read = on_read
        self._open: OrderedDict[str, int] = OrderedDict()

    def descriptor(self, name: str, expected: FileStat) -> int:
        """Return an open descriptor of the file that `expected` describes; the longest unused one is closed for it."""
        if name in self._open:
            self._open.move_to_end(name)
            return self._open[name]
        while len(self._open) >= DESCRIPTORS_MAX:
            os.close(self._open.popitem(last=False)[1])
        descriptor = _open_below(self.directory, name)
        if checked_stat(descriptor, expected.path) != expected:
            os.close(descriptor)
            raise ChangedError(f"'{printable(name, _SHOWN)}' was written or replaced while the checkpoint was read")
        self._open[name] = descriptor
        return descriptor

    def count(self, n_bytes: int) -> None:
        self.bytes_read += n_bytes
        if self._on_read is not None:
            self._on_read(n_bytes)

    def close(self) -> None:
        while self._open:
            os.close(self._open.popitem()[1])


class _UnitFile(BoundedFile):
    """One file of a unit, whose descriptor is opened when it is read and may be closed in between."""

    __slots__ = ("_name", "_shelf")

    def __init__(self, shelf: _Shelf, name: str, file_stat: FileStat) -> None:
        super().__init__(-1, file_stat, shelf.count)
        self._shelf = shelf
        self._name = name

    def descriptor(self) -> int:
        """Return a descriptor, opened anew where it was closed; raise ChangedError when it is not the same file."""
        return self._shelf.descriptor(self._name, self.stat)


class BoundedUnit:
    """A checkpoint of several files.

    `path` stands for the unit, `directory` is where relative names start, `claim` is what was claimed there. `names`
    are the relative names of all files, sorted, with slashes; `stats` are their states when the unit was opened.
    """

    __slots__ = ("_base", "_claim", "_opened_at", "_prefix", "_shelf", "claim", "directory", "names", "path", "stats")

    def __init__(
        self,
        directory: str,
        claim: Claim,
        *,
        on_read: Callable[[int], None] | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Take stock of the files; raise VanishedError when there is none, LimitError when there are too many."""
        self._opened_at = clock()
        files = _stock(directory, claim)
        if not files:
            raise VanishedError(f"{printable(unit_path(directory, claim), _SHOWN)} is gone")
        self._base = directory
        self._claim = claim
        self._prefix = ""
        self._shelf = _Shelf(directory, on_read)
        self.claim = claim
        self.directory = directory
        self.path = unit_path(directory, claim)
        self.stats: Mapping[str, FileStat] = {os.path.relpath(f.path, directory): f for f in files}
        self.names: tuple[str, ...] = tuple(sorted(self.stats))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __contains__(self, name: object) -> bool:
        return name in self.stats

    @property
    def size_bytes(self) -> int:
        """Return the sum of the sizes of all files."""
        return sum(file.size_bytes for file in self.stats.values())

    @property
    def bytes_read(self) -> int:
        """Return how many bytes were read so far, of all files."""
        return self._shelf.bytes_read

    def age_seconds(self, name: str) -> float:
        """Return how long before the unit was opened one of its files was last written; negative by a clock ahead."""
        return self._opened_at - self.stats[name].mtime_ns / 1e9

    def close(self) -> None:
        """Close every descriptor."""
        self._shelf.close()

    def open(self, name: str) -> BoundedFile:
        """Return one file for reading by offset; it is closed with the unit.

        Raises UnsafeReferenceError for a name that leads elsewhere, IncompleteError for one that is not there (yet).
        """
        _check_name(name)
        found = self.stats.get(name)
        if found is None:
            raise IncompleteError(f"'{printable(name, _SHOWN)}' is not there (yet)")
        file = _UnitFile(self._shelf, self._prefix + name, found)
        file.descriptor()
        return file

    def count(self, n_bytes: int) -> None:
        """Account for bytes that a library read by itself, as if they had been read here."""
        self._shelf.count(n_bytes)

    def read(self, name: str, bytes_max: int) -> bytes:
        """Return the whole of one file; raise LimitError when it has more than `bytes_max` bytes."""
        file = self.open(name)
        if file.size_bytes > bytes_max:
            raise LimitError(
                f"'{printable(name, _SHOWN)}' has {file.size_bytes} bytes, the limit for such a file is {bytes_max}"
            )
        return file.head(file.size_bytes)

    def read_json(self, name: str, bytes_max: int = JSON_BYTES_MAX) -> object:
        """Return the content of a JSON file, in which NaN and Infinity may stand for numbers.

        Raises IncompleteError where it does not parse: such files are mostly written in place.
        """
        try:
            raw = self.read(name, bytes_max)
            check_json_cost(raw, f"'{printable(name, _SHOWN)}'")
            return json.loads(raw.decode("utf-8"))
        except RecursionError:
            raise LimitError(f"'{printable(name, _SHOWN)}' is nested too deeply") from None
        except ValueError as error:  # broken UTF-8 or JSON, or an integer of thousands of digits
            what = printable(str(error), _SHOWN)
            raise IncompleteError(f"'{printable(name, _SHOWN)}' is not valid JSON (yet): {what}") from None

    def below(self, directory: str) -> BoundedUnit:
        """Return the part of the unit in one subdirectory, with names relative to it and the same descriptors."""
        _check_name(directory)
        prefix = f"{directory}/"
        view = object.__new__(BoundedUnit)
        view._base = self._base
        view._claim = self._claim
        view._prefix = self._prefix + prefix
        view._shelf = self._shelf
        view._opened_at = self._opened_at
        view.directory = os.path.join(self.directory, directory)
        view.path = view.directory
        view.stats = {name.removeprefix(prefix): s for name, s in self.stats.items() if name.startswith(prefix)}
        view.names = tuple(sorted(view.stats))
        inner = {name.partition("/")[0] for name in view.names if "/" in name}
        view.claim = Claim(
            reader=self.claim.reader,
            files=frozenset(name for name in view.names if "/" not in name),
            directories=frozenset(inner),
        )
        return view

    def verify_unchanged(self) -> None:
        """Close the stat bracket over all files: none was added, removed or written since the unit was opened.

        Of a view it is the bracket of that part. Raises VanishedError when all are gone, ChangedError when any differs.
        """
        files = _stock(self._base, self._claim)
        base = os.path.join(self._base, self._prefix)
        now = {f.path.removeprefix(base): f for f in files if f.path.startswith(base)}
        if not now:
            raise VanishedError(f"{printable(self.path, _SHOWN)} is gone")
        for name in self.names:
            if name not in now:
                raise ChangedError(f"'{printable(name, _SHOWN)}' was deleted while the checkpoint was read")
            if now[name] != self.stats[name]:
                raise ChangedError(f"'{printable(name, _SHOWN)}' was written while the checkpoint was read")
        if len(now) != len(self.names):
            added = min(now.keys() - self.stats.keys())
            raise ChangedError(f"'{printable(added, _SHOWN)}' was added while the checkpoint was read")


@contextmanager
def naming(name: str) -> Iterator[None]:
    """Put a file's name in front of the message of a ReadError, so that it says which of many files is meant."""
    try:
        yield
    except ReadError as error:
        shown = f"'{printable(name, _SHOWN)}'"
        if str(error).startswith(shown):
            raise
        raise type(error)(f"{shown}: {error}") from error


def _stock(directory: str, claim: Claim) -> tuple[FileStat, ...]:
    try:
        return claimed_files(directory, claim)
    except OSError as error:
        raise as_read_error(error, directory) from error


def _check_name(name: str) -> None:
    if not name or name.startswith("/") or "\\" in name or "\0" in name:
        raise UnsafeReferenceError(f"'{printable(name, _SHOWN)}' is no relative name")
    if any(part in {"", ".", ".."} for part in name.split("/")):
        raise UnsafeReferenceError(f"'{printable(name, _SHOWN)}' does not name a file below the checkpoint's directory")


def _open_below(directory: str, name: str) -> int:
    """Open a file below a directory without following a link on the way, except one that stays below it."""
    try:
        return _open_without_links(directory, name)
    except OSError as error:
        if error.errno not in {errno.ELOOP, errno.ENOTDIR}:
            raise as_read_error(error, os.path.join(directory, name)) from error
    except ValueError as error:
        raise FileIOError(f"'{printable(name, _SHOWN)}' is not a valid name: {error}") from error
    try:
        base = os.path.realpath(directory, strict=True)
        target = os.path.realpath(os.path.join(directory, name), strict=True)
        if not target.startswith(base.rstrip("/") + "/"):
            raise UnsafeReferenceError(
                f"'{printable(name, _SHOWN)}' is a link that leads out of the checkpoint's directory"
            )
        return _open_without_links(base, os.path.relpath(target, base))
    except OSError as error:
        raise as_read_error(error, os.path.join(directory, name)) from error


def _open_without_links(directory: str, name: str) -> int:
    *parents, last = name.split("/")
    at = os.open(directory, _DIRECTORY_FLAGS & ~os.O_NOFOLLOW)
    try:
        for parent in parents:
            inner = os.open(parent, _DIRECTORY_FLAGS, dir_fd=at)
            os.close(at)
            at = inner
        return os.open(last, OPEN_FLAGS | os.O_NOFOLLOW, dir_fd=at)
    finally:
        os.close(at)
