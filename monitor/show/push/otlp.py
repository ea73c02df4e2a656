"""Metrics by OTLP over HTTP, for an OpenTelemetry collector (extra `otlp`).

The registry's families become OTLP metrics one to one: counters are cumulative sums, histograms keep their buckets. The
library is imported when the exporter is built.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.metrics_core import Metric
from prometheus_client.samples import Sample

from alerts.notifier import SEND_SECONDS_MAX, DeliveryError

NANOSECONDS = 1_000_000_000


class OtlpExporter:
    """Sends every family of the registry; `attributes` describe this daemon, `headers` may hold secrets."""

    def __init__(
        self,
        registry: CollectorRegistry,
        endpoint: str,
        *,
        headers: Mapping[str, str],
        attributes: Mapping[str, str],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._registry = registry
        self._clock = clock
        self._began = int(clock() * NANOSECONDS)
        self._points = import_module("opentelemetry.sdk.metrics.export")
        resources = import_module("opentelemetry.sdk.resources")
        self._resource = resources.Resource({"service.name": "ckptwatch", **attributes})
        self._scope = import_module("opentelemetry.sdk.util.instrumentation").InstrumentationScope("ckptwatch")
        exporter = import_module("opentelemetry.exporter.otlp.proto.http.metric_exporter")
        self._exporter = exporter.OTLPMetricExporter(endpoint=endpoint, headers=dict(headers), timeout=SEND_SECONDS_MAX)

    def push(self) -> None:
        """Send what is true now; raise DeliveryError when the receiver did not take it."""
        at = int(self._clock() * NANOSECONDS)
        metrics = [found for family in self._registry.collect() if (found := self._metric(family, at)) is not None]
        points = self._points
        scope = points.ScopeMetrics(scope=self._scope, metrics=metrics, schema_url="")
        whole = points.ResourceMetrics(resource=self._resource, scope_metrics=[scope], schema_url="")
        result = self._exporter.export(points.MetricsData(resource_metrics=[whole]))
        if result is not points.MetricExportResult.SUCCESS:
            raise DeliveryError("the OTLP receiver did not take the metrics")

    def finish(self) -> None:
        """Close the connection; OTLP has no word for the end of a gauge."""
        self._exporter.shutdown()

    def _metric(self, family: Metric, at: int) -> Any | None:
        points = self._points
        cumulative = points.AggregationTemporality.CUMULATIVE
        data: Any
        if family.type == "histogram":
            data = points.Histogram(data_points=self._histogram(family, at), aggregation_temporality=cumulative)
        elif family.type == "counter":
            totals = [self._number(s, at) for s in family.samples if s.name.endswith("_total")]
            data = points.Sum(data_points=totals, aggregation_temporality=cumulative, is_monotonic=True)
        else:
            data = points.Gauge(data_points=[self._number(sample, at) for sample in family.samples])
        if not data.data_points:
            return None
        return points.Metric(name=family.name, description=family.documentation, unit=family.unit, data=data)

    def _number(self, sample: Sample, at: int) -> Any:
        return self._points.NumberDataPoint(
            attributes=dict(sample.labels), start_time_unix_nano=self._began, time_unix_nano=at, value=sample.value
        )

    def _histogram(self, family: Metric, at: int) -> list[Any]:
        """Return one point a label set; Prometheus counts up to each bound, OTLP between two."""
        found: dict[tuple[tuple[str, str], ...], dict[str, Any]] = {}
        for sample in family.samples:
            labels = tuple(sorted((k, v) for k, v in sample.labels.items() if k != "le"))
            point = found.setdefault(labels, {"upto": [], "sum": 0.0})
            if sample.name.endswith("_bucket"):
                point["upto"].append((float(sample.labels["le"]), int(sample.value)))
            elif sample.name.endswith("_sum"):
                point["sum"] = sample.value
        made = []
        for labels, point in found.items():
            upto = sorted(point["upto"])
            counts = [n for _, n in upto]
            made.append(
                self._points.HistogramDataPoint(
                    attributes=dict(labels),
                    start_time_unix_nano=self._began,
                    time_unix_nano=at,
                    count=counts[-1],
                    sum=point["sum"],
                    bucket_counts=[n - before for before, n in zip([0, *counts], counts, strict=False)],
                    explicit_bounds=[bound for bound, _ in upto[:-1]],
                    min=None,  # a histogram of Prometheus does not know them
                    max=None,
                )
            )
        return made
