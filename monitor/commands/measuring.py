"""Measure single checkpoints for the commands that need no database; in a worker process, like the daemon does."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence

from monitor.commands.console import CommandError, ExitCode
from monitor.measure.codec import measured_from_json
from monitor.measure.measured import Measured
from monitor.measure.options import MeasureOptions
from monitor.measure.workers import PoolOptions, WorkerError, WorkerPool
from monitor.read.directories import unit_files
from monitor.read.reader import ReadError
from storage.records import Problem, ProblemKind


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """One checkpoint to measure; `reference_path` is read beside it for exact differences, None without."""

    path: str
    reference_path: str | None = None


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
    """Measure checkpoints one after the other and return, for each, the numbers or the problem that kept them away.

    Raises CommandError for a path where nothing is.
    """
    found: list[Measured | Problem] = []
    for order in orders:
        if not os.path.lexists(order.path):
            raise CommandError(f"there is no file {order.path}", ExitCode.UNREADABLE)
    with WorkerPool(PoolOptions(n_workers=1)) as pool:
        for order in orders:
            options = MeasureOptions(drift="exact" if order.reference_path else "sketch")
            payload = {
                "path": order.path,
                "options": dataclasses.asdict(options),
                "reference_path": order.reference_path,
            }
            try:
                found.append(measured_from_json(pool.submit("measure", payload).result()))
            except WorkerError as error:
                found.append(error.problem)
            except ValueError as error:
                found.append(Problem(kind=ProblemKind.WORKER_CRASHED, message=f"the worker's answer: {error}"[:500]))
    return found
