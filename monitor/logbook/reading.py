"""The logs that lie beside a checkpoint, read a little from their end, to a few numbers for its snapshot.

A log is a help, never a condition: whatever is missing, unreadable or damaged, the answer is then shorter. It opens
only regular files, reads at most `LogLimits` of each, and writes nothing.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from monitor.logbook.event_files import event_points
from monitor.logbook.points import LogPoint, joined
from monitor.logbook.text_logs import csv_table, json_lines, trainer_state
from monitor.read.bounded_file import open_bounded
from monitor.read.reader import ReadError

_LOG = logging.getLogger(__name__)
_SUBDIRECTORIES = ("runs", "logs", "tensorboard", "tb", "tb_logs")
_LINE_SUFFIXES = (".jsonl", ".ndjson")
_HEAD_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class LogLimits:
    """How much is looked at for one checkpoint.

    `tail_bytes_max` of a log that grows, `document_bytes_max` of one that must be read whole, `files_max` in all,
    `entries_max` of a directory, `levels_max` directories upwards.
    """

    tail_bytes_max: int = 2**20
    document_bytes_max: int = 32 * 2**20
    files_max: int = 8
    entries_max: int = 20_000
    levels_max: int = 3


@dataclass(frozen=True, slots=True)
class _Found:
    """One log: `rank` orders the kinds, the most trusted first; `modified` is its time of writing."""

    rank: int
    modified: float
    path: str


def log_scalars(
    path: str,
    root: str,
    *,
    step: int | None,
    after: int | None,
    limits: LogLimits = LogLimits(),
) -> dict[str, float]:
    """Return what the logs beside the checkpoint at `path` say about the steps after `after` up to `step`.

    Looks in the checkpoint's directory (itself, where it is one) and upwards, not above `root`. Of several logs that
    know a quantity the most trusted one speaks: trainer_state.json, CSV, JSON lines, event files; then the latest
    written. Names and meaning as in `points.joined`. Empty without a step. Never raises for what it finds on disk.
    """
    if step is None:
        return {}
    spoken: dict[str, list[LogPoint]] = {}
    for found in _logs(path, root, limits):
        try:
            points = _READERS[found.rank](found.path, limits)
        except ReadError as error:
            _LOG.debug("the log %r was passed over: %s", found.path, error)
            continue
        by_key: dict[str, list[LogPoint]] = {}
        for point in points:
            if point.step <= step:
                by_key.setdefault(point.key, []).append(point)
        for key, series in by_key.items():
            spoken.setdefault(key, series)
    return joined((p for series in spoken.values() for p in series), step=step, after=after)


def _logs(path: str, root: str, limits: LogLimits) -> list[_Found]:
    """Return the logs to be read, the most trusted first, nearer ones before farther ones."""
    found: list[_Found] = []
    for directory in _directories(path, root, limits):
        here = sorted(_entries(directory, limits), key=lambda f: (f.rank, -f.modified))
        ranks = {f.rank for f in found}
        found += [f for f in here if f.rank not in ranks]
    return sorted(found, key=lambda f: f.rank)[: limits.files_max]


def _directories(path: str, root: str, limits: LogLimits) -> Iterator[str]:
    top = root.rstrip("/") or "/"
    directory = path if os.path.isdir(path) else os.path.dirname(path)
    for _ in range(limits.levels_max):
        yield directory
        for name in _SUBDIRECTORIES:
            below = os.path.join(directory, name)
            if os.path.isdir(below):
                yield below
                yield from _newest_below(below, limits)
        if directory == top or os.path.dirname(directory) == directory:
            return
        directory = os.path.dirname(directory)


def _newest_below(directory: str, limits: LogLimits) -> list[str]:
    """Return the directory below that was written to last: each start of a training makes one of its own."""
    try:
        with os.scandir(directory) as entries:
            below = [
                (entry.stat().st_mtime, entry.path)
                for _, entry in zip(range(limits.entries_max), entries, strict=False)
                if entry.is_dir(follow_symlinks=False)
            ]
    except OSError:
        return []
    return [path for _, path in sorted(below)[-1:]]


def _entries(directory: str, limits: LogLimits) -> Iterator[_Found]:
    try:
        with os.scandir(directory) as entries:
            for _, entry in zip(range(limits.entries_max), entries, strict=False):
                rank = _rank(entry.name)
                if rank is not None and entry.is_file():
                    yield _Found(rank, entry.stat().st_mtime, entry.path)
    except OSError:
        return


def _rank(name: str) -> int | None:
    if name == "trainer_state.json":
        return 0
    if name.endswith(".csv") and ("metrics" in name or "log" in name or "history" in name):
        return 1
    if name.endswith(_LINE_SUFFIXES):
        return 2
    return 3 if ".tfevents." in name else None


def _read_document(path: str, limits: LogLimits) -> list[LogPoint]:
    with open_bounded(path) as file:
        if file.size_bytes > limits.document_bytes_max:
            return []
        return trainer_state(file.read(0, file.size_bytes))


def _read_table(path: str, limits: LogLimits) -> list[LogPoint]:
    with open_bounded(path) as file:
        start = max(file.size_bytes - limits.tail_bytes_max, 0)
        return csv_table(file.head(_HEAD_BYTES), file.read(start, file.size_bytes - start))


def _read_lines(path: str, limits: LogLimits) -> list[LogPoint]:
    content, whole = _tail(path, limits)
    return json_lines(content, whole=whole)


def _read_events(path: str, limits: LogLimits) -> list[LogPoint]:
    content, whole = _tail(path, limits)
    return event_points(content, whole=whole)


def _tail(path: str, limits: LogLimits) -> tuple[bytes, bool]:
    with open_bounded(path) as file:
        start = max(file.size_bytes - limits.tail_bytes_max, 0)
        return file.read(start, file.size_bytes - start), start == 0


_READERS: tuple[Callable[[str, LogLimits], list[LogPoint]], ...] = (
    _read_document,
    _read_table,
    _read_lines,
    _read_events,
)
