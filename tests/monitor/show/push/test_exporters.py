"""Every way out, to the real thing where there is one: Prometheus, node_exporter, the OTLP protocol's own parser."""

from __future__ import annotations

import os
import shutil
import subprocess
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from alerts.notifier import DeliveryError
from monitor.config import ConfigError, load
from monitor.show.push.otlp import OtlpExporter
from monitor.show.push.pusher import Exporter, Pusher
from monitor.show.push.remote_write import RemoteWriteExporter, basic_authorization, write_request
from monitor.show.push.textfile import TextfileExporter
from monitor.show.telemetry import Telemetry
from tests.support.daemons import wait_for
from tests.support.prometheus import Prometheus, needs_stack
from tests.support.receivers import HttpReceiver, free_port

NODE_EXPORTER = shutil.which("prometheus-node-exporter") or shutil.which("node_exporter")
HOSTILE = 'a"b\\c\nd\u202eé\U0001f600'


@pytest.fixture
def receiver() -> Iterator[HttpReceiver]:
    with HttpReceiver() as running:
        yield running


@pytest.fixture
def registry() -> CollectorRegistry:
    made = CollectorRegistry()
    gauge = Gauge("ckptwatch_run_weight_norm", "Norm.", ["run"], registry=made)
    gauge.labels("gpt").set(1.5)
    gauge.labels(HOSTILE).set(-2.0)
    Counter("ckptwatch_events", "Events.", registry=made).inc(3)
    seconds = Histogram("ckptwatch_scan_seconds", "Time.", buckets=(0.1, 1.0), registry=made)
    for value in (0.05, 0.5, 0.6, 5.0):
        seconds.observe(value)
    return made


def drop(registry: CollectorRegistry, run: str) -> None:
    gauge = registry._names_to_collectors["ckptwatch_run_weight_norm"]
    assert isinstance(gauge, Gauge)
    gauge.remove(run)


# ---- textfile


def test_the_textfile_is_replaced_whole_can_be_read_by_others_and_goes_away(
    registry: CollectorRegistry, tmp_path: Path
) -> None:
    path = tmp_path / "ckptwatch.prom"
    exporter = TextfileExporter(registry, str(path))
    exporter.push()
    first = path.stat()
    assert first.st_mode & 0o777 == 0o644
    assert 'ckptwatch_run_weight_norm{run="gpt"} 1.5' in path.read_text()
    exporter.push()
    assert path.stat().st_ino != first.st_ino
    assert os.listdir(tmp_path) == [path.name]
    exporter.finish()
    exporter.finish()
    assert os.listdir(tmp_path) == []


def test_a_textfile_that_cannot_be_written_leaves_nothing_behind(registry: CollectorRegistry, tmp_path: Path) -> None:
    (tmp_path / "ckptwatch.prom").mkdir()
    with pytest.raises(OSError, match="directory"):
        TextfileExporter(registry, str(tmp_path / "ckptwatch.prom")).push()
    assert os.listdir(tmp_path) == ["ckptwatch.prom"]
    with pytest.raises(FileNotFoundError):
        TextfileExporter(registry, str(tmp_path / "nowhere" / "x.prom")).push()


@pytest.mark.skipif(NODE_EXPORTER is None, reason="node_exporter is not installed (Debian: prometheus-node-exporter)")
def test_node_exporter_serves_the_textfile(registry: CollectorRegistry, tmp_path: Path) -> None:
    TextfileExporter(registry, str(tmp_path / "ckptwatch.prom")).push()
    port = free_port()
    arguments = ["--collector.disable-defaults", "--collector.textfile", f"--collector.textfile.directory={tmp_path}"]
    with subprocess.Popen(
        [str(NODE_EXPORTER), *arguments, f"--web.listen-address=127.0.0.1:{port}"], stderr=subprocess.DEVNULL
    ) as process:
        try:

            def scrape() -> str | None:
                try:
                    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
                        return str(answer.read().decode())
                except OSError:
                    return None

            text = wait_for("node_exporter", scrape)
        finally:
            process.terminate()
    assert 'ckptwatch_run_weight_norm{run="gpt"} 1.5' in text
    assert "node_textfile_scrape_error 0" in text


# ---- remote write


def remote_write(registry: CollectorRegistry, url: str, **more: Any) -> RemoteWriteExporter:
    labels = {"job": "ckptwatch", "instance": "node-1"}
    return RemoteWriteExporter(registry, url, labels=labels, clock=time.time, **more)


@needs_stack
def test_prometheus_takes_remote_write_and_notices_at_once_what_has_ended(
    registry: CollectorRegistry, tmp_path: Path
) -> None:
    with Prometheus(tmp_path / "prometheus", "127.0.0.1:1") as prometheus:
        exporter = remote_write(registry, f"{prometheus.url}/api/v1/write")
        exporter.push()
        runs = {series["run"] for series in prometheus.labels("ckptwatch_run_weight_norm")}
        assert runs == {"gpt", HOSTILE}
        assert prometheus.value('ckptwatch_run_weight_norm{run="gpt",job="ckptwatch",instance="node-1"}') == 1.5
        assert prometheus.value('ckptwatch_scan_seconds_bucket{le="1.0"}') == 3.0
        assert prometheus.value("ckptwatch_events_total") == 3.0
        assert prometheus.labels("ckptwatch_events_created") == []
        drop(registry, "gpt")
        exporter.push()
        assert [series["run"] for series in prometheus.labels("ckptwatch_run_weight_norm")] == [HOSTILE]
        exporter.finish()
        assert prometheus.labels('{instance="node-1"}') == []


def test_remote_write_sends_what_the_protocol_asks_for(registry: CollectorRegistry, receiver: HttpReceiver) -> None:
    authorization = basic_authorization("me", "pässword")
    remote_write(registry, receiver.url, authorization=authorization).push()
    (request,) = receiver.received
    assert request.headers["Content-Type"] == "application/x-protobuf"
    assert request.headers["Content-Encoding"] == "snappy"
    assert request.headers["X-Prometheus-Remote-Write-Version"] == "0.1.0"
    assert request.headers["Authorization"] == authorization == "Basic bWU6cMOkc3N3b3Jk"


def test_a_request_is_the_bytes_that_protobuf_would_write() -> None:
    series = (("__name__", "a"), ("run", "b"))
    written = write_request([(series, b"\x00\x00\x00\x00\x00\x00\xf8\x3f")], 300)
    label = b"\x0a\x0d\x0a\x08__name__\x12\x01a" + b"\x0a\x08\x0a\x03run\x12\x01b"
    sample = b"\x12\x0c\x09\x00\x00\x00\x00\x00\x00\xf8\x3f\x10\xac\x02"
    assert written == b"\x0a" + bytes([len(label + sample)]) + label + sample


def test_many_series_go_out_in_batches(receiver: HttpReceiver) -> None:
    registry = CollectorRegistry()
    gauge = Gauge("g", "G.", ["n"], registry=registry)
    for n in range(4500):
        gauge.labels(str(n)).set(n)
    remote_write(registry, receiver.url).push()
    assert len(receiver.received) == 3


def test_what_a_failed_push_may_have_brought_is_ended_later(receiver: HttpReceiver) -> None:
    registry = CollectorRegistry()
    gauge = Gauge("g", "G.", ["n"], registry=registry)
    gauge.labels("1").set(1)
    exporter = remote_write(registry, receiver.url)
    receiver.answer(500)
    with pytest.raises(DeliveryError):
        exporter.push()
    gauge.clear()
    receiver.answer(200)
    exporter.push()
    exporter.push()
    assert len(receiver.received) == 2  # the end of one series, and then nothing


# ---- OTLP


def test_otlp_brings_gauges_sums_and_histograms(registry: CollectorRegistry, receiver: HttpReceiver) -> None:
    exporter = OtlpExporter(
        registry,
        f"{receiver.url}/v1/metrics",
        headers={"Authorization": "Bearer token"},
        attributes={"service.instance.id": "node-1"},
        clock=lambda: 1_700_000_000.0,
    )
    exporter.push()
    exporter.finish()
    (request,) = receiver.received
    assert {name.lower(): value for name, value in request.headers.items()}["authorization"] == "Bearer token"
    message = ExportMetricsServiceRequest.FromString(request.body)
    (resource,) = message.resource_metrics
    attributes = {pair.key: pair.value.string_value for pair in resource.resource.attributes}
    assert attributes == {"service.name": "ckptwatch", "service.instance.id": "node-1"}
    metrics = {metric.name: metric for metric in resource.scope_metrics[0].metrics}
    assert set(metrics) == {"ckptwatch_run_weight_norm", "ckptwatch_events", "ckptwatch_scan_seconds"}
    points = {
        p.attributes[0].value.string_value: p.as_double for p in metrics["ckptwatch_run_weight_norm"].gauge.data_points
    }
    assert points == {"gpt": 1.5, HOSTILE: -2.0}
    events = metrics["ckptwatch_events"].sum
    assert (events.is_monotonic, events.aggregation_temporality, events.data_points[0].as_double) == (True, 2, 3.0)
    (scan,) = metrics["ckptwatch_scan_seconds"].histogram.data_points
    assert (scan.count, list(scan.bucket_counts), list(scan.explicit_bounds)) == (4, [1, 2, 1], [0.1, 1.0])
    assert scan.sum == pytest.approx(6.15)
    assert not scan.HasField("min")


def test_an_otlp_receiver_that_refuses_is_an_error(registry: CollectorRegistry, receiver: HttpReceiver) -> None:
    receiver.answer(400)
    exporter = OtlpExporter(registry, receiver.url, headers={}, attributes={})
    with pytest.raises(DeliveryError):
        exporter.push()
    exporter.finish()


# ---- the threads


class Counting:
    """An exporter that fails as it is told to."""

    def __init__(self) -> None:
        self.n_pushed = 0
        self.n_finished = 0
        self.failing: Exception | None = None
        self.pushed = threading.Event()

    def push(self) -> None:
        self.n_pushed += 1
        if self.n_pushed >= 3:
            self.pushed.set()
        if self.failing is not None:
            raise self.failing

    def finish(self) -> None:
        self.n_finished += 1


def pusher(exporters: dict[str, Exporter]) -> tuple[Pusher, CollectorRegistry]:
    registry = CollectorRegistry()
    return Pusher(exporters, interval_seconds=0.01, telemetry=Telemetry(registry, version="1")), registry


def test_every_exporter_pushes_again_and_again_and_says_when_it_ends() -> None:
    counting = Counting()
    running, registry = pusher({"x": counting})
    running.start()
    assert counting.pushed.wait(20)
    running.stop(20.0)
    assert counting.n_finished == 1
    assert registry.get_sample_value("ckptwatch_exports_total", {"exporter": "x"}) == counting.n_pushed + 1


@pytest.mark.parametrize("error", [DeliveryError("down"), OSError("full"), RuntimeError("https://x/SECRET")])
def test_a_failure_is_counted_and_ends_nothing(error: Exception, caplog: pytest.LogCaptureFixture) -> None:
    counting = Counting()
    counting.failing = error
    running, registry = pusher({"x": counting})
    running.start()
    assert counting.pushed.wait(20)
    running.stop(20.0)
    assert registry.get_sample_value("ckptwatch_export_failures_total", {"exporter": "x"}) == counting.n_pushed
    assert "SECRET" not in caplog.text


# ---- configuration


@pytest.mark.parametrize(
    ("section", "path"),
    [
        ({"textfile": "metrics.prom"}, "export.textfile"),
        ({"textfile": "/var/lib/metrics.txt"}, "export.textfile"),
        ({"remote_write": {"url": "http://example.org/write"}}, "export.remote_write"),
        ({"remote_write": {"url": "https://example.org", "username": "me"}}, "export.remote_write"),
        ({"remote_write": {"url": "https://example.org", "bearer_token": "plain"}}, "export.remote_write.bearer_token"),
        ({"otlp": {"endpoint": "example.org"}}, "export.otlp"),
        ({"otlp": {"endpoint": "https://x", "headers": {"A": "env:NO_SUCH"}}}, "export.otlp.headers.A"),
        ({"interval_seconds": 0}, "export.interval_seconds"),
    ],
)
def test_a_wrong_section_names_its_key(section: dict[str, Any], path: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(None, {"export": section})
    assert [problem.path for problem in caught.value.problems] == [path]
