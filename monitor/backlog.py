"""What was seen and is not yet stored: scans in, recorded snapshots out, one run's checkpoints strictly in order.

Used by one thread. Holds nothing that is not still on disk: after a restart the scan finds it all again.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from monitor.claims import Claim, Claims
from monitor.pipeline import InFlight, Pipeline, Recorded
from monitor.read.naming import printable
from monitor.watch.scanner import Scanner, ScanProblem
from monitor.watch.settle import Broken, Settled, Tracker
from storage.errors import DatabaseError
from storage.failpoints import reach
from storage.records import Checkpoint, Problem, ProblemKind

SKIP_REASON = "skipped, since {newer} of this run was written after it (watch.skip_superseded)"
_NAME_CHARACTERS_MAX = 200
CLAIM_AGAIN_SECONDS = 0.5  # after another daemon was found to work on a run


@dataclass(frozen=True, slots=True, kw_only=True)
class Retried:
    """A checkpoint that could not be measured now and is tried again; for the log and the counters."""

    checkpoint: Checkpoint
    problem: Problem


class Backlog:
    """Scans roots, hands settled checkpoints to the pipeline, and takes the outcomes back.

    `wake` is called from other threads when a worker has finished. With `skips_superseded` a checkpoint that is due
    while a newer one of its run waits as well is not read; it is stored as failed, with the reason.
    """

    def __init__(
        self,
        *,
        scanners: Sequence[Scanner],
        tracker: Tracker,
        pipeline: Pipeline,
        n_workers: int,
        skips_superseded: bool = False,
        wake: Callable[[], None] = lambda: None,
        claims: Claims | None = None,
    ) -> None:
        self._scanners = {scanner.root: scanner for scanner in scanners}
        self._tracker = tracker
        self._pipeline = pipeline
        self._n_workers = n_workers
        self._skips_superseded = skips_superseded
        self._wake = wake
        self._flights: dict[str, InFlight] = {}  # by run: a checkpoint is compared with the one stored before it
        self._claims = claims
        self._elsewhere: dict[str, float] = {}  # runs that another daemon works on, and when to ask again

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
        if self._claims is not None:
            self._claims.renew(now)
            # The second condition is for a clock that was set back.
            latest = now + CLAIM_AGAIN_SECONDS
            self._elsewhere = {run: at for run, at in self._elsewhere.items() if now < at <= latest}
        yield from self._collect(now)
        while len(self._flights) < self._n_workers:
            handed = self._tracker.ready(now, busy=self._flights.keys() | self._elsewhere.keys())
            if not handed:
                return
            item = handed[0]
            if not self._may_work_on(item.checkpoint, now):
                continue
            if isinstance(item, Broken):
                yield self._store_failure(item.checkpoint, item.problem, now)
            elif (newer := self._newer_than(item.checkpoint, now)) is not None:
                yield self._store_failure(item.checkpoint, _superseded_by(newer), now)
            else:
                self._start(item, now)

    def next_due_at(self) -> float | None:
        """Return when `advance` may have something new to hand out, None when only a scan or a worker can tell."""
        if len(self._flights) >= self._n_workers:
            return None
        # What is due already was passed over by `advance`: it waits for a worker or for another daemon.
        again_at = [*self._elsewhere.values()]
        waiting_at = self._tracker.next_waiting_at()
        return min(again_at if waiting_at is None else [waiting_at, *again_at], default=None)

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

    def _newer_than(self, checkpoint: Checkpoint, now: float) -> Checkpoint | None:
        """Return a checkpoint that makes this one not worth reading, None when there is none."""
        if not self._skips_superseded:
            return None
        return self._tracker.newer_than(checkpoint, now)

    def close(self) -> None:
        """Let other daemons have what this one was working on."""
        if self._claims is not None:
            self._claims.close()

    def _may_work_on(self, checkpoint: Checkpoint, now: float) -> bool:
        """Claim the run of a checkpoint where daemons share the work; say whether it is ours to measure."""
        if self._claims is None:
            return True
        try:
            claim = self._claims.take(checkpoint, now)
        except DatabaseError:
            self._tracker.release(checkpoint, now)
            raise
        if claim is Claim.STORED:
            self._tracker.succeed(checkpoint)
        elif claim is Claim.ELSEWHERE:
            self._elsewhere[checkpoint.run] = now + CLAIM_AGAIN_SECONDS
            self._tracker.release(checkpoint, now)
        return claim is Claim.OURS

    def _give_back(self, run: str) -> None:
        if self._claims is not None:
            self._claims.release(run)

    def _start(self, item: Settled, now: float) -> None:
        checkpoint = item.checkpoint
        reach("backlog.settled")
        try:
            flight = self._pipeline.submit(checkpoint)
        except DatabaseError:
            self._tracker.release(checkpoint, now)
            self._give_back(checkpoint.run)
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
                self._give_back(run)
                raise
            if isinstance(outcome, Recorded):
                self._give_back(run)
                self._tracker.succeed(flight.checkpoint)
                yield outcome
                continue
            decision = self._tracker.fail(flight.checkpoint, outcome, now)
            if isinstance(decision, Broken):
                yield self._store_failure(decision.checkpoint, decision.problem, now)
            else:
                self._give_back(run)
                yield Retried(checkpoint=flight.checkpoint, problem=outcome)

    def _store_failure(self, checkpoint: Checkpoint, problem: Problem, now: float) -> Recorded:
        try:
            recorded = self._pipeline.store_failure(checkpoint, problem)
        except DatabaseError:
            self._tracker.release(checkpoint, now)
            raise
        finally:
            self._give_back(checkpoint.run)
        self._tracker.succeed(checkpoint)
        return recorded


def _superseded_by(newer: Checkpoint) -> Problem:
    name = printable(os.path.basename(newer.path), _NAME_CHARACTERS_MAX)
    return Problem(kind=ProblemKind.SUPERSEDED, message=SKIP_REASON.format(newer=name))
