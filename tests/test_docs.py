"""The documents keep up with the code: every command, key, rule, notifier, format and metric is in its place."""

from __future__ import annotations

import dataclasses
import os
import re
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families
from pydantic import BaseModel

from alerts import registry as alert_registry
from monitor.cli import COMMANDS
from monitor.config import Config, load
from monitor.read import registry as read_registry
from tests.support.daemons import REPOSITORY, DaemonProcess, wait_for

DOCS = REPOSITORY / "docs"
PAGES = [REPOSITORY / "README.md", *sorted(DOCS.rglob("*.md"))]
EXAMPLE = REPOSITORY / "config.yaml"


def rows(page: Path) -> set[str]:
    """Return everything set as code in the tables of a page."""
    lines = [line for line in page.read_text().splitlines() if line.startswith("|")]
    return {name for line in lines for name in re.findall(r"`([^`]+)`", line)}


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("CKPTWATCH_"):
            monkeypatch.delenv(name)


def test_the_commented_configuration_loads_and_is_the_defaults() -> None:
    config = load(EXAMPLE)
    assert config.model_copy(update={"rules": {}}) == Config()


def _missing(documented: Any, actual: Any, path: str = "") -> list[str]:
    if not isinstance(actual, dict):
        return []
    if not isinstance(documented, dict):
        return [path]
    found = [f"{path}{key}" for key in actual if key not in documented]
    for key in actual.keys() & documented.keys():
        found += _missing(documented[key], actual[key], f"{path}{key}.")
    return found


def test_the_commented_configuration_names_every_key() -> None:
    documented = yaml.safe_load(EXAMPLE.read_text())
    assert _missing(documented, Config().model_dump()) == []


def _options(rule: str) -> dict[str, Any]:
    """Return a rule's options and their defaults, as the configuration has them."""
    options = cast(Any, alert_registry.rule_options(rule, {}))
    return {field.name: getattr(options, field.name) for field in dataclasses.fields(options)}


@pytest.mark.parametrize("rule", sorted(alert_registry.RULES))
def test_the_commented_configuration_has_every_rule_and_only_true_defaults(rule: str) -> None:
    documented = yaml.safe_load(EXAMPLE.read_text())["rules"]
    assert rule in documented
    without = alert_registry.rule_setting(rule, {})
    written = alert_registry.rule_setting(rule, documented[rule] or {})
    assert (written.options, written.enabled) == (without.options, without.enabled)


@pytest.mark.parametrize("rule", sorted(alert_registry.RULES))
def test_every_rule_has_a_page_that_names_every_option(rule: str) -> None:
    page = DOCS / "rules" / f"{rule}.md"
    assert page.exists()
    assert page.read_text().startswith(f"# {rule}\n")
    assert set(_options(rule)) <= rows(page)


@pytest.mark.parametrize("kind", sorted(alert_registry.NOTIFIERS))
def test_every_notifier_has_a_page_that_names_every_key(kind: str) -> None:
    page = DOCS / "notifiers" / f"{kind}.md"
    assert page.exists()
    assert page.read_text().startswith(f"# {kind}\n")
    try:
        model = cast("type[BaseModel]", alert_registry.notifier_class(kind).Config)
    except alert_registry.PluginError:
        pytest.skip(f"what the notifier {kind} needs is not installed")
    keys = {field.alias or name for name, field in model.model_fields.items()}
    assert keys <= rows(page)


def test_there_is_no_page_of_a_rule_or_notifier_that_is_none() -> None:
    assert {page.stem for page in (DOCS / "rules").glob("*.md")} == set(alert_registry.RULES)
    assert {page.stem for page in (DOCS / "notifiers").glob("*.md")} == set(alert_registry.NOTIFIERS)


@pytest.mark.parametrize("name", sorted(read_registry.READERS))
def test_every_format_has_its_row(name: str) -> None:
    first_cells = {line.split("|")[1].strip() for line in (DOCS / "formats.md").read_text().splitlines() if "|" in line}
    assert f"`{name}`" in first_cells


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_every_command_is_in_the_readme(command: str) -> None:
    assert re.search(rf"\bckptwatch {command}\b", (REPOSITORY / "README.md").read_text())


def _scrape_with_changes(daemon: DaemonProcess) -> str | None:
    text = daemon.get("/metrics")[1]
    return text if "ckptwatch_run_update_ratio{" in text else None


def test_every_metric_of_a_live_scrape_has_its_row_and_every_row_its_metric(tmp_path: Path) -> None:
    root = tmp_path / "run"
    root.mkdir()
    np.savez(root / "step-1.npz", w=np.ones((4, 4), np.float32))
    np.savez(root / "step-2.npz", w=np.full((4, 4), 2, np.float32))
    notify = {"notifiers": [{"kind": "log"}]}
    scraped: set[str] = set()
    for detail in ("groups", "tensors"):
        serve = {"metrics_detail": detail}
        with DaemonProcess(tmp_path / "state", root, serve=serve, notify=notify) as daemon:
            text = wait_for("both files to be scraped", lambda: _scrape_with_changes(daemon))
            assert daemon.terminate() == 0
        for family in text_string_to_metric_families(text):
            if not family.name.endswith("_created"):
                scraped.add(family.name + ("_total" if family.type == "counter" else ""))
    ours = {name for name in scraped if name.startswith("ckptwatch_")}
    documented = {name for name in rows(DOCS / "metrics.md") if name.startswith("ckptwatch_")}
    assert ours <= documented
    # What this short run cannot show: gradients need an optimizer, and nothing failed.
    unseen = {name for name in documented - ours if "gradient" not in name}
    assert unseen == set()


def _configurations() -> list[tuple[str, str]]:
    """Return every YAML block of the pages that has a section of ours, with where it stands."""
    found = []
    for page in PAGES:
        blocks = re.findall(r"```ya?ml\n(.*?)```", page.read_text(), re.DOTALL)
        for index, block in enumerate(blocks):
            document = yaml.safe_load(block)
            if isinstance(document, dict) and document.keys() & Config.model_fields.keys():
                found.append((f"{page.relative_to(REPOSITORY)}:{index}", block))
    return found


SHOWN = dict(_configurations())


@pytest.mark.parametrize("block", SHOWN.values(), ids=SHOWN.keys())
def test_every_configuration_that_a_page_shows_is_accepted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: str
) -> None:
    # What a variable would hold is in the comment behind it, where any address will not do.
    for name, example in re.findall(r"\benv:(\w+)(?:[^\n]*# (\S+://\S+))?", block):
        monkeypatch.setenv(name, example or "https://example.com/secret")
    (tmp_path / "secret").write_text("https://example.com/secret")
    path = tmp_path / "config.yaml"
    path.write_text(re.sub(r"\bfile:[^\s,}\]]+", f"file:{tmp_path / 'secret'}", block))
    load(path)


def test_links_between_the_pages_lead_somewhere() -> None:
    broken = []
    for page in [*PAGES, REPOSITORY / "ARCHITECTURE.md"]:
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
            if not (page.parent / target).exists():
                broken.append(f"{page.relative_to(REPOSITORY)} -> {target}")
    assert broken == []
