"""Brings each run's newest good checkpoint onto the shelf, one at a time, in a thread and a worker of its own.

The daemon's loop only says what was recorded. It decides nothing about health (alerts.verdict does) and removes nothing
but superseded copies of its own, and those only when a newer one of the same run is whole.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass

from alerts.verdict import is_good, last_good
from monitor.measure.confinement import WorkerLimits
from monitor.measure.workers import PoolOptions, WorkerError, WorkerPool
from monitor.pipeline import Recorded, files_at, is_still_there
from monitor.protect.shelf import Kept, Shelf
from monitor.protect.tasks import TASKS
from monitor.protect_config import ProtectConfig
from monitor.watch.runs import signature
from monitor.watch.scanner import stat_file
from storage import queries
from storage.database import Database
from storage.records import FileStat, StoredSnapshot

FILES_MAX = 100_000
HISTORY_SNAPSHOTS_MAX = 256
# Whose writers never write into a file that has its name already: they write another one and rename it. Only there a
# second name keeps the bytes; all others may open the same file again and truncate it.
RENAMING_FORMATS = frozenset({"orbax", "tf_checkpoint", "saved_model"})

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """Why a checkpoint is not protected."""

    snapshot: StoredSnapshot
    reason: str


class Protector:
    """Start it once, tell it what was recorded, stop it at the end; `on_done` is told of outcomes in its thread."""

    def __init__(
        self,
        config: ProtectConfig,
        *,
        clock: Callable[[], float] = time.time,
        on_done: Callable[[Kept | Refused], None] = lambda _: None,
    ) -> None:
        self.shelf = Shelf(config.place)
        self._config = config
        self._clock = clock
        self._on_done = on_done
        self._waiting: dict[str, StoredSnapshot] = {}
        self._lock = threading.Lock()
        self._woken = threading.Event()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="protect", daemon=True)
        limits = WorkerLimits(file_bytes_max=config.bytes_max, cpu_seconds_max=int(config.timeout_seconds))
        options = PoolOptions(n_workers=1, limits=limits, task_timeout_seconds=config.timeout_seconds)
        self._pool = WorkerPool(options, tasks=TASKS)

    def start(self) -> None:
        """Remove what an earlier process left half done, and begin."""
        self.shelf.clear_partial()
        self._thread.start()

    def note_recorded(self, database: Database, recorded: Recorded) -> None:
        """Look whether what was just recorded is good and the newest of its run; then it waits to be protected."""
        if recorded.outcome.late or recorded.outcome.snapshot_id is None:
            return
        with database.read() as session:
            snapshot = queries.snapshot(session, recorded.outcome.snapshot_id)
        if snapshot is not None and is_good(snapshot):
            self.ask(snapshot)

    def note_stored(self, database: Database) -> None:
        """Look for good checkpoints that were stored before this start and are not protected yet."""
        with database.read() as session:
            runs = [run.run for run in queries.runs(session) if run.active]
            stored = [queries.history(session, run, limit=HISTORY_SNAPSHOTS_MAX) for run in runs]
        for snapshots in stored:
            good = last_good(snapshots, exists=is_still_there)
            if good is not None:
                self.ask(good)

    def ask(self, snapshot: StoredSnapshot) -> None:
        """Let a good checkpoint wait to be protected; a newer one of its run takes its place."""
        with self._lock:
            self._waiting[snapshot.run] = snapshot
        self._woken.set()

    def stop(self, timeout_seconds: float = 5.0) -> None:
        """End, and leave what is half done to the next start."""
        self._stopping.set()
        self._woken.set()
        self._pool.shutdown(wait=True, cancel_futures=True)
        if self._thread.is_alive():
            self._thread.join(timeout_seconds)

    def _run(self) -> None:
        while not self._stopping.is_set():
            self._woken.wait()
            self._woken.clear()
            while not self._stopping.is_set() and (snapshot := self._next()) is not None:
                try:
                    outcome = self.protect(snapshot)
                except Exception:  # the supervisor of this thread: one bad checkpoint must not end it
                    log.exception("%s could not be protected", snapshot.path)
                    continue
                if self._stopping.is_set() or outcome is None:
                    continue
                if isinstance(outcome, Refused):
                    log.warning("%s is not protected: %s", snapshot.path, outcome.reason)
                else:
                    log.info("%s is protected by %s at %s", snapshot.path, outcome.method, outcome.path)
                self._on_done(outcome)

    def _next(self) -> StoredSnapshot | None:
        with self._lock:
            return self._waiting.pop(next(iter(self._waiting)), None) if self._waiting else None

    def protect(self, snapshot: StoredSnapshot) -> Kept | Refused | None:
        """Bring one checkpoint onto the shelf; return what is kept now, why not, or None when it was kept already."""
        if self.shelf.has(snapshot.run, snapshot.path, snapshot.signature):
            return None
        files = _files(snapshot)
        if isinstance(files, str):
            return Refused(snapshot=snapshot, reason=files)
        size_bytes = sum(file.size_bytes for file in files)
        reason = self._make_room(snapshot.run, size_bytes)
        if reason is not None:
            return Refused(snapshot=snapshot, reason=reason)
        try:
            partial = self.shelf.begin(snapshot.run, snapshot.path, snapshot.signature)
        except OSError as error:
            return Refused(snapshot=snapshot, reason=f"{self.shelf.directory}: {error.strerror or error}")
        try:
            outcome = self._bring(snapshot, files, size_bytes, partial)
        except OSError as error:
            outcome = Refused(snapshot=snapshot, reason=str(error))
        if isinstance(outcome, Refused):
            self.shelf.abandon(partial)
        else:
            self._remove_superseded(snapshot.run)
        return outcome

    def _bring(
        self, snapshot: StoredSnapshot, files: Sequence[FileStat], size_bytes: int, partial: str
    ) -> Kept | Refused:
        base = os.path.dirname(snapshot.path)
        named = [(os.path.relpath(file.path, base), file) for file in files]
        payload = {
            "files": [[name, asdict(file)] for name, file in named],
            "target": partial,
            "may_link": snapshot.format in RENAMING_FORMATS,
            "bytes_per_second": self._config.bytes_per_second,
        }
        try:
            answer = self._pool.submit("protect", payload).result()
        except WorkerError as error:
            return Refused(snapshot=snapshot, reason=error.problem.message)
        if not isinstance(answer, dict) or answer.get("error") is not None:
            return Refused(snapshot=snapshot, reason=str(answer.get("error") if isinstance(answer, dict) else answer))
        if not is_still_there(snapshot):
            return Refused(snapshot=snapshot, reason="it was changed while it was copied")
        kept = Kept(
            directory=partial,
            run=snapshot.run,
            step=snapshot.step,
            origin=snapshot.path,
            signature=snapshot.signature,
            method=str(answer.get("method")),
            size_bytes=size_bytes,
            kept_at=self._clock(),
            files=tuple((name, file.size_bytes, file.mtime_ns) for name, file in named),
        )
        return self.shelf.finish(partial, kept)

    def _make_room(self, run: str, size_bytes: int) -> str | None:
        """Remove superseded copies until a new one fits; return why it does not. The newest of each run stays."""
        budget = self._config.bytes_max
        if size_bytes > budget:
            return f"it has {size_bytes} bytes, protect.bytes_max is {budget}"
        kept = self.shelf.kept()
        newest = {k.run: k for k in kept}
        total = sum(k.size_bytes for k in kept)
        for old in kept:
            if total + size_bytes <= budget:
                break
            if old is not newest[old.run]:
                self.shelf.remove(old)
                total -= old.size_bytes
        if total + size_bytes <= budget:
            return None
        also = "the copy that is to be replaced and " if run in newest else ""
        return f"{also}those of all runs take {total} of the {budget} bytes of protect.bytes_max, it needs {size_bytes}"

    def _remove_superseded(self, run: str) -> None:
        mine = [kept for kept in self.shelf.kept() if kept.run == run]
        for old in mine[: -self._config.keep]:
            try:
                self.shelf.remove(old)
            except OSError as error:
                log.warning("an older copy cannot be removed: %s", error)


def _files(snapshot: StoredSnapshot) -> tuple[FileStat, ...] | str:
    """Return all files of a checkpoint as they are now, those beside its tensors too; or why that cannot be said."""
    measured = files_at(snapshot.path)
    if measured is None or signature(measured, snapshot.path) != snapshot.signature:
        return "it is no longer what was measured"
    if not os.path.isdir(snapshot.path):
        return measured
    files: list[FileStat] = []
    for path in _regular_files(snapshot.path):
        if len(files) >= FILES_MAX:
            return f"it has more than {FILES_MAX} files"
        file = stat_file(path)
        if file is not None:
            files.append(file)
    return tuple(files) or "it is gone"


def _regular_files(directory: str) -> Iterator[str]:
    """Yield the files in a checkpoint's directory, without following links out of it."""
    for place, directories, names in os.walk(directory):
        directories.sort()
        for name in sorted(names):
            path = os.path.join(place, name)
            if os.path.isfile(path) and not os.path.islink(path):
                yield path
