"""The shipped configuration of Alertmanager: amtool takes it, and alerts go where it says."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from alerts.notifiers.alertmanager import posted
from tests.support.stored import make_alert

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "deploy" / "alertmanager" / "alertmanager.yml"
RULES = ROOT / "deploy" / "prometheus" / "rules" / "ckptwatch.yml"
AMTOOL = shutil.which("amtool")
needs_amtool = pytest.mark.skipif(AMTOOL is None, reason="amtool is not installed (Debian: prometheus-alertmanager)")


def amtool(*arguments: str) -> str:
    assert AMTOOL is not None
    done = subprocess.run([AMTOOL, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.strip()


@needs_amtool
def test_amtool_is_content() -> None:
    assert "SUCCESS" in amtool("check-config", str(CONFIG))


@needs_amtool
@pytest.mark.parametrize(
    ("severity", "receiver"),
    [("critical", "team-slack-and-email"), ("warning", "team-slack"), ("info", "team-email")],
)
def test_an_alert_goes_to_the_receiver_of_its_severity(severity: str, receiver: str) -> None:
    labels = [f"{name}={value}" for name, value in posted(make_alert(), labels={})["labels"].items()]
    labels = [f"severity={severity}" if label.startswith("severity=") else label for label in labels]
    assert amtool("config", "routes", "test", "--config.file", str(CONFIG), *labels) == receiver


def test_every_receiver_is_told_when_it_is_over() -> None:
    for receiver in yaml.safe_load(CONFIG.read_text())["receivers"]:
        for kind in ("slack_configs", "email_configs"):
            assert all(entry["send_resolved"] for entry in receiver.get(kind, ()))


def test_a_critical_alert_keeps_milder_ones_of_its_run_quiet() -> None:
    first, second = yaml.safe_load(CONFIG.read_text())["inhibit_rules"]
    assert first["equal"] == ["run"]
    assert second["equal"] == ["instance"]


def test_the_alerts_that_are_inhibited_by_name_exist() -> None:
    rules = [rule["alert"] for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]
    (_, second) = yaml.safe_load(CONFIG.read_text())["inhibit_rules"]
    assert second["source_matchers"] == ['alertname = "CkptwatchDown"']
    (matcher,) = second["target_matchers"]
    pattern = re.fullmatch(r'alertname =~ "(.*)"', matcher)
    assert pattern is not None
    hit = {name for name in rules if re.fullmatch(pattern[1], name)}
    assert {"CheckpointNonFinite", "CkptwatchDatabaseDown", "CkptwatchFallingBehind", "CkptwatchSeriesDropped"} <= hit
    assert "CkptwatchDown" not in hit
