"""Measure single checkpoints for the commands that need no database; in a worker process, like the daemon does."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Sequence

from monitor.commands.console import CommandError, ExitCode
from monitor.measure.codec import measured_from_json, pairs_from_json
from monitor.measure.comparison import Comparison, PairResult, compare, pairs_to_read
from monitor.measure.matching import match_tensors
from monitor.measure.measured import Measured
from monitor.measure.options import MeasureOptions
from monitor.measure.recurrent_bias import join_biases
from monitor.measure.workers import PoolOptions, WorkerError, WorkerPool
from monitor.read.directories import claim_units, unit_files, unit_marks
from monitor.read.reader import ReadError
from monitor.watch.names import NameRules
from monitor.watch.scanner import ScanLimits, Scanner
from storage.records import Problem, ProblemKind

_PAIRS_MAX = 5000  # in one task, so that their names fit into a request
_NAMED_MAX = 5
_LISTING = ScanLimits(files_max=10_000, names_max=100_000, depth_max=4)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """One checkpoint to measure; `reference_path` is read beside it for exact differences, None without."""

    path: str
    reference_path: str | None = None


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
    """Measure checkpoints one after the other and return, for each, the numbers or the problem that kept them away.

    Raises CommandError for a path where nothing is.
    """
    _require(*(order.path for order in orders))
    with WorkerPool(PoolOptions(n_workers=1)) as pool:
        return [_measure(pool, order) for order in orders]


def compare_files(old_path: str, new_path: str) -> Comparison:
    """Compare two checkpoints tensor by tensor; raises CommandError for one that cannot be read."""
    _require(old_path, new_path)
    with WorkerPool(PoolOptions(n_workers=1)) as pool:
        old = _readable(old_path, _measure(pool, Order(path=old_path)))
        new = _readable(new_path, _measure(pool, Order(path=new_path, reference_path=old_path)))
        matching, joined = join_biases(match_tensors(old.tensors, new.tensors))
        pairs = pairs_to_read(matching, new, joined)
        biases = [dataclasses.asdict(bias) for bias in joined]
        results: list[PairResult] = []
        by_name = {tensor.name: tensor for tensor in new.tensors}
        for start in range(0, max(len(pairs), len(biases)), _PAIRS_MAX):
            part = slice(start, start + _PAIRS_MAX)
            payload = {"old_path": old_path, "new_path": new_path, "pairs": pairs[part], "joined": biases[part]}
            try:
                results += pairs_from_json(pool.submit("compare", payload).result(), by_name)
            except (WorkerError, ValueError) as error:
                problem = _problem(error)
                raise CommandError(
                    f"{old_path} and {new_path}: {problem.kind}: {problem.message}", ExitCode.UNREADABLE
                ) from error
    return compare(matching, new, results, joined)


def _measure(pool: WorkerPool, order: Order) -> Measured | Problem:
    options = MeasureOptions(drift="exact" if order.reference_path else "sketch")
    payload = {
        "path": order.path,
        "options": dataclasses.asdict(options),
        "reference_path": order.reference_path,
    }
    try:
        return measured_from_json(pool.submit("measure", payload).result())
    except (WorkerError, ValueError) as error:
        return _problem(error)


def _problem(error: WorkerError | ValueError) -> Problem:
    if isinstance(error, WorkerError):
        return error.problem
    return Problem(kind=ProblemKind.WORKER_CRASHED, message=f"the worker's answer: {error}"[:500])


def _require(*paths: str) -> None:
    for path in paths:
        if not os.path.lexists(path):
            raise CommandError(f"there is no file {path}", ExitCode.UNREADABLE)


def _readable(path: str, found: Measured | Problem) -> Measured:
    if isinstance(found, Problem):
        raise CommandError(f"{path}: {found.kind}: {found.message}", ExitCode.UNREADABLE)
    return found
