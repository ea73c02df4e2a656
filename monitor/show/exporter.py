"""Storage to Prometheus: constant metrics, built anew at each scrape from what the database holds.

A run that is gone leaves nothing behind, because nothing is remembered but the statistics of the newest snapshots,
which never change. A scrape never reads a checkpoint and never asks for a snapshot's tensors twice.
"""

from __future__ import annotations

import math
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample

from monitor.show.aggregate import STATISTICS, StatisticRow, group_rows, nonfinite_by_kind, tensor_rows
from monitor.show.grouping import GROUPS_MAX
from monitor.show.views import Measurement, RunView, SourceError, Sources
from monitor.show.visible_text import unique_labels, visible
from storage.records import Severity, SnapshotStatus, StoredSnapshot, TensorKind

RUN_METRICS: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "ckptwatch_checkpoint_step": ("Training step of the newest checkpoint.", ("run",)),
    "ckptwatch_checkpoint_timestamp_seconds": ("Unix time at which the newest checkpoint was written.", ("run",)),
    "ckptwatch_checkpoint_size_bytes": ("Size on disk of the newest checkpoint.", ("run",)),
    "ckptwatch_checkpoint_readable": ("1 when the newest checkpoint could be measured, 0 when it could not.", ("run",)),
    "ckptwatch_run_active": ("1 while the run is expected to write checkpoints, 0 after it ended.", ("run",)),
    "ckptwatch_run_healthy": ("1 when the newest weights are fit to go on with, 0 when they are not.", ("run",)),
    "ckptwatch_run_attempt": ("How often the run started in its directory, from 1.", ("run",)),
    "ckptwatch_run_last_good_step": ("Training step of the newest checkpoint worth resuming from.", ("run",)),
    "ckptwatch_run_nonfinite_elements": (
        "NaN and infinite elements in the newest measured checkpoint, by kind of tensor.",
        ("run", "kind"),
    ),
    "ckptwatch_run_weight_norm": ("L2 norm of all parameters in the newest measured checkpoint.", ("run",)),
    "ckptwatch_run_update_ratio": ("Relative L2 change of all parameters per training step.", ("run",)),
    "ckptwatch_run_gradient_norm": (
        "Gradient norm since the previous checkpoint, by source.",
        ("run", "source"),
    ),
    "ckptwatch_alert_firing": ("Number of alerts firing now.", ("run", "rule", "severity")),
}

OWN_METRICS: Mapping[str, str] = {
    "ckptwatch_series_dropped": "Series left out of this scrape by the limit; estimated for runs left out altogether.",
    "ckptwatch_database_up": "1 when the database answered this scrape, 0 when it did not.",
}


class MetricsDetail(StrEnum):
    """How fine the exported statistics are; every tensor's are always in the database."""

    OFF = "off"
    GROUPS = "groups"
    TENSORS = "tensors"


@dataclass(frozen=True, slots=True, kw_only=True)
class ExporterOptions:
    """What a scrape may cost. `rules` are initialised to 0 firing alerts for every run, with their severity."""

    detail: MetricsDetail = MetricsDetail.GROUPS
    series_max: int = 10_000
    run_ttl_seconds: float = 900.0
    rules: Mapping[str, Severity] = field(default_factory=dict)


_Row = tuple[Sample, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Detail:
    nonfinite: _Row
    rows: tuple[_Row, ...]


class StorageCollector(Collector):
    """Collect every run's metrics at each scrape.

    Runs that ended more than `run_ttl_seconds` ago are left out; the newest, active runs come first when
    `series_max` does not suffice, and what was left out is counted in `ckptwatch_series_dropped`. A database that
    cannot answer gives `ckptwatch_database_up` 0 and no run's series, never old numbers.
    """

    def __init__(self, sources: Sources, options: ExporterOptions, clock: Callable[[], float]) -> None:
        self._sources = sources
        self._options = options
        self._clock = clock
        self._lock = threading.Lock()  # two scrapes may come at once
        self._details: dict[tuple[int, str], _Detail] = {}  # of the snapshots in the last scrape
        self._ended_at: dict[str, float] = {}  # runs seen to end while we watched
        self._active: set[str] = set()

    def describe(self) -> Iterator[Metric]:
        """Name every family without touching the database, so that registering is free and filters work."""
        yield from _families({})

    def collect(self) -> Iterator[Metric]:
        """Yield every family of this scrape."""
        try:
            views: Sequence[RunView] = self._sources.views()
            with self._lock:
                samples, n_dropped = self._samples(self._shown(views))
            database_up = 1.0
        except SourceError:
            samples, n_dropped, database_up = [], 0, 0.0
        by_name: dict[str, list[Sample]] = {}
        for sample in samples:
            by_name.setdefault(sample.name, []).append(sample)
        by_name["ckptwatch_series_dropped"] = [Sample("ckptwatch_series_dropped", {}, float(n_dropped))]
        by_name["ckptwatch_database_up"] = [Sample("ckptwatch_database_up", {}, database_up)]
        for family in _families(by_name):
            if family.samples:
                yield family

    def _shown(self, views: Sequence[RunView]) -> list[RunView]:
        """Return the runs still worth a series, active ones first, then the most recently written."""
        now = self._clock()
        names = {view.run.run for view in views}
        active = {view.run.run for view in views if view.run.active}
        for name in self._active - active:
            self._ended_at[name] = now
        self._active = active
        self._ended_at = {name: at for name, at in self._ended_at.items() if name in names - active}

        def is_shown(view: RunView) -> bool:
            if view.run.active:
                return True
            ended_at = self._ended_at.get(view.run.run, _last_activity(view))
            return now - ended_at <= self._options.run_ttl_seconds

        return sorted(filter(is_shown, views), key=lambda view: (not view.run.active, -_last_activity(view)))

    def _samples(self, views: Sequence[RunView]) -> tuple[list[Sample], int]:
        """Return the series of this scrape and how many were left out; run by run first, then the details."""
        labels = unique_labels(view.run.run for view in views)
        samples: list[Sample] = []
        n_dropped = 0
        seen: set[tuple[int, str]] = set()
        for view in views:
            label = labels[view.run.run]
            row = (*run_samples(view, label, self._options.rules), *self._nonfinite(view.measured, label, seen))
            if len(samples) + len(row) <= self._options.series_max:
                samples += row
            else:
                n_dropped += len(row)
        for view in views:
            if view.measured is None or self._options.detail is MetricsDetail.OFF:
                continue
            if n_dropped:  # full: what is not exported is not even loaded
                n_dropped += len(STATISTICS) * min(GROUPS_MAX, view.measured.n_tensors)
                continue
            for row in self._detail(view.measured, labels[view.run.run], seen).rows:
                if len(samples) + len(row) <= self._options.series_max:
                    samples += row
                else:
                    n_dropped += len(row)
        self._details = {key: detail for key, detail in self._details.items() if key in seen}
        return samples, n_dropped

    def _nonfinite(self, snapshot: StoredSnapshot | None, run_label: str, seen: set[tuple[int, str]]) -> _Row:
        if snapshot is None:
            return ()
        if snapshot.n_nonfinite == 0:
            return _nonfinite_samples(dict.fromkeys(TensorKind, 0), run_label)
        return self._detail(snapshot, run_label, seen).nonfinite

    def _detail(self, snapshot: StoredSnapshot, run_label: str, seen: set[tuple[int, str]]) -> _Detail:
        """Return what the tensors of one snapshot give; worked out once, since a snapshot never changes."""
        key = (snapshot.id, run_label)
        seen.add(key)
        detail = self._details.get(key)
        if detail is None:
            measurement = self._sources.measurement(snapshot.id)
            detail = _detail_of(measurement, snapshot.step, run_label, self._options.detail)
            self._details[key] = detail
        return detail


def run_samples(view: RunView, label: str, rules: Mapping[str, Severity]) -> _Row:
    """Return the samples of one run that need no tensor; unknown and non-finite numbers have no sample."""
    newest, measured = view.newest, view.measured
    values: dict[str, float | None] = {
        "ckptwatch_run_active": float(view.run.active),
        "ckptwatch_run_healthy": float(view.healthy),
        "ckptwatch_run_attempt": float(view.run.attempt),
        "ckptwatch_run_last_good_step": None if view.last_good is None else view.last_good.step,
    }
    if newest is not None:
        values |= {
            "ckptwatch_checkpoint_step": newest.step,
            "ckptwatch_checkpoint_timestamp_seconds": newest.written_at,
            "ckptwatch_checkpoint_size_bytes": newest.size_bytes,
            "ckptwatch_checkpoint_readable": float(newest.status is SnapshotStatus.COMPLETE),
        }
    if measured is not None:
        values |= {
            "ckptwatch_run_weight_norm": measured.weight_norm,
            "ckptwatch_run_update_ratio": measured.update_ratio,
        }
    samples = [
        Sample(name, {"run": label}, float(value))
        for name, value in values.items()
        if value is not None and math.isfinite(value)
    ]
    gradient = None if measured is None else measured.gradient
    if gradient is not None and math.isfinite(gradient.norm):
        labels = {"run": label, "source": visible(gradient.source)}
        samples.append(Sample("ckptwatch_run_gradient_norm", labels, gradient.norm))
    firing = Counter((alert.rule, alert.severity.label) for alert in view.firing)
    for rule, severity in dict.fromkeys([*((rule, severity.label) for rule, severity in rules.items()), *firing]):
        labels = {"run": label, "rule": visible(rule), "severity": severity}
        samples.append(Sample("ckptwatch_alert_firing", labels, float(firing[rule, severity])))
    return tuple(samples)


def _detail_of(measurement: Measurement, step: int | None, run_label: str, detail: MetricsDetail) -> _Detail:
    rows: list[_Row] = []
    if detail is not MetricsDetail.OFF:
        rows += _rows("group", group_rows(measurement, step), run_label)
    if detail is MetricsDetail.TENSORS:
        rows += _rows("tensor", tensor_rows(measurement, step), run_label)
    return _Detail(
        nonfinite=_nonfinite_samples(nonfinite_by_kind(measurement.tensors), run_label),
        rows=tuple(rows),
    )


def _rows(what: str, rows: Sequence[StatisticRow], run_label: str) -> list[_Row]:
    labels = unique_labels(row.name for row in rows)
    return [
        tuple(
            Sample(f"ckptwatch_{what}_{statistic}", {"run": run_label, what: labels[row.name]}, value)
            for statistic, value in row.values.items()
        )
        for row in rows
    ]


def _nonfinite_samples(counts: Mapping[TensorKind, int], run_label: str) -> _Row:
    return tuple(
        Sample("ckptwatch_run_nonfinite_elements", {"run": run_label, "kind": kind.value}, float(count))
        for kind, count in counts.items()
    )


def _last_activity(view: RunView) -> float:
    return max(view.run.last_written_at or 0.0, view.run.last_measured_at or 0.0)


def _families(samples: Mapping[str, list[Sample]]) -> list[Metric]:
    """Return every family that this collector can export, filled with its samples."""
    families: list[Metric] = []
    for name, (text, labels) in RUN_METRICS.items():
        families.append(GaugeMetricFamily(name, text, labels=labels))
    for what in ("group", "tensor"):
        for statistic, text in STATISTICS.items():
            name = f"ckptwatch_{what}_{statistic}"
            families.append(GaugeMetricFamily(name, f"By {what}: {text}", labels=("run", what)))
    for name, text in OWN_METRICS.items():
        families.append(GaugeMetricFamily(name, text))
    for family in families:
        family.samples = samples.get(family.name, [])
    return families
