"""Prometheus' own tool accepts the configuration and the rules, and their unit tests pass."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

PROMETHEUS = Path(__file__).parents[2] / "deploy" / "prometheus"
RULES = PROMETHEUS / "rules" / "ckptwatch.yml"
UNIT_TESTS = PROMETHEUS / "tests" / "ckptwatch_test.yml"

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
        ("test", "rules", str(UNIT_TESTS)),
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
