"""The documentation and the alert rules name the metrics that are really exported."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from prometheus_client import CollectorRegistry

from monitor.show.exporter import ExporterOptions, StorageCollector
from monitor.show.telemetry import Telemetry
from storage.records import Severity
from tests.support.show_records import NOW, MemorySources

ROOT = Path(__file__).parents[2]
RULES = ROOT / "deploy" / "prometheus" / "rules" / "ckptwatch.yml"
LABELS_OF_EVERY_SERIES = {"job", "instance"}


def exported() -> set[str]:
    """Return the names as they are queried: counters with _total, histograms by their plain name."""
    registry = CollectorRegistry()
    Telemetry(registry, version="1")
    collector = StorageCollector(MemorySources().sources, ExporterOptions(), lambda: NOW)
    families = [*registry.collect(), *collector.describe()]
    return {f"{family.name}_total" if family.type == "counter" else family.name for family in families}


def rules() -> list[dict[str, object]]:
    document = yaml.safe_load(RULES.read_text())
    return [rule for group in document["groups"] for rule in group["rules"]]


def test_the_documentation_lists_every_metric_and_no_other() -> None:
    text = (ROOT / "docs" / "metrics.md").read_text()
    tables = "\n".join(line for line in text.splitlines() if line.startswith("|"))
    assert set(re.findall(r"`(ckptwatch_\w+)`", tables)) == exported()
    assert set(re.findall(r"\bckptwatch_[a-z_]+[a-z]\b", text)) <= exported()


def test_the_rules_use_only_metrics_that_exist() -> None:
    used = {name for rule in rules() for name in re.findall(r"\bckptwatch_\w+", str(rule["expr"]))}
    assert used
    assert used <= exported()


@pytest.mark.parametrize("rule", rules(), ids=lambda rule: str(rule["alert"]))
def test_every_alert_is_named_and_explained_alike(rule: dict[str, object]) -> None:
    assert re.fullmatch(r"(Checkpoint|Ckptwatch)([A-Z][a-z]+)+", str(rule["alert"]))
    labels, annotations = rule["labels"], rule["annotations"]
    assert isinstance(labels, dict)
    assert isinstance(annotations, dict)
    assert labels["severity"] in {severity.label for severity in Severity}
    assert set(annotations) == {"summary", "description"}
    assert str(annotations["summary"])[-1] != "."
    assert str(annotations["description"])[-1] == "."
