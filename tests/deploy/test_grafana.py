"""The dashboards are what the generator writes, complete, and ask only for what is exported."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import promql_parser
import pytest
import yaml
from prometheus_client import CollectorRegistry

from monitor.show.exporter import ExporterOptions, StorageCollector
from monitor.show.telemetry import Telemetry
from tests.support.dashboards import DASHBOARDS, FILES, fill, load, panels, queries
from tests.support.show_records import NOW, MemorySources

GRAFANA = DASHBOARDS.parent
MADE_BY_PROMETHEUS = {"up", "scrape_duration_seconds"}
each_file = pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)


def exported() -> dict[str, set[str]]:
    """Return the label names of every sample that can be exported, by its name."""
    registry = CollectorRegistry()
    Telemetry(registry, version="1", notifiers=["slack"], rules=["nonfinite"])
    collector = StorageCollector(MemorySources().sources, ExporterOptions(), lambda: NOW)
    found: dict[str, set[str]] = {name: set() for name in MADE_BY_PROMETHEUS}
    for family in [*registry.collect(), *collector.describe()]:
        kind = {"counter": ["_total"], "histogram": ["_bucket", "_sum", "_count"]}.get(family.type, [""])
        for suffix in kind:
            found[family.name + suffix] = set(getattr(family, "_labelnames", ()))
        for sample in family.samples:
            found.setdefault(sample.name, set()).update(sample.labels)
    return found


def test_there_are_three() -> None:
    assert [path.stem for path in FILES] == ["ckptwatch-daemon", "ckptwatch-fleet", "ckptwatch-run"]


def test_they_are_what_the_generator_writes() -> None:
    done = subprocess.run(
        [sys.executable, str(GRAFANA / "generate.py"), "--check"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"run deploy/grafana/generate.py: {done.stdout}{done.stderr}"


@each_file
def test_a_dashboard_can_be_found_and_is_not_edited_in_place(path: Path) -> None:
    document = load(path)
    assert document["uid"] == path.stem
    assert document["title"].startswith("ckptwatch / ")
    assert document["description"].endswith((".", "?"))
    assert document["tags"] == ["ckptwatch"]
    assert document["editable"] is False
    assert "__inputs" not in document
    first, *others = document["templating"]["list"]
    assert (first["name"], first["type"], first["query"]) == ("datasource", "datasource", "prometheus")
    assert all(variable["datasource"]["uid"] == "${datasource}" for variable in others)
    assert all(variable["label"] for variable in others)


@each_file
def test_every_panel_has_a_title_a_description_a_unit_and_the_data_source_of_the_variable(path: Path) -> None:
    titles = []
    for panel in panels(load(path)):
        titles.append((panel["title"], panel["type"]))
        assert panel["title"]
        assert panel["description"].endswith((".", "?"))
        assert panel["fieldConfig"]["defaults"]["unit"]
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        assert panel["targets"]
        for target in panel["targets"]:
            assert target["datasource"] == panel["datasource"]
            assert target["refId"]
    assert len(set(titles)) == len(titles)


@each_file
def test_panels_do_not_overlap_and_stay_within_the_width(path: Path) -> None:
    taken: set[tuple[int, int]] = set()
    for panel in panels(load(path)):
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        cells = {(x + place["x"], y + place["y"]) for x in range(place["w"]) for y in range(place["h"])}
        assert not cells & taken
        taken |= cells


@pytest.mark.parametrize(("board", "panel", "expression"), queries())
def test_every_query_parses_and_asks_for_what_is_exported(board: str, panel: str, expression: str) -> None:
    promql_parser.parse(expression)
    known = exported()
    names = set(re.findall(r"\b([a-z_]+)\{", expression))
    assert names
    assert names <= known.keys(), f"{board}, {panel}"
    labels = set().union(*(known[name] for name in names)) | {"job", "instance", "le"}
    used = set(re.findall(r"(\w+)\s*=~?\"", expression)) | {
        label.strip() for group in re.findall(r"(?:by|on) \(([^)]*)\)", expression) for label in group.split(",")
    }
    assert used <= labels, f"{board}, {panel}"


@each_file
def test_counters_are_only_shown_as_rates_over_a_fitting_interval(path: Path) -> None:
    for panel in panels(load(path)):
        for target in panel["targets"]:
            for counter in re.findall(r"(\w+_(?:total|bucket))\{", target["expr"]):
                assert re.search(rf"(rate|increase)\({counter}\{{[^}}]*\}}\[(\$__rate_interval|1d)\]\)", target["expr"])


@each_file
def test_legends_name_labels_that_the_query_keeps(path: Path) -> None:
    known = exported()
    for panel in panels(load(path)):
        for target in panel["targets"]:
            for label in re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]):
                grouped = re.findall(r"by \(([^)]*)\)", target["expr"])
                names = re.findall(r"\b([a-z_]+)\{", fill(target["expr"]))
                kept = {x.strip() for x in grouped[0].split(",")} if grouped else known[names[0]] | {"instance", "job"}
                assert label in kept, panel["title"]


def test_an_unknown_variable_is_noticed() -> None:
    with pytest.raises(KeyError):
        fill("up{job=$nobody}")


def test_the_provisioning_files_lead_to_the_dashboards() -> None:
    provider: dict[str, Any] = yaml.safe_load((GRAFANA / "provisioning" / "dashboards" / "ckptwatch.yml").read_text())
    assert provider["apiVersion"] == 1
    assert provider["providers"][0]["type"] == "file"
    assert provider["providers"][0]["options"]["path"].startswith("/")
    source = yaml.safe_load((GRAFANA / "provisioning" / "datasources" / "prometheus.yml").read_text())
    assert (source["apiVersion"], source["datasources"][0]["type"]) == (1, "prometheus")
