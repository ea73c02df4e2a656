"""A run's checkpoints through the very code of the daemon, without its processes: measured, stored, judged one by one.

Each alert that fires is kept with the number of the checkpoint at which it did.
"""

from __future__ import annotations

import json
import time
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, cast

from alerts.engine import Engine
from alerts.lifecycle import Transition
from monitor.assembly import engine_settings, measure_options
from monitor.config import load
from monitor.measure import tasks
from monitor.measure.workers import WorkerPool
from monitor.pipeline import Pipeline
from monitor.watch.scanner import stat_file
from monitor.watch.settle import as_checkpoint
from storage.database import open_database
from storage.records import Candidate, Problem

FIRED = frozenset({Transition.FIRED, Transition.ESCALATED})
RUN = "run"


@dataclass(frozen=True, slots=True, kw_only=True)
class Fired:
    """An alert at the checkpoint (counted from 1) at which it fired or became more severe."""

    rule: str
    severity: str
    checkpoint: int
    summary: str = ""


class _AtOnce:
    """Stands in for the pool: runs a task where it is called, and its payload and answer still pass through JSON."""

    def submit(self, task: str, payload: dict[str, Any]) -> Future[dict[str, Any]]:
        future: Future[dict[str, Any]] = Future()
        answer = getattr(tasks, task)(json.loads(json.dumps(payload)))
        future.set_result(json.loads(json.dumps(answer, allow_nan=False)))
        return future


class Watch:
    """Watches one run with the defaults; `fired` and `n_checkpoints` grow with every file that is shown to it."""

    def __init__(self, directory: Path, database: Path) -> None:
        config = load(None, {"watch": {"roots": [str(directory)]}})
        self.fired: list[Fired] = []
        self.n_checkpoints = 0
        self._root = str(directory)
        self._database = open_database(str(database))
        self._pipeline = Pipeline(
            database=self._database,
            engine=Engine(engine_settings(config, routes=False), clock=time.time),
            pool=cast(WorkerPool, _AtOnce()),
            options=measure_options(config),
        )

    def show(self, path: Path) -> None:
        """Measure and judge a file that was just written; raise RuntimeError when a rule fails."""
        file = stat_file(str(path))
        assert file is not None
        now = time.time()
        candidate = Candidate(
            run=RUN, root=self._root, path=str(path), files=(file,), first_seen_at=now, last_changed_at=now
        )
        recorded = self._pipeline.finish(self._pipeline.submit(as_checkpoint(candidate)))
        assert not isinstance(recorded, Problem), f"{path}: {recorded}"
        if recorded.outcome.failures:
            raise RuntimeError(f"a rule failed: {recorded.outcome.failures}")
        self.n_checkpoints += 1
        self.fired += [
            Fired(
                rule=change.alert.rule,
                severity=change.alert.severity.label,
                checkpoint=self.n_checkpoints,
                summary=change.alert.summary,
            )
            for change in recorded.outcome.changes
            if change.transition in FIRED
        ]

    def __enter__(self) -> Watch:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._database.close()
