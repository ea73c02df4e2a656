"""What was seen and is not yet stored: scans in, recorded snapshots out, one run's checkpoints strictly in order.

Used by one thread. Holds nothing that is not still on disk: after a restart the scan finds it all again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from monitor.pipeline import InFlight, Pipeline, Recorded
from monitor.watch.scanner import Scanner, ScanProblem
from monitor.watch.settle import Broken, Settled, Tracker
from storage.errors import DatabaseError
from storage.failpoints import reach
from storage.records import Checkpoint, Problem

_PARKED_MAX = 64  # how many checkpoints of busy runs are passed over in search of a run that a free worker can take


@dataclass(frozen=True, slots=True, kw_only=True)
class Retried:
    """A checkpoint that could not be measured now and is tried again; for the log and the counters."""

    checkpoint: Checkpoint
    problem: Problem


class Backlog:
    """Scans roots, hands settled checkpoints to the pipeline, and takes the outcomes back.

    `wake` is called from other threads when a worker has finished.
    """

    def __init__(
        self,
        *,
        scanners: Sequence[Scanner],
        tracker: Tracker,
        pipeline: Pipeline,
        n_workers: int,
        wake: Callable[[], None] = lambda: None,
    ) -> None:
        self._scanners = {scanner.root: scanner for scanner in scanners}
        self._tracker = tracker
        self._pipeline = pipeline
        self._n_workers = n_workers
        self._wake = wake
        self._flights: dict[str, InFlight] = {}  # by run: a checkpoint is compared with the one stored before it
        self._parked: dict[str, deque[Checkpoint]] = {}

    def scan(self, now: float, root: str | None = None) -> list[ScanProblem]:
        """Look at one root or at all of them, and return what could not be looked at."""
        problems: list[ScanProblem] = []
        for scanner in self._scanners.values() if root is None else [self._scanners[root]]:
            result = scanner.scan(now)
            self._tracker.observe(result, now)
            problems += result.problems
        return problems

    def advance(self, now: float) -> Iterator[Recorded | Retried]:
        """Take finished work back, hand out what is due, and yield what happened.

        Raises a DatabaseError when something cannot be stored; it was given back and comes again.
        """
        yield from self._collect(now)
        while len(self._flights) < self._n_workers and self._n_parked() < _PARKED_MAX:
            handed = self._tracker.ready(now, limit=1)
            if not handed:
                return
            item = handed[0]
            if isinstance(item, Broken):
                yield self._store_failure(item.checkpoint, item.problem, now)
            else:
                self._start(item, now)

    def next_due_at(self) -> float | None:
        """Return when `advance` may have something new to hand out, None when only a scan or a worker can tell."""
        return None if len(self._flights) >= self._n_workers else self._tracker.next_due_at()

    @property
    def n_pending(self) -> int:
        """Return the number of checkpoints seen and not stored."""
        return len(self._tracker.pending())

    @property
    def n_units(self) -> int:
        """Return the number of files known in all roots."""
        return self._tracker.n_units

    def oldest_pending_at(self) -> float | None:
        """Return when the oldest unstored checkpoint was first seen, None when everything is stored."""
        return self._tracker.oldest_pending_at()

    def _start(self, item: Settled, now: float) -> None:
        checkpoint = item.checkpoint
        if checkpoint.run in self._flights:
            self._parked.setdefault(checkpoint.run, deque()).append(checkpoint)
            return
        reach("backlog.settled")
        try:
            flight = self._pipeline.submit(checkpoint)
        except DatabaseError:
            self._tracker.release(checkpoint, now)
            raise
        self._flights[checkpoint.run] = flight
        reach("backlog.submitted")
        flight.future.add_done_callback(lambda _: self._wake())

    def _collect(self, now: float) -> Iterator[Recorded | Retried]:
        for run in [run for run, flight in self._flights.items() if flight.future.done()]:
            flight = self._flights.pop(run)
            try:
                outcome = self._pipeline.finish(flight)
            except DatabaseError:
                self._tracker.release(flight.checkpoint, now)
                raise
            finally:
                self._unpark(run, now)
            if isinstance(outcome, Recorded):
                self._tracker.succeed(flight.checkpoint)
                yield outcome
                continue
            decision = self._tracker.fail(flight.checkpoint, outcome, now)
            if isinstance(decision, Broken):
                yield self._store_failure(decision.checkpoint, decision.problem, now)
            else:
                yield Retried(checkpoint=flight.checkpoint, problem=outcome)

    def _n_parked(self) -> int:
        return sum(len(waiting) for waiting in self._parked.values())

    def _unpark(self, run: str, now: float) -> None:
        """Give back what waited for this run; the tracker hands it out again in order, after a fresh look at it."""
        for checkpoint in self._parked.pop(run, ()):
            self._tracker.release(checkpoint, now)

    def _store_failure(self, checkpoint: Checkpoint, problem: Problem, now: float) -> Recorded:
        try:
            recorded = self._pipeline.store_failure(checkpoint, problem)
        except DatabaseError:
            self._tracker.release(checkpoint, now)
            raise
        self._tracker.succeed(checkpoint)
        return recorded
