"""One checkpoint from settled to stored and judged: a worker measures it, its snapshot is assembled and recorded.

Shared by the daemon and by `scan`. Owns no loop and no thread; the caller says when, and feeds the outcome back to its
tracker.
"""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass, field
from typing import Any

from alerts.engine import Engine, RecordOutcome
from monitor.logbook.reading import log_scalars
from monitor.measure.assemble import Reference, assemble, failed
from monitor.measure.codec import measured_from_json
from monitor.measure.options import MeasureOptions
from monitor.measure.workers import WorkerError, WorkerPool
from monitor.read.directories import unit_files
from monitor.read.reader import LimitError
from monitor.watch.runs import next_attempt, signature
from monitor.watch.scanner import stat_file
from storage import queries, sketches
from storage.database import Database
from storage.failpoints import reach
from storage.records import Checkpoint, FileStat, Problem, ProblemKind, Snapshot, SnapshotStatus, StoredSnapshot


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorded:
    """A checkpoint that was stored, with what the rules made of it."""

    snapshot: Snapshot
    outcome: RecordOutcome


@dataclass(frozen=True, slots=True, kw_only=True)
class InFlight:
    """A checkpoint that a worker is reading; `compared` is the snapshot whose file is read beside it, None without."""

    checkpoint: Checkpoint
    future: Future[dict[str, Any]]
    submitted_at: float
    compared: StoredSnapshot | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Pipeline:
    """The parts that turn a settled checkpoint into a stored snapshot.

    `clock` gives Unix seconds, `monotonic` seconds for durations. `bytes_per_second` None reads as fast as it can.
    Above `io_pressure_max` percent (None: never) a worker slows down for others who wait for their disk, in all by
    at most `back_off_seconds_max` for one checkpoint.
    """

    database: Database
    engine: Engine
    pool: WorkerPool
    options: MeasureOptions
    bytes_per_second: int | None = None
    io_pressure_max: float | None = None
    back_off_seconds_max: float = 0.0
    clock: Callable[[], float] = time.time
    monotonic: Callable[[], float] = field(default=time.monotonic)

    def submit(self, checkpoint: Checkpoint) -> InFlight:
        """Send a checkpoint to a worker; the future ends with the worker's JSON or a WorkerError."""
        compared = self._file_to_compare(checkpoint)
        payload = {
            "path": checkpoint.path,
            "options": dataclasses.asdict(self.options),
            "reference_path": compared.path if compared else None,
            "bytes_per_second": self.bytes_per_second,
            "io_pressure_max": self.io_pressure_max,
            "back_off_seconds_max": self.back_off_seconds_max,
        }
        future: Future[dict[str, Any]] = self.pool.submit("measure", payload)
        return InFlight(checkpoint=checkpoint, future=future, submitted_at=self.monotonic(), compared=compared)

    def finish(self, flight: InFlight) -> Recorded | Problem:
        """Turn a worker's answer into a stored snapshot, or return the problem that kept it from being measured.

        What was read is thrown away when the file is no longer the one that had settled. Call only with a finished
        future. Raises a DatabaseError when the snapshot cannot be stored; the checkpoint is then still to be done.
        """
        checkpoint = flight.checkpoint
        try:
            answer = flight.future.result(timeout=0)
        except WorkerError as error:
            return error.problem
        except CancelledError:
            return Problem(kind=ProblemKind.CHANGED, message="cancelled before it was read")
        try:
            measured = measured_from_json(answer)
        except ValueError as error:
            return Problem(
                kind=ProblemKind.WORKER_CRASHED, message=f"the worker's answer makes no sense: {error}"[:500]
            )
        if not _is_unchanged(checkpoint):
            return Problem(kind=ProblemKind.CHANGED, message="the file was rewritten while it was read")
        reach("pipeline.measured")
        step = measured.step if measured.step is not None else checkpoint.step
        with self.database.read() as session:
            attempt = next_attempt(
                queries.newest(session, checkpoint.run), step, checkpoint.written_at, path=checkpoint.path
            )
            stored = queries.reference(session, checkpoint.run, attempt, step=step, written_at=checkpoint.written_at)
            reference = None
            if stored is not None:
                before = queries.reference(
                    session, checkpoint.run, attempt, step=stored.step, written_at=stored.written_at
                )
                weights = dict(sketches.weights(session, [stored.id] + ([before.id] if before else [])))
                reference = Reference(
                    snapshot=stored,
                    tensors=queries.tensors(session, stored.id, with_sketch=True),
                    scalars=queries.scalars(session, stored.id),
                    weights=weights.get(stored.id),
                    weights_before=weights.get(before.id) if before else None,
                )
        if stored is None or flight.compared is None or stored.id != flight.compared.id:
            measured = dataclasses.replace(measured, exact_drifts=())
        logged = log_scalars(checkpoint.path, checkpoint.root, step=step, after=stored.step if stored else None)
        measured = dataclasses.replace(measured, scalars={**measured.scalars, **logged})
        snapshot = assemble(
            checkpoint,
            measured,
            reference,
            attempt,
            measured_at=self.clock(),
            duration_seconds=self.monotonic() - flight.submitted_at,
        )
        reach("pipeline.assembled")
        return self._record(snapshot)

    def store_failure(self, checkpoint: Checkpoint, problem: Problem) -> Recorded:
        """Store that a checkpoint cannot be measured, and why."""
        with self.database.read() as session:
            attempt = next_attempt(
                queries.newest(session, checkpoint.run), checkpoint.step, checkpoint.written_at, path=checkpoint.path
            )
        snapshot = failed(checkpoint, problem, attempt, measured_at=self.clock(), duration_seconds=0.0)
        reach("failure.store")
        return self._record(snapshot)

    def _record(self, snapshot: Snapshot) -> Recorded:
        outcome = self.engine.record(self.database, snapshot)
        reach("record.done")
        return Recorded(snapshot=snapshot, outcome=outcome)

    def _file_to_compare(self, checkpoint: Checkpoint) -> StoredSnapshot | None:
        """Return the earlier snapshot whose file is still there, unchanged and small enough to be read again."""
        if self.options.drift == "sketch":
            return None
        with self.database.read() as session:
            newest = queries.newest(session, checkpoint.run)
            if newest is None:
                return None
            earlier = queries.reference(
                session, checkpoint.run, newest.attempt, step=checkpoint.step, written_at=checkpoint.written_at
            )
        if (
            earlier is None
            or earlier.path == checkpoint.path
            or earlier.size_bytes > self.options.exact_drift_bytes_max
        ):
            return None
        return earlier if is_still_there(earlier) else None


def is_still_there(snapshot: StoredSnapshot) -> bool:
    """Say whether the very bytes that were measured are still on disk under the same path."""
    if snapshot.status is not SnapshotStatus.COMPLETE:
        return False
    files = files_at(snapshot.path)
    return files is not None and signature(files, snapshot.path) == snapshot.signature


def _is_unchanged(checkpoint: Checkpoint) -> bool:
    """Say whether the files are still those that had settled; what was deleted after reading counts as unchanged."""
    return set(files_at(checkpoint.path) or ()) <= set(checkpoint.files)


def files_at(path: str) -> tuple[FileStat, ...] | None:
    """Return the present state of the file or unit at a path, None when it is gone or cannot be looked at."""
    try:
        files = unit_files(path)
        if files is not None or os.path.isdir(path):
            return files
        file = stat_file(path)
    except (OSError, LimitError):
        return None
    return None if file is None else (file,)
