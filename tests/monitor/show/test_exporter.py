from __future__ import annotations

import math
import shutil
import subprocess
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from monitor.show.exporter import ExporterOptions, MetricsDetail, StorageCollector
from monitor.show.telemetry import Telemetry
from monitor.show.views import Measurement
from storage.records import AlertState, GradientEstimate, Severity, TensorKind
from tests.support.show_records import NOW, MemorySources, alert, drift, failed, snapshot, summary, tensor, view

Series = dict[tuple[str, frozenset[tuple[str, str]]], float]


class Clock:
    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> float:
        return self.now


def series_of(text: str) -> Series:
    """Parse an exposition with the reference parser; a series that is there twice fails."""
    found: Series = {}
    for family in parse_text(text):
        for sample in family.samples:
            key = (sample.name, frozenset(sample.labels.items()))
            assert key not in found
            found[key] = sample.value
    return found


class Exporter:
    """A collector over records in memory, scraped through a registry as Prometheus would."""

    def __init__(self, memory: MemorySources, options: ExporterOptions | None = None) -> None:
        self.memory = memory
        self.clock = Clock()
        self.registry = CollectorRegistry()
        self.registry.register(StorageCollector(memory.sources, options or ExporterOptions(), self.clock))

    def scrape(self) -> Series:
        return series_of(generate_latest(self.registry).decode())

    def value(self, name: str, **labels: str) -> float | None:
        return self.scrape().get((name, frozenset(labels.items())))


def names(series: Series) -> set[str]:
    return {name for name, _ in series}


def test_registering_asks_the_database_nothing() -> None:
    memory = MemorySources(error="asked too early")
    Exporter(memory)


def test_a_run_is_described_by_its_newest_checkpoint() -> None:
    exporter = Exporter(MemorySources(runs=[view("gpt", last_good=snapshot(11))]))
    series = exporter.scrape()
    run = frozenset({("run", "gpt")})
    assert series["ckptwatch_checkpoint_step", run] == 1200
    assert series["ckptwatch_checkpoint_timestamp_seconds", run] == NOW - 40
    assert series["ckptwatch_checkpoint_size_bytes", run] == 497_774_208
    assert series["ckptwatch_checkpoint_readable", run] == 1
    assert series["ckptwatch_run_active", run] == 1
    assert series["ckptwatch_run_healthy", run] == 1
    assert series["ckptwatch_run_last_good_step", run] == 1100
    assert series["ckptwatch_run_weight_norm", run] == 524.5
    assert series["ckptwatch_run_update_ratio", run] == 0.0004
    assert series["ckptwatch_run_gradient_norm", run | {("source", "adam_window")}] == 0.8
    assert {
        kind.value: series["ckptwatch_run_nonfinite_elements", run | {("kind", kind.value)}] for kind in TensorKind
    } == {"parameter": 0, "buffer": 0, "optimizer": 0, "other": 0}


def test_an_unreadable_checkpoint_keeps_the_last_measured_weights_and_says_that_it_is_unreadable() -> None:
    bad = snapshot(11, n_nonfinite=3)
    memory = MemorySources(
        runs=[view(newest=failed(12), recent=(bad, failed(12)))],
        measurements={11: Measurement(tensors=(tensor(n_nan=3),))},
    )
    exporter = Exporter(memory)
    assert exporter.value("ckptwatch_checkpoint_readable", run="gpt") == 0
    assert exporter.value("ckptwatch_checkpoint_step", run="gpt") == 1200
    assert exporter.value("ckptwatch_run_weight_norm", run="gpt") == bad.weight_norm
    assert exporter.value("ckptwatch_run_nonfinite_elements", run="gpt", kind="parameter") == 3


def test_a_run_without_a_checkpoint_has_only_its_state() -> None:
    empty = view(run=summary(last_written_at=None, last_measured_at=None), newest=None, last_good=None, recent=())
    series = Exporter(MemorySources(runs=[empty])).scrape()
    assert names(series) == {
        "ckptwatch_run_active",
        "ckptwatch_run_healthy",
        "ckptwatch_run_attempt",
        "ckptwatch_series_dropped",
        "ckptwatch_database_up",
    }


def test_firing_alerts_are_counted_and_known_rules_start_at_zero() -> None:
    rules = {"nonfinite": Severity.CRITICAL, "stalled_run": Severity.WARNING}
    firing = (alert(), alert(), alert("custom", severity=Severity.INFO))
    exporter = Exporter(MemorySources(runs=[view(firing=firing)]), ExporterOptions(rules=rules))
    assert exporter.value("ckptwatch_alert_firing", run="gpt", rule="nonfinite", severity="critical") == 2
    assert exporter.value("ckptwatch_alert_firing", run="gpt", rule="stalled_run", severity="warning") == 0
    assert exporter.value("ckptwatch_alert_firing", run="gpt", rule="custom", severity="info") == 1


@pytest.mark.parametrize(
    ("detail", "expected"),
    [
        (MetricsDetail.OFF, set[str]()),
        (MetricsDetail.GROUPS, {"group"}),
        (MetricsDetail.TENSORS, {"group", "tensor"}),
    ],
)
def test_detail_decides_how_fine_the_series_are(detail: MetricsDetail, expected: set[str]) -> None:
    memory = MemorySources(
        runs=[view()],
        measurements={12: Measurement(tensors=(tensor("h.0.w"), tensor("h.1.w")), drifts=(drift("h.0.w"),))},
    )
    series = Exporter(memory, ExporterOptions(detail=detail)).scrape()
    assert {label for _, labels in series for label, _ in labels} & {"group", "tensor"} == expected
    if "group" in expected:
        assert series["ckptwatch_group_weight_norm", frozenset({("run", "gpt"), ("group", "h.0")})] == 4.0
        assert series["ckptwatch_group_update_ratio", frozenset({("run", "gpt"), ("group", "h.0")})] == pytest.approx(
            1e-4
        )
        assert ("ckptwatch_group_update_ratio", frozenset({("run", "gpt"), ("group", "h.1")})) not in series
    if "tensor" in expected:
        assert series["ckptwatch_tensor_abs_max", frozenset({("run", "gpt"), ("tensor", "h.1.w")})] == 1.0


def test_the_tensors_of_a_snapshot_are_asked_for_once() -> None:
    memory = MemorySources(runs=[view()], measurements={12: Measurement(tensors=(tensor(),))})
    exporter = Exporter(memory)
    exporter.scrape()
    exporter.scrape()
    assert memory.n_measurements == 1
    memory.runs = [view(newest=snapshot(13), recent=(snapshot(13),))]
    memory.measurements = {13: Measurement(tensors=(tensor(norm_l2=9.0),))}
    assert exporter.value("ckptwatch_group_weight_norm", run="gpt", group="wte") == 9.0
    assert memory.n_measurements == 2


def test_a_run_stays_for_its_time_after_it_ended_and_then_leaves_nothing() -> None:
    exporter = Exporter(MemorySources(runs=[view()]), ExporterOptions(run_ttl_seconds=900))
    assert exporter.value("ckptwatch_run_active", run="gpt") == 1
    exporter.clock.now += 7200
    assert exporter.value("ckptwatch_run_active", run="gpt") == 1  # silent for long, but not ended
    exporter.memory.runs = [view(run=summary(active=False))]
    assert exporter.value("ckptwatch_run_active", run="gpt") == 0
    exporter.clock.now += 900
    assert exporter.value("ckptwatch_run_active", run="gpt") == 0
    exporter.clock.now += 1
    assert names(exporter.scrape()) == {"ckptwatch_series_dropped", "ckptwatch_database_up"}
    exporter.memory.runs = [view()]  # resumed
    assert exporter.value("ckptwatch_run_active", run="gpt") == 1


def test_a_run_that_ended_before_we_started_counts_from_its_last_checkpoint() -> None:
    ended = view(run=summary(active=False))
    exporter = Exporter(MemorySources(runs=[ended]), ExporterOptions(run_ttl_seconds=900))
    assert exporter.value("ckptwatch_run_active", run="gpt") == 0
    exporter.clock.now += 900
    assert exporter.value("ckptwatch_run_active", run="gpt") is None


def test_the_limit_holds_whole_rows_are_left_out_and_the_truncation_shows() -> None:
    tensors = tuple(tensor(f"part{i}.weight", position=i) for i in range(25))
    memory = MemorySources(
        runs=[view("old", run=summary("old", last_written_at=NOW - 9000, last_measured_at=NOW - 9000)), view("new")],
        measurements={12: Measurement(tensors=tensors)},
    )
    series = Exporter(memory, ExporterOptions(series_max=100)).scrape()
    own = {"ckptwatch_series_dropped", "ckptwatch_database_up"}
    kept = {key: value for key, value in series.items() if key[0] not in own}
    assert 90 < len(kept) <= 100
    assert series["ckptwatch_series_dropped", frozenset()] > 0
    assert {dict(labels)["run"] for name, labels in kept if name == "ckptwatch_run_active"} == {"old", "new"}
    rows = Counter(dict(labels)["group"] for name, labels in kept if "group" in dict(labels))
    assert len(set(rows.values())) == 1  # no row is cut in the middle
    assert {dict(labels)["run"] for name, labels in kept if name == "ckptwatch_group_mean"} == {"new"}


def test_runs_beyond_the_limit_are_left_out_without_reading_their_tensors() -> None:
    memory = MemorySources(runs=[view(f"run{i:03}") for i in range(100)])
    exporter = Exporter(memory, ExporterOptions(series_max=50))
    series = exporter.scrape()
    assert len(series) <= 50 + 2
    assert series["ckptwatch_series_dropped", frozenset()] > 1000
    assert memory.n_measurements == 0


def test_a_database_that_does_not_answer_leaves_no_old_numbers() -> None:
    exporter = Exporter(MemorySources(runs=[view()]))
    assert exporter.value("ckptwatch_database_up") == 1
    exporter.memory.error = "database is locked"
    series = exporter.scrape()
    assert names(series) == {"ckptwatch_series_dropped", "ckptwatch_database_up"}
    assert series["ckptwatch_database_up", frozenset()] == 0
    exporter.memory.error = None
    assert exporter.value("ckptwatch_run_active", run="gpt") == 1


def test_unknown_and_nonfinite_numbers_have_no_series() -> None:
    strange = snapshot(
        step=None,
        weight_norm=math.inf,
        update_ratio=math.nan,
        gradient=GradientEstimate(norm=math.nan, source="adam_ema", window_steps=None),
    )
    series = Exporter(MemorySources(runs=[view(newest=strange, recent=(strange,), last_good=None)])).scrape()
    assert all(math.isfinite(value) for value in series.values())
    assert not names(series) & {
        "ckptwatch_checkpoint_step",
        "ckptwatch_run_weight_norm",
        "ckptwatch_run_update_ratio",
        "ckptwatch_run_gradient_norm",
        "ckptwatch_run_last_good_step",
    }


HOSTILE_NAMES = st.text(st.characters(), max_size=40) | st.sampled_from(
    ['a"} 1\nevil 2', "back\\slash", "line\nbreak", "\udcff", "\u202e", "", " ", "x" * 3000, "x" * 3000 + "y"]
)


@settings(max_examples=40, deadline=None)
@given(
    runs=st.lists(HOSTILE_NAMES, min_size=1, max_size=4, unique=True),
    tensors=st.lists(HOSTILE_NAMES, max_size=6, unique=True),
)
def test_any_names_give_an_exposition_that_both_reference_parsers_read(runs: list[str], tensors: list[str]) -> None:
    measurement = Measurement(tensors=tuple(map(tensor, tensors)))
    memory = MemorySources(
        runs=[view(run, run=summary(run), newest=snapshot(i), recent=(snapshot(i),)) for i, run in enumerate(runs)],
        measurements=dict.fromkeys(range(len(runs)), measurement),
    )
    exporter = Exporter(memory, ExporterOptions(detail=MetricsDetail.TENSORS))
    series = exporter.scrape()
    assert len([1 for name, _ in series if name == "ckptwatch_run_active"]) == len(runs)
    assert len([1 for name, _ in series if name == "ckptwatch_tensor_mean"]) == len(runs) * len(tensors)
    open_metrics = generate_openmetrics(exporter.registry).decode()  # type: ignore[no-untyped-call]
    families = list(parse_openmetrics(open_metrics))  # type: ignore[no-untyped-call]
    n_samples = sum([len(family.samples) for family in families])
    assert n_samples == len(series)


def test_one_family_can_be_asked_for_alone() -> None:
    exporter = Exporter(MemorySources(runs=[view()]))
    restricted = exporter.registry.restricted_registry(["ckptwatch_run_healthy"])
    families = [family for family in restricted.collect() if family.samples]
    assert [family.name for family in families] == ["ckptwatch_run_healthy"]


def test_resolved_alerts_are_not_counted_when_the_view_leaves_them_out() -> None:
    resolved = alert(state=AlertState.RESOLVED)
    exporter = Exporter(MemorySources(runs=[replace(view(), firing=())], open_alerts=[resolved]))
    assert exporter.value("ckptwatch_alert_firing", run="gpt", rule="nonfinite", severity="critical") is None


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool (Debian package prometheus) is not installed")
def test_the_linter_of_prometheus_finds_nothing() -> None:
    memory = MemorySources(
        runs=[view(firing=(alert(),))],
        measurements={12: Measurement(tensors=(tensor("h.0.w"),), drifts=(drift("h.0.w"),))},
    )
    exporter = Exporter(memory, ExporterOptions(detail=MetricsDetail.TENSORS, rules={"nonfinite": Severity.CRITICAL}))
    telemetry = Telemetry(exporter.registry, version="1.0", notifiers=("slack",), rules=("nonfinite",))
    telemetry.count_snapshot(problem=None, bytes_read=10, duration_seconds=0.2)
    result = subprocess.run(
        ["promtool", "check", "metrics"],
        input=generate_latest(exporter.registry),
        capture_output=True,
        timeout=30,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stderr == b""
