"""The composition root: builds every part from a Config, owns the loop, and takes it all down again.

One thread scans, settles, records and judges; everything else (events, timers, workers, the page, deliveries) only
wakes it or reads the database. A fault of the database pauses the loop; the files on disk are the queue.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from apscheduler.schedulers.background import BackgroundScheduler
from prometheus_client import CollectorRegistry

from alerts import registry as alert_registry
from alerts.delivery import Delivery, DeliveryPolicy, DeliveryResult, MessageExtras
from alerts.engine import Engine, EngineSettings, RecordOutcome
from alerts.illustration import Illustrator
from alerts.lifecycle import NOTIFIED
from alerts.notifier import Notifier
from monitor import __version__
from monitor.assembly import (
    back_off_seconds_max,
    bytes_per_second_of_worker,
    database_url,
    engine_settings,
    measure_options,
    page_link,
    pool_options,
    shared_claims,
    watch_parts,
    web_settings,
)
from monitor.backlog import Backlog, Retried
from monitor.config import Config, notifier_config, resolve_secret
from monitor.measure.workers import WorkerPool
from monitor.pipeline import Pipeline, Recorded, is_still_there
from monitor.show.exporter import ExporterOptions, MetricsDetail, StorageCollector
from monitor.show.push.build import build_exporters
from monitor.show.push.pusher import Pusher
from monitor.show.telemetry import Telemetry
from monitor.show.web.app import create_app
from monitor.show.web.server import ServerHandle, serve_in_thread
from monitor.stored_views import StoredViews
from monitor.thinning import Thinner
from monitor.watch.events import EventHints
from storage import queries, telling, writer
from storage.database import Database, open_database
from storage.errors import CorruptDatabaseError, DatabaseError, DatabaseReplacedError
from storage.failpoints import reach
from storage.records import ProblemKind, StoredSnapshot
from storage.recovery import Recording, newest_set_aside, open_for_recording

TICK_SECONDS = 15.0
WAIT_SECONDS_MAX = 5.0
IDLE_SECONDS = 30.0  # how often the outbox is looked into without a reason
SHARED_IDLE_SECONDS = 2.0  # the same where other daemons fill it, which wake nobody here
DATABASE_PAUSE_SECONDS = (1.0, 15.0)  # first and longest pause while the database cannot be written

log = logging.getLogger(__name__)


class Ending(StrEnum):
    """Why `Daemon.run` returned."""

    STOPPED = "stopped"
    DONE = "done"  # everything that was found is stored
    INTERRUPTED = "interrupted"  # it may be called again
    REPLACED = "replaced"  # the database's file was removed or replaced: a new daemon has to open it
    DAMAGED = "damaged"  # the database is damaged: a new daemon has to set it aside


@dataclass(frozen=True, slots=True, kw_only=True)
class DaemonOptions:
    """What a caller may choose beside the configuration: `scan` neither serves nor notifies, and watches no events.

    `skips` lets the configuration skip what is superseded: a scan of an archive is asked for all of it.
    `records_alone` lets no other such daemon use the database, and sets a damaged one aside; `is_damaged` says that
    it is. `kept` gives the path of a protected copy.
    """

    serves: bool = True
    notifies: bool = True
    hints: bool = True
    skips: bool = True
    records_alone: bool = True
    is_damaged: bool = False
    kept: Callable[[StoredSnapshot], str | None] | None = None
    incomplete_timeout_seconds: float | None = None


class Daemon:
    """A running ckptwatch. Build it, `start`, then `run` in one thread until `stop` is called from anywhere.

    `on_event` is told about every recorded or retried checkpoint, `on_progress` whenever work went on, both from the
    loop's thread.
    """

    def __init__(
        self,
        config: Config,
        *,
        options: DaemonOptions | None = None,
        on_event: Callable[[Recorded | Retried], None] = lambda _: None,
        on_progress: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Build every part; raises ConfigError, DatabaseError or ValueError, and leaves nothing open then."""
        self.config = config
        self._options = options or DaemonOptions()
        self._on_event = on_event
        self._on_progress = on_progress
        self._clock = clock
        self._wake = threading.Event()
        self._stopping = threading.Event()
        self._is_stopped = False  # for good
        self._scan_asked = threading.Event()
        self._tick_asked = threading.Event()
        self._hinted: set[str] = set()
        self._hinted_lock = threading.Lock()
        self._database_pause = 0.0
        self._is_ready = False
        notifiers = _build_notifiers(config) if self._options.notifies else {}
        settings = engine_settings(config, routes=self._options.notifies)
        self.registry = CollectorRegistry(auto_describe=False)
        self.telemetry = Telemetry(
            self.registry,
            version=__version__,
            notifiers=notifiers,
            rules=[s.name for s in settings.rules],
            exporters=config.export.names if self._options.serves else (),
        )
        self._scheduler: BackgroundScheduler | None = None
        self._hints: EventHints | None = None
        self._server: ServerHandle | None = None
        self._known_crashes = 0
        self._known_events = 0
        self._known_overflows = 0
        self._recording: Recording | None = None
        self.database = self._opened(database_url(config))
        reach("start.opened")
        try:
            self._build(settings, notifiers)
        except BaseException:
            self._close_database()
            raise

    def _opened(self, url: str) -> Database:
        if not self._options.records_alone:
            return open_database(url)
        self._recording = open_for_recording(url, now=self._clock(), is_damaged=self._options.is_damaged)
        self.telemetry.database_set_aside.set(newest_set_aside(url) or 0.0)
        return self._recording.database

    def _build(self, settings: EngineSettings, notifiers: dict[str, Notifier]) -> None:
        config, clock = self.config, self._clock
        self._pool = WorkerPool(pool_options(config))
        self._engine = Engine(settings, clock=clock, exists=is_still_there, kept=self._options.kept)
        self._severity_told_min = min((route.severity_min for route in settings.routes), default=None)
        pipeline = Pipeline(
            database=self.database,
            engine=self._engine,
            pool=self._pool,
            options=measure_options(config),
            bytes_per_second=bytes_per_second_of_worker(config),
            io_pressure_max=config.measure.io_pressure_max,
            back_off_seconds_max=back_off_seconds_max(config),
            clock=clock,
        )
        parts = watch_parts(config, self.database, incomplete_timeout_seconds=self._options.incomplete_timeout_seconds)
        self._roots = parts.roots
        self._rules = parts.rules
        claims = shared_claims(config, self.database)
        self.backlog = Backlog(
            scanners=parts.scanners,
            tracker=parts.tracker,
            pipeline=pipeline,
            n_workers=config.measure.workers,
            skips_superseded=config.watch.skip_superseded and self._options.skips,
            wake=self._wake.set,
            claims=claims,
        )
        self._thinner = Thinner(self.database, n_recent=config.storage.sketches_recent)
        self.views = StoredViews(self.database, kept=self._options.kept)
        self._delivery = Delivery(
            self.database,
            notifiers,
            clock=clock,
            policy=DeliveryPolicy(
                give_up_seconds=config.notify.dead_letter_seconds,
                idle_seconds_max=IDLE_SECONDS if claims is None else SHARED_IDLE_SECONDS,
            ),
            on_result=self._delivered,
            extras=MessageExtras(link_of=lambda run: page_link(config, run), picture_of=Illustrator(self.database)),
        )
        if claims is not None:
            self._delivery.share(claims.may_send)
        exporters = build_exporters(
            config.export,
            self.registry,
            resolve=lambda reference: resolve_secret(reference).get_secret_value(),
            clock=clock,
        )
        self._pusher = Pusher(
            exporters if self._options.serves else {},
            interval_seconds=config.export.interval_seconds,
            telemetry=self.telemetry,
        )
        with self.database.read() as session:
            self.telemetry.remember_deliveries(telling.last_sent(session))
        self.telemetry.watch_backlog(self._oldest_seconds)
        self._collect_storage({s.name: s.severity or s.rule.severity for s in settings.rules})

    @property
    def url(self) -> str | None:
        """Return the address of the page, None while it is not served."""
        return None if self._server is None else self._server.url

    def start(self) -> None:
        """Serve the page, begin to deliver and to listen for events; raises ServeError when the port cannot be had."""
        serve = self.config.serve
        if self._options.serves and serve.enabled:
            settings = web_settings(self.config)
            app = create_app(settings, self.views.sources(), self.registry, self._readiness, self._clock)
            self._server = serve_in_thread(app, serve.host, serve.port, tls=settings.tls)
            log.info("serving the page and /metrics on %s", self._server.url)
        self._pusher.start()
        if self._options.notifies:
            self._delivery.start()
        if self._options.hints:
            self._hints = EventHints(self._hint)
            use_events = {"auto": None, "always": False, "never": True}[self.config.watch.polling]
            for root in self._roots:
                state = self._hints.watch(root.path, self._rules, use_events=use_events)
                if state.reason:
                    log.warning("%s is found by scans alone: %s", root.path, state.reason)
        self._scheduler = BackgroundScheduler(timezone="UTC", job_defaults={"coalesce": True, "max_instances": 1})
        for name, asked, seconds in (
            ("scan", self._scan_asked, self.config.watch.scan_interval_seconds),
            ("tick", self._tick_asked, TICK_SECONDS),
        ):
            self._scheduler.add_job(
                self._ask, "interval", seconds=seconds, args=[asked], id=name, misfire_grace_time=None
            )
        self._scheduler.start()
        reach("start.started")

    def run(self, *, until_done: bool = False) -> Ending:
        """Work until there is a reason to end; with `until_done` one is that everything that was found is stored."""
        self._scan_asked.set()
        self._tick_asked.set()
        while not self._stopping.is_set():
            self._wake.clear()
            try:
                self._turn()
                self._database_pause = 0.0
                self.telemetry.database_writable.set(1)
                self._on_progress()
            except (CorruptDatabaseError, DatabaseReplacedError) as error:
                self._note(error)
                if self._recording is None:
                    self._pause()
                    continue
                return Ending.DAMAGED if isinstance(error, CorruptDatabaseError) else Ending.REPLACED
            except DatabaseError as error:
                self._note(error)
                self._pause()
                continue
            except Exception:  # the supervisor of the loop: one bad turn must not end the watch
                log.exception("an unexpected error in the daemon's loop; going on")
                self.telemetry.supervisor_errors.inc()
                self._stopping.wait(1.0)
                continue
            self._is_ready = True
            if until_done and self.backlog.n_pending == 0:
                return Ending.DONE
            self._wake.wait(self._wait_seconds())
        if self._is_stopped:
            return Ending.STOPPED
        self._stopping.clear()
        return Ending.INTERRUPTED

    def stop(self) -> None:
        """Ask `run` to return for good; safe in a signal handler and from any thread."""
        self._is_stopped = True
        self._stopping.set()
        self._wake.set()

    def interrupt(self) -> None:
        """Ask `run` to return, so that it may be called again; safe in a signal handler and from any thread."""
        self._stopping.set()
        self._wake.set()

    def close(self) -> None:
        """Take everything down, within about ten seconds."""
        self.stop()
        reach("close.begin")
        if self._scheduler is not None:
            self._scheduler.shutdown(wait=False)
        if self._hints is not None:
            self._hints.stop()
        self._pool.shutdown(wait=True, cancel_futures=True)
        self.backlog.close()
        if self._options.notifies:
            self._delivery.stop(3.0)
        self._pusher.stop(3.0)
        if self._server is not None:
            self._server.stop()
        reach("close.database")
        self._close_database()

    def _close_database(self) -> None:
        if self._recording is not None:
            self._recording.close()
        self.database.close()

    def _turn(self) -> None:
        now = self._clock()
        self._scan(now)
        for event in self.backlog.advance(now):
            self._account(event)
            self._on_progress()
            if self._stopping.is_set():
                return
        if self._tick_asked.is_set():
            self._tick_asked.clear()
            self._tick(now)

    def _scan(self, now: float) -> None:
        with self._hinted_lock:
            hinted, self._hinted = self._hinted, set()
        asked: Iterable[str | None] = hinted
        if self._scan_asked.is_set():
            self._scan_asked.clear()
            asked = [None]
            if self._hints is not None:
                for state in self._hints.refresh():
                    log.warning("%s: %s", state.root, state.reason or "events arrive again")
        for root in asked:
            reach("scan.begin")
            with self.telemetry.scan_seconds.time():
                problems = self.backlog.scan(now, root)
            reach("scan.done")
            self.telemetry.scan_failures.inc(len(problems))
            for problem in problems[:10]:
                log.warning("cannot look at %s: %s", problem.path, problem.problem.message)

    def _tick(self, now: float) -> None:
        """Ask the rules about time, and note which runs have ended.

        A run that has ended is asked once more when that is noticed, and then as long as a silence holds back what
        somebody is still to be told.
        """
        reach("tick.begin")
        with self.database.read() as session:
            runs = queries.runs(session)
            untold = self._runs_with_untold_alerts(session)
        for run in runs:
            latest = max((t for t in (run.last_written_at, run.last_measured_at) if t is not None), default=now)
            active = now - latest < self.config.watch.run_idle_seconds
            if active != run.active:
                with self.database.write() as session:
                    writer.set_run_active(session, run.run, active)
            if active or run.active or run.run in untold:
                outcome = self._engine.tick(self.database, run.run, now)
                self._log_changes(outcome)
                self._count_failures([failure.rule for failure in outcome.failures])
                if outcome.n_enqueued:
                    self._delivery.wake()
        if self._thinner.is_due(now):
            reach("retention.begin")
            self._thinner.thin(runs, now)
            reach("retention.done")
        reach("tick.done")
        counts = self._pool.counts
        self.telemetry.worker_crashes.inc(counts.n_crashes + counts.n_timeouts - self._known_crashes)
        self._known_crashes = counts.n_crashes + counts.n_timeouts
        if self._hints is not None:
            self.telemetry.events.inc(self._hints.counts.n_events - self._known_events)
            self._known_events = self._hints.counts.n_events
            self.telemetry.event_overflows.inc(self._hints.counts.n_overflows - self._known_overflows)
            self._known_overflows = self._hints.counts.n_overflows

    def _runs_with_untold_alerts(self, session: Any) -> frozenset[str]:
        if self._severity_told_min is None:
            return frozenset()
        return telling.runs_with_untold_alerts(session, severity_min=self._severity_told_min)

    def _account(self, event: Recorded | Retried) -> None:
        """Count, log and pass on what happened to one checkpoint."""
        if isinstance(event, Retried):
            log.info("%s is tried again: %s: %s", event.checkpoint.path, event.problem.kind, event.problem.message)
        else:
            snapshot = event.snapshot
            problem = snapshot.problem
            if event.outcome.stored:
                self.telemetry.count_snapshot(
                    problem=None if problem is None else problem.kind,
                    bytes_read=snapshot.bytes_read,
                    duration_seconds=snapshot.duration_seconds,
                )
            else:
                log.info("%s was measured for nothing: it is stored already", snapshot.checkpoint.path)
            if problem is not None and problem.kind is ProblemKind.SUPERSEDED:
                log.info("%s: %s", snapshot.checkpoint.path, problem.message)
            elif problem is not None:
                log.warning("%s cannot be measured: %s: %s", snapshot.checkpoint.path, problem.kind, problem.message)
            self._log_changes(event.outcome)
            self._count_failures([failure.rule for failure in event.outcome.failures])
            self.views.forget()
            if event.outcome.n_enqueued:
                self._delivery.wake()
        self._on_event(event)

    def _log_changes(self, outcome: RecordOutcome) -> None:
        for change in outcome.changes:
            if change.transition in NOTIFIED:
                log.warning("%s %s: %s", change.alert.run, change.transition, change.alert.summary)

    def _count_failures(self, rules: Iterable[str]) -> None:
        for rule in rules:
            self.telemetry.rule_errors.labels(rule).inc()

    def _delivered(self, result: DeliveryResult) -> None:
        self.telemetry.count_notification(result.notifier, delivered=result.error is None, now=result.at)

    def _note(self, error: DatabaseError) -> None:
        """Say that the database cannot be used, wherever somebody may look."""
        log.error("%s", error)
        self._on_progress()  # waiting for room or for a lock is no reason to be ended
        self._is_ready = False
        self.telemetry.database_writable.set(0)
        self.telemetry.database_errors.inc()

    def _pause(self) -> None:
        first, longest = DATABASE_PAUSE_SECONDS
        self._database_pause = min(max(first, self._database_pause * 2), longest)
        log.info("trying the database again in %.0f s", self._database_pause)
        self._stopping.wait(self._database_pause)

    def _wait_seconds(self) -> float:
        due_at = self.backlog.next_due_at()
        if due_at is None:
            return WAIT_SECONDS_MAX
        return min(max(due_at - self._clock(), 0.0), WAIT_SECONDS_MAX)

    def _hint(self, root: str) -> None:
        with self._hinted_lock:
            self._hinted.add(root)
        self._wake.set()

    def _ask(self, asked: threading.Event) -> None:
        asked.set()
        self._wake.set()

    def _oldest_seconds(self) -> float:
        oldest = self.backlog.oldest_pending_at()
        return 0.0 if oldest is None else max(self._clock() - oldest, 0.0)

    def _readiness(self) -> str | None:
        return None if self._is_ready else "the first scan is not done, or the database cannot be used"

    def _collect_storage(self, rules: dict[str, Any]) -> None:
        serve = self.config.serve
        options = ExporterOptions(
            detail=MetricsDetail(serve.metrics_detail),
            series_max=serve.max_series,
            run_ttl_seconds=serve.run_ttl_seconds,
            rules=rules,
        )
        self.registry.register(StorageCollector(self.views.sources(), options, self._clock))


def _build_notifiers(config: Config) -> dict[str, Notifier]:
    """Return the configured notifiers by name; raises ConfigError."""
    built: dict[str, Notifier] = {}
    for index, entry in enumerate(config.notify.notifiers):
        own = notifier_config(entry, f"notify.notifiers.{index}")
        built[entry.label] = alert_registry.build_notifier(entry.kind, own)
    return built
