"""The database as a `Sources`: the one place where the views are put together from storage's queries.

Reads only. Health is judged by the function handed in, never here.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from monitor.show.views import AlertQuery, Measurement, RunView, SourceError, Sources, Verdict
from storage import queries
from storage.database import Database
from storage.errors import DatabaseError
from storage.records import Alert, AlertState, RunSummary, StoredSnapshot

JUDGED_SNAPSHOTS_MAX = 500
RECENT_SNAPSHOTS_MAX = 60
VERDICT_SECONDS_MAX = 30.0  # a last good file may be deleted without any word from the database

Judge = Callable[[Sequence[StoredSnapshot], Sequence[Alert]], Verdict]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Known:
    run: RunSummary
    alerts: tuple[Alert, ...]
    judged_at: float
    view: RunView


class _DatabaseSources:
    """Answer from the database, reading a run's history again only when something about the run changed."""

    def __init__(self, database: Database, judge: Judge, clock: Callable[[], float]) -> None:
        self._database = database
        self._judge = judge
        self._clock = clock
        self._lock = threading.Lock()  # the page and a scrape may ask at once
        self._known: dict[str, _Known] = {}

    def views(self) -> list[RunView]:
        """Return one view a run, by name."""
        now = self._clock()
        with self._lock, _source_errors(), self._database.read() as session:
            runs = queries.runs(session)
            alerts: dict[str, list[Alert]] = {}
            for alert in queries.open_alerts(session):
                alerts.setdefault(alert.run, []).append(alert)
            known: dict[str, _Known] = {}
            for run in runs:
                before = self._known.get(run.run)
                open_alerts = tuple(alerts.get(run.run, ()))
                if before is None or not _is_current(before, run, open_alerts, now):
                    snapshots = queries.history(session, run.run, limit=JUDGED_SNAPSHOTS_MAX)
                    view = _view(run, snapshots, open_alerts, self._judge(snapshots, open_alerts))
                    before = _Known(run=run, alerts=open_alerts, judged_at=now, view=view)
                known[run.run] = before
            self._known = known
        return [entry.view for entry in known.values()]

    def history(self, run: str, limit: int) -> list[StoredSnapshot] | None:
        """Return the latest snapshots of a run, oldest first, None for an unknown run."""
        with _source_errors(), self._database.read() as session:
            if queries.run(session, run) is None:
                return None
            return queries.history(session, run, limit=limit)

    def alerts(self, query: AlertQuery) -> list[Alert]:
        """Return the alerts asked for, newest first."""
        state = None if query.state is None else AlertState(query.state)
        with _source_errors(), self._database.read() as session:
            return queries.alerts(session, run=query.run, since=query.since, state=state, limit=query.limit)

    def measurement(self, snapshot_id: int) -> Measurement:
        """Return the tensors, drifts and scalars of one snapshot, without sketches."""
        with _source_errors(), self._database.read() as session:
            return Measurement(
                tensors=queries.tensors(session, snapshot_id),
                drifts=queries.drifts(session, snapshot_id),
                scalars=queries.scalars(session, snapshot_id),
            )


def database_sources(database: Database, judge: Judge, clock: Callable[[], float]) -> Sources:
    """Return the sources that read `database`.

    `judge(snapshots, open_alerts)` says whether a run is healthy and which checkpoint is the last good one, from its
    latest snapshots, oldest first. Safe to use from several threads.
    """
    sources = _DatabaseSources(database, judge, clock)
    return Sources(views=sources.views, history=sources.history, alerts=sources.alerts, measurement=sources.measurement)


def _is_current(known: _Known, run: RunSummary, alerts: tuple[Alert, ...], now: float) -> bool:
    return known.run == run and known.alerts == alerts and 0 <= now - known.judged_at < VERDICT_SECONDS_MAX


def _view(run: RunSummary, snapshots: Sequence[StoredSnapshot], alerts: tuple[Alert, ...], verdict: Verdict) -> RunView:
    return RunView(
        run=run,
        newest=snapshots[-1] if snapshots else None,
        healthy=verdict.healthy,
        health_reason=verdict.reason,
        last_good=verdict.last_good,
        firing=tuple(alert for alert in alerts if alert.state is AlertState.FIRING),
        recent=tuple(snapshots[-RECENT_SNAPSHOTS_MAX:]),
    )


@contextmanager
def _source_errors() -> Iterator[None]:
    """Turn what the database says into the one error that views know."""
    try:
        yield
    except DatabaseError as error:
        raise SourceError(str(error)) from error
