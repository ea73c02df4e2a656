"""Paths of checkpoints as people name them, and their measuring with the exit codes of the commands."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence

from monitor import files
from monitor.commands.console import CommandError, ExitCode
from monitor.files import Order
from monitor.measure.comparison import Comparison
from monitor.measure.measured import Measured
from monitor.read.directories import claim_units, unit_files, unit_marks
from monitor.read.reader import ReadError
from monitor.watch.names import NameRules
from monitor.watch.scanner import ScanLimits, Scanner
from storage.records import Problem

_NAMED_MAX = 5
_LISTING = ScanLimits(files_max=10_000, names_max=100_000, depth_max=4)


def checkpoint_at(path: str) -> str:
    """Return the absolute path of the checkpoint that `path` names: itself, or the only one that its directory holds.

    A model's directory often holds one file of weights among others, and people name the directory. Raises CommandError
    where nothing is, and for a directory with no checkpoint or several.
    """
    absolute = os.path.abspath(path)
    _require(absolute)
    if not os.path.isdir(absolute) or unit_files(absolute) is not None:
        return absolute
    rules = NameRules.compile(marks=unit_marks())
    found = Scanner(absolute, rules, limits=_LISTING, claims_of=claim_units).scan(time.time())
    paths = sorted([file.path for file in found.entries] + [unit.path for unit in found.units])
    if len(paths) == 1:
        return paths[0]
    if not paths:
        raise CommandError(f"{path} is a directory that holds no checkpoint", ExitCode.UNREADABLE)
    names = ", ".join(os.path.relpath(p, absolute) for p in paths[:_NAMED_MAX])
    more = f" and {len(paths) - _NAMED_MAX} more" if len(paths) > _NAMED_MAX else ""
    raise CommandError(f"{path} holds {len(paths)} checkpoints, name one of them: {names}{more}", ExitCode.UNREADABLE)


def size_on_disk(path: str) -> int | None:
    """Return the bytes of a checkpoint, of all its files together; None when it is gone or cannot be looked at."""
    try:
        files = unit_files(path)
        if files is not None:
            return sum(file.size_bytes for file in files)
        return None if os.path.isdir(path) else os.path.getsize(path)
    except (OSError, ReadError):
        return None


def measure_files(orders: Sequence[Order]) -> list[Measured | Problem]:
    """Measure checkpoints like `files.measure_files`; raises CommandError for a path where nothing is."""
    _require(*(order.path for order in orders))
    return files.measure_files(orders)


def compare_files(old_path: str, new_path: str) -> Comparison:
    """Compare two checkpoints tensor by tensor; raises CommandError for one that cannot be read."""
    _require(old_path, new_path)
    try:
        return files.compare_files(old_path, new_path)
    except files.CheckpointError as error:
        raise CommandError(str(error), ExitCode.UNREADABLE) from error


def _require(*paths: str) -> None:
    for path in paths:
        if not os.path.lexists(path):
            raise CommandError(f"there is no file {path}", ExitCode.UNREADABLE)
