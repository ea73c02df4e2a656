"""Measure and compare checkpoint files in a worker process, like the daemon does, without any database.

For commands and notebooks. What keeps the numbers away is returned, or raised as a CheckpointError, with its reason.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from monitor.measure.codec import measured_from_json, pairs_from_json
from monitor.measure.comparison import Comparison, PairResult, compare, pairs_to_read
from monitor.measure.matching import match_tensors
from monitor.measure.measured import Measured
from monitor.measure.options import MeasureOptions
from monitor.measure.recurrent_bias import join_biases
from monitor.measure.workers import PoolOptions, WorkerError, WorkerPool
from storage.records import Problem, ProblemKind

_PAIRS_MAX = 5000  # in one task, so that their names fit into a request


class CheckpointError(Exception):
    """A checkpoint cannot be measured; the message names it and says why, `problem` holds the kind."""

    def __init__(self, subject: str, problem: Problem) -> None:
        super().__init__(f"{subject}: {problem.kind}: {problem.message}")
        self.problem = problem


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """One checkpoint to measure; `reference_path` is read beside it for exact differences, None without."""

    path: str
    reference_path: str | None = None


def measure_files(orders: Sequence[Order]) -> list[Measured | Problem]:
    """Measure checkpoints one after the other; return, for each, the numbers or the problem that kept them away."""
    with WorkerPool(PoolOptions(n_workers=1)) as pool:
        return [_measure(pool, order) for order in orders]


def compare_files(old_path: str, new_path: str) -> Comparison:
    """Compare two checkpoints tensor by tensor; raises CheckpointError for one that cannot be read."""
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
                raise CheckpointError(f"{old_path} and {new_path}", _problem(error)) from error
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


def _readable(path: str, found: Measured | Problem) -> Measured:
    if isinstance(found, Problem):
        raise CheckpointError(path, found)
    return found
