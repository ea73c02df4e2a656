"""Prometheus' own tool accepts the configuration and the rules, and their unit tests pass."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

PROMETHEUS = Path(__file__).parents[2] / "deploy" / "prometheus"
RULES = PROMETHEUS / "rules" / "ckptwatch.yml"
UNIT_TESTS = PROMETHEUS / "tests" / "ckptwatch_test.yml"
RECORDING = PROMETHEUS / "rules" / "ckptwatch-recording.yml"
RECORDING_TESTS = PROMETHEUS / "tests" / "ckptwatch-recording_test.yml"

needs_promtool = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="promtool (Debian package prometheus) is not installed"
)


def promtool(*arguments: str, cwd: Path = PROMETHEUS) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["promtool", *arguments], cwd=cwd, capture_output=True, text=True, timeout=60, check=False)


@needs_promtool
@pytest.mark.parametrize(
    "arguments",
    [
        ("check", "config", "prometheus.yml"),
        ("check", "rules", "--lint=all", "--lint-fatal", str(RULES)),
        ("check", "rules", "--lint=all", "--lint-fatal", str(RECORDING)),
        ("test", "rules", str(UNIT_TESTS)),
        ("test", "rules", str(RECORDING_TESTS)),
    ],
    ids=lambda arguments: " ".join(arguments[:2]),
)
def test_promtool_is_content(arguments: tuple[str, ...]) -> None:
    result = promtool(*arguments)
    assert result.returncode == 0, result.stdout + result.stderr


@needs_promtool
def test_the_unit_tests_notice_a_rule_that_never_fires(tmp_path: Path) -> None:
    shutil.copytree(PROMETHEUS, tmp_path, dirs_exist_ok=True)
    rules = tmp_path / "rules" / "ckptwatch.yml"
    text = rules.read_text()
    assert text.count('{kind=~"parameter|optimizer"} > 0') == 1
    rules.write_text(text.replace('{kind=~"parameter|optimizer"} > 0', '{kind="weights"} > 0'))
    assert promtool("test", "rules", "tests/ckptwatch_test.yml", cwd=tmp_path).returncode != 0


def test_every_alert_has_a_unit_test() -> None:
    alerts = {rule["alert"] for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]}
    text = UNIT_TESTS.read_text()
    assert {alert for alert in alerts if alert not in text} == set()


def recorded() -> dict[str, str]:
    groups = yaml.safe_load(RECORDING.read_text())["groups"]
    return {rule["record"]: rule["expr"] for group in groups for rule in group["rules"]}


def test_every_recorded_series_has_a_unit_test_and_a_name_of_level_metric_and_operation() -> None:
    text = RECORDING_TESTS.read_text()
    for name in recorded():
        assert re.fullmatch(r"(run|instance):ckptwatch_[a-z_]+:[a-z_0-9]+", name)
        assert f"expr: {name}\n" in text


def test_the_recording_rules_use_only_metrics_that_exist() -> None:
    used = {name for expr in recorded().values() for name in re.findall(r"\bckptwatch_\w+", expr)}
    documented = set(re.findall(r"`(ckptwatch_\w+)`", (PROMETHEUS.parents[1] / "docs" / "metrics.md").read_text()))
    assert used
    assert used <= documented
