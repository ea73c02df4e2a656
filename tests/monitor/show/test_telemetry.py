from __future__ import annotations

from prometheus_client import CollectorRegistry, generate_latest

from monitor.show.telemetry import Telemetry
from storage.records import ProblemKind


def value(registry: CollectorRegistry, name: str, **labels: str) -> float | None:
    return registry.get_sample_value(name, labels)


def test_every_known_label_value_starts_at_zero() -> None:
    registry = CollectorRegistry()
    Telemetry(registry, version="1.2.3", notifiers=("slack", "email"), rules=("nonfinite",))
    assert value(registry, "ckptwatch_build_info", version="1.2.3") == 1
    for kind in ProblemKind:
        assert value(registry, "ckptwatch_snapshot_failures_total", problem=kind.value) == 0
    for notifier in ("slack", "email"):
        assert value(registry, "ckptwatch_notifications_total", notifier=notifier) == 0
        assert value(registry, "ckptwatch_notification_failures_total", notifier=notifier) == 0
        assert value(registry, "ckptwatch_last_notification_success_timestamp_seconds", notifier=notifier) == 0
    assert value(registry, "ckptwatch_rule_errors_total", rule="nonfinite") == 0
    for name in ("snapshots", "read_bytes", "worker_crashes", "events", "scan_failures", "supervisor_errors"):
        assert value(registry, f"ckptwatch_{name}_total") == 0


def test_a_failed_snapshot_counts_as_one_and_is_not_timed() -> None:
    registry = CollectorRegistry()
    telemetry = Telemetry(registry, version="1")
    telemetry.count_snapshot(problem=None, bytes_read=1000, duration_seconds=0.3)
    telemetry.count_snapshot(problem=ProblemKind.CORRUPT, bytes_read=24, duration_seconds=0.1)
    assert value(registry, "ckptwatch_snapshots_total") == 2
    assert value(registry, "ckptwatch_read_bytes_total") == 1024
    assert value(registry, "ckptwatch_snapshot_failures_total", problem="corrupt") == 1
    assert value(registry, "ckptwatch_measure_seconds_count") == 1
    assert value(registry, "ckptwatch_measure_seconds_bucket", le="0.5") == 1
    assert value(registry, "ckptwatch_measure_seconds_bucket", le="0.25") == 0


def test_a_delivery_moves_the_time_of_the_last_success_and_a_failure_does_not() -> None:
    registry = CollectorRegistry()
    telemetry = Telemetry(registry, version="1", notifiers=("slack",))
    telemetry.count_notification("slack", delivered=True, now=50.0)
    telemetry.count_notification("slack", delivered=False, now=60.0)
    assert value(registry, "ckptwatch_notifications_total", notifier="slack") == 1
    assert value(registry, "ckptwatch_notification_failures_total", notifier="slack") == 1
    assert value(registry, "ckptwatch_last_notification_success_timestamp_seconds", notifier="slack") == 50


def test_the_backlog_is_asked_for_at_each_scrape() -> None:
    registry = CollectorRegistry()
    ages = iter([0.0, 12.5])
    Telemetry(registry, version="1").watch_backlog(lambda: next(ages))
    first = generate_latest(registry)
    second = generate_latest(registry)
    assert b"ckptwatch_oldest_unprocessed_seconds 0.0\n" in first
    assert b"ckptwatch_oldest_unprocessed_seconds 12.5\n" in second


def test_the_last_delivery_is_remembered_over_a_restart_for_those_who_are_still_configured() -> None:
    registry = CollectorRegistry()
    telemetry = Telemetry(registry, version="1", notifiers=("slack", "email"))
    telemetry.remember_deliveries({"slack": 1234.5, "pager": 99.0})
    name = "ckptwatch_last_notification_success_timestamp_seconds"
    assert value(registry, name, notifier="slack") == 1234.5
    assert value(registry, name, notifier="email") == 0
    assert value(registry, name, notifier="pager") is None


def test_the_ways_of_export_start_at_zero_too() -> None:
    registry = CollectorRegistry()
    telemetry = Telemetry(registry, version="1", exporters=("textfile", "otlp"))
    telemetry.count_export("otlp", worked=False)
    for exporter, failed in (("textfile", 0), ("otlp", 1)):
        assert value(registry, "ckptwatch_exports_total", exporter=exporter) == 0
        assert value(registry, "ckptwatch_export_failures_total", exporter=exporter) == failed
