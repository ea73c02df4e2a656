"""The daemon's own counters: every name and help text in one place.

Direct instrumentation, for the daemon's own work only; what is known about runs is the exporter's. Label values come
from closed lists and start at 0, so that a rate over them is right from the first increase.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from storage.records import ProblemKind

_MEASURE_BUCKETS_SECONDS = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 900.0)
_SCAN_BUCKETS_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class Telemetry:
    """The metrics that the daemon's parts count into; one instance a registry.

    `notifiers`, `rules` and `exporters` are the configured names, `version` is the program's own.
    """

    def __init__(
        self,
        registry: CollectorRegistry,
        *,
        version: str,
        notifiers: Iterable[str] = (),
        rules: Iterable[str] = (),
        exporters: Iterable[str] = (),
    ) -> None:
        build_info = Gauge(
            "ckptwatch_build_info", "Always 1; the version is in the label.", ["version"], registry=registry
        )
        build_info.labels(version).set(1)
        self.snapshots = Counter("ckptwatch_snapshots", "Checkpoints measured or found unreadable.", registry=registry)
        self.snapshot_failures = Counter(
            "ckptwatch_snapshot_failures", "Checkpoints that could not be measured.", ["problem"], registry=registry
        )
        self.read_bytes = Counter("ckptwatch_read_bytes", "Bytes read from checkpoints.", registry=registry)
        self.measure_seconds = Histogram(
            "ckptwatch_measure_seconds",
            "Time to read and measure one checkpoint.",
            buckets=_MEASURE_BUCKETS_SECONDS,
            registry=registry,
        )
        self.oldest_unprocessed_seconds = Gauge(
            "ckptwatch_oldest_unprocessed_seconds",
            "Age of the oldest complete checkpoint that is not measured yet, 0 when there is none.",
            registry=registry,
        )
        self.scan_seconds = Histogram(
            "ckptwatch_scan_seconds",
            "Time to scan all watched roots once.",
            buckets=_SCAN_BUCKETS_SECONDS,
            registry=registry,
        )
        self.scan_failures = Counter(
            "ckptwatch_scan_failures", "Files or directories that a scan could not look at.", registry=registry
        )
        self.events = Counter("ckptwatch_events", "File system events received as hints.", registry=registry)
        self.event_overflows = Counter(
            "ckptwatch_event_overflows", "Times that events were lost and a scan took their place.", registry=registry
        )
        self.worker_crashes = Counter("ckptwatch_worker_crashes", "Measuring processes that died.", registry=registry)
        self.rule_errors = Counter(
            "ckptwatch_rule_errors", "Rules that failed with an unexpected error.", ["rule"], registry=registry
        )
        self.supervisor_errors = Counter(
            "ckptwatch_supervisor_errors", "Unexpected errors that the daemon caught and went on.", registry=registry
        )
        self.notifications = Counter(
            "ckptwatch_notifications", "Notifications delivered.", ["notifier"], registry=registry
        )
        self.notification_failures = Counter(
            "ckptwatch_notification_failures",
            "Deliveries that failed and are tried again or given up.",
            ["notifier"],
            registry=registry,
        )
        self.last_notification_success = Gauge(
            "ckptwatch_last_notification_success_timestamp_seconds",
            "Unix time of the last delivered notification, 0 when none ever was.",
            ["notifier"],
            registry=registry,
        )
        self.exports = Counter(
            "ckptwatch_exports",
            "Times that metrics were exported by other ways than a scrape.",
            ["exporter"],
            registry=registry,
        )
        self.export_failures = Counter(
            "ckptwatch_export_failures", "Exports of metrics that failed.", ["exporter"], registry=registry
        )
        self._watch_database(registry)
        self._notifiers = frozenset(notifiers)
        self._initialise(self._notifiers, rules, exporters)

    def _watch_database(self, registry: CollectorRegistry) -> None:
        self.database_writable = Gauge(
            "ckptwatch_database_writable", "1 when the last use of the database worked, else 0.", registry=registry
        )
        self.database_errors = Counter(
            "ckptwatch_database_errors", "Times that the database could not be used.", registry=registry
        )
        self.database_set_aside = Gauge(
            "ckptwatch_database_set_aside_timestamp_seconds",
            "Unix time when a damaged database was last set aside, 0 when none lies beside the present one.",
            registry=registry,
        )

    def _initialise(self, notifiers: Iterable[str], rules: Iterable[str], exporters: Iterable[str]) -> None:
        for problem in ProblemKind:
            self.snapshot_failures.labels(problem.value)
        for rule in rules:
            self.rule_errors.labels(rule)
        for notifier in notifiers:
            self.notifications.labels(notifier)
            self.notification_failures.labels(notifier)
            self.last_notification_success.labels(notifier)
        for exporter in exporters:
            self.exports.labels(exporter)
            self.export_failures.labels(exporter)

    def count_snapshot(self, *, problem: ProblemKind | None, bytes_read: int, duration_seconds: float) -> None:
        """Count one finished snapshot, a failed one when `problem` is given."""
        self.snapshots.inc()
        self.read_bytes.inc(bytes_read)
        if problem is None:
            self.measure_seconds.observe(duration_seconds)
        else:
            self.snapshot_failures.labels(problem.value).inc()

    def count_notification(self, notifier: str, *, delivered: bool, now: float) -> None:
        """Count one try to deliver; `now` is the Unix time of the try."""
        if delivered:
            self.notifications.labels(notifier).inc()
            self.last_notification_success.labels(notifier).set(now)
        else:
            self.notification_failures.labels(notifier).inc()

    def remember_deliveries(self, last_sent: Mapping[str, float]) -> None:
        """Take over, at the start, when each configured notifier was last reached (Unix times)."""
        for notifier in self._notifiers & last_sent.keys():
            self.last_notification_success.labels(notifier).set(last_sent[notifier])

    def count_export(self, exporter: str, *, worked: bool) -> None:
        """Count one try to export metrics."""
        (self.exports if worked else self.export_failures).labels(exporter).inc()

    def watch_backlog(self, oldest_seconds: Callable[[], float]) -> None:
        """Ask `oldest_seconds` for the age of the oldest unprocessed checkpoint at every scrape."""
        self.oldest_unprocessed_seconds.set_function(oldest_seconds)
