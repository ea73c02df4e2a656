"""Views of what is stored, for the page, the exporter and the commands: database and verdict joined into `Sources`."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ParamSpec, TypeVar

from alerts.verdict import health, last_good
from monitor import stored_journey
from monitor.measure.histogram import BINS_PER_SIGN, bin_edges
from monitor.pipeline import is_still_there
from monitor.show.closer_views import CloserSources
from monitor.show.views import (
    AlertQuery,
    Course,
    DriftQuery,
    Journey,
    Measurement,
    RunView,
    SourceError,
    Sources,
    TensorMoment,
)
from monitor.stored_closer import StoredCloser
from storage import queries, series
from storage.database import Database
from storage.errors import DatabaseError
from storage.records import Alert, AlertState, Histogram, RunSummary, StoredSnapshot

RECENT_SNAPSHOTS_MAX = 256
LOSS_SCALAR = "log.loss"  # the mean of the training log since the checkpoint before
VIEWS_SECONDS_MAX = 2.0  # how long the list of runs is taken as it is: scrapes and pages ask together
EXISTENCE_SECONDS_MAX = 30.0  # how long a last good file is taken as there: the filesystem that knows may be slow

T = TypeVar("T")
P = ParamSpec("P")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Kept:
    """A run's view with what it was made from; it stands while that is the same."""

    run: RunSummary
    open_alerts: tuple[Alert, ...]
    built_at: float
    view: RunView


class StoredViews:
    """Builds views from the database, and builds a run's view anew only when something about the run has changed.

    `kept` gives the path of a protected copy of a stored checkpoint, None where there is none.
    """

    def __init__(
        self,
        database: Database,
        *,
        monotonic: Callable[[], float] = time.monotonic,
        kept: Callable[[StoredSnapshot], str | None] | None = None,
    ) -> None:
        self._database = database
        self._protected = kept
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._views: tuple[RunView, ...] = ()
        self._built_at: float | None = None
        self._kept: dict[str, _Kept] = {}

    def sources(self) -> Sources:
        """Return the functions that the page, the API and the exporter ask."""
        return Sources(
            views=self.views,
            history=self.history,
            alerts=self.alerts,
            measurement=self.measurement,
            course=self.course,
            tensor=self.tensor,
            journey=self.journey,
            closer=self._closer(),
        )

    def _closer(self) -> CloserSources:
        asked = StoredCloser(self._database)
        return CloserSources(
            happenings=_answering(asked.happenings),
            comparison=_answering(asked.comparison),
            drift_map=_answering(asked.drift_map),
        )

    def forget(self) -> None:
        """Build the list of runs anew when it is asked for next: something was stored."""
        with self._lock:
            self._built_at = None

    def views(self) -> Sequence[RunView]:
        """Return one view a run, by name."""
        with self._lock:
            now = self._monotonic()
            if self._built_at is None or now - self._built_at > VIEWS_SECONDS_MAX:
                self._views = tuple(self._build(now))
                self._built_at = now
            return self._views

    def view(self, run: str) -> RunView | None:
        """Return the view of one run, None for an unknown one."""
        return next((view for view in self.views() if view.run.run == run), None)

    def history(self, run: str, limit: int) -> Sequence[StoredSnapshot] | None:
        """Return the latest `limit` snapshots of a run, oldest first; None for an unknown run."""
        with _readable(), self._database.read() as session:
            if queries.run(session, run) is None:
                return None
            return queries.history(session, run, limit=limit)

    def alerts(self, query: AlertQuery) -> Sequence[Alert]:
        """Return the alerts asked for, newest first."""
        with _readable(), self._database.read() as session:
            return queries.alerts(
                session,
                run=query.run,
                since=query.since,
                state=None if query.state is None else AlertState(query.state),
                limit=query.limit,
            )

    def measurement(self, snapshot_id: int) -> Measurement:
        """Return the tensors, drifts and scalars of one snapshot, without sketches."""
        with _readable(), self._database.read() as session:
            return Measurement(
                tensors=queries.tensors(session, snapshot_id),
                drifts=queries.drifts(session, snapshot_id),
                scalars=queries.scalars(session, snapshot_id),
            )

    def course(self, snapshot_ids: Sequence[int]) -> Course:
        """Return the parameters of some snapshots in few facts, and the losses logged beside them."""
        with _readable(), self._database.read() as session:
            return Course(
                points=tuple(series.tensor_points(session, snapshot_ids)),
                losses=series.scalar_values(session, snapshot_ids, LOSS_SCALAR),
            )

    def tensor(self, run: str, name: str, limit: int) -> Sequence[TensorMoment]:
        """Return one tensor in the latest `limit` snapshots that hold it, oldest first; empty for an unknown one."""
        with _readable(), self._database.read() as session:
            found = queries.tensor_history(session, run, name, limit=limit)
            drifts = series.tensor_drifts(session, run, name, [stored.id for stored, _ in found])
        return [
            TensorMoment(snapshot=stored, tensor=tensor, drift=drifts.get(stored.id), bins=_bins(tensor.histogram))
            for stored, tensor in found
        ]

    def journey(self, run: str, limit: int, query: DriftQuery | None = None) -> Journey | None:
        """Return the latest `limit` snapshots of a run on its path, with drift where asked for; None for no such run.

        Raises QuestionError for a query that makes no sense for this run.
        """
        with _readable():
            return stored_journey.journey(self._database, run, limit, query)

    def _build(self, now: float) -> list[RunView]:
        kept: dict[str, _Kept] = {}
        with _readable(), self._database.read() as session:
            open_alerts: dict[str, list[Alert]] = {}
            for alert in queries.open_alerts(session):
                open_alerts.setdefault(alert.run, []).append(alert)
            for run in queries.runs(session):
                alerts = tuple(open_alerts.get(run.run, ()))
                old = self._kept.get(run.run)
                if (
                    old is None
                    or (old.run, old.open_alerts) != (run, alerts)
                    or now - old.built_at > EXISTENCE_SECONDS_MAX
                ):
                    recent = queries.history(session, run.run, limit=RECENT_SNAPSHOTS_MAX)
                    old = _Kept(run=run, open_alerts=alerts, built_at=now, view=self._view(run, recent, list(alerts)))
                kept[run.run] = old
        self._kept = kept
        return [entry.view for entry in kept.values()]

    def _view(self, run: RunSummary, recent: list[StoredSnapshot], open_alerts: list[Alert]) -> RunView:
        verdict = health(recent, open_alerts)
        return RunView(
            run=run,
            newest=recent[-1] if recent else None,
            healthy=verdict.healthy,
            health_reason=verdict.reason,
            last_good=last_good(recent, exists=is_still_there, kept=self._protected),
            firing=tuple(a for a in open_alerts if a.state is AlertState.FIRING),
            recent=tuple(recent),
        )


def _bins(histogram: Histogram | None) -> tuple[tuple[float, float, int], ...]:
    if histogram is None:
        return ()
    pairs = zip(histogram.bin_indices, histogram.counts, strict=True)
    return tuple((*bin_edges(index), count) for index, count in pairs if abs(index) <= BINS_PER_SIGN)


def _answering(ask: Callable[P, T]) -> Callable[P, T]:
    """Turn what a database refuses into a SourceError."""

    def asked(*args: P.args, **kwargs: P.kwargs) -> T:
        with _readable():
            return ask(*args, **kwargs)

    return asked


@contextmanager
def _readable() -> Iterator[None]:
    try:
        yield
    except DatabaseError as error:
        raise SourceError(str(error)) from error
