"""Every rule's case file: a series of snapshots in, findings out."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from alerts import registry
from alerts.rule import Needs, Outcome
from storage.records import Finding, Window
from tests.support.alert_series import expanded, window_of

CASES = Path(__file__).parent / "cases"


def _load() -> list[Any]:
    loaded = []
    for file in sorted(CASES.glob("*.yaml")):
        for case in yaml.safe_load(file.read_text()):
            loaded.append(pytest.param(file.stem, case, id=f"{file.stem}: {case['name']}"))
    return loaded


def _ask(rule_name: str, case: Mapping[str, Any], series: list[Mapping[str, Any]]) -> Outcome:
    window = window_of(
        series,
        n_snapshots_max=case.get("window", 64),
        now=case.get("now"),
        reason=case.get("reason", "snapshot"),
        active=case.get("active", True),
    )
    return registry.rule(rule_name).check(window, registry.rule_options(rule_name, case.get("options", {})))


@pytest.mark.parametrize(("rule_name", "case"), _load())
def test_the_rule_says_what_the_case_expects(rule_name: str, case: Mapping[str, Any]) -> None:
    series = expanded(case["series"])
    if "fires_at" in case:
        fired = [
            snapshot.get("step", n)
            for n, snapshot in enumerate(series, start=1)
            if _ask(rule_name, case, series[:n]).findings
        ]
        assert fired == case["fires_at"]
    outcome = _ask(rule_name, case, series)
    if "silent" in case:
        assert outcome.silent is not None
        assert case["silent"] in outcome.silent
        assert outcome.findings == ()
    if "notes" in case:
        assert len(outcome.notes) == case["notes"]
    if "findings" in case:
        assert outcome.silent is None
        assert len(outcome.findings) == len(case["findings"])
        for finding, expected in zip(outcome.findings, case["findings"], strict=True):
            _compare(finding, expected)


def _compare(finding: Finding, expected: Mapping[str, Any]) -> None:
    said = "\n".join([finding.summary, *(f"{label}: {text}" for label, text in finding.details)])
    for key, value in expected.items():
        if key == "says":
            for part in value:
                assert part in said
        elif key == "does_not_say":
            for part in value:
                assert part not in said
        elif key == "severity":
            assert finding.severity.label == value
        elif isinstance(value, float):
            assert getattr(finding, key) == pytest.approx(value)
        else:
            assert getattr(finding, key) == value


@pytest.mark.parametrize("rule_name", registry.rule_names())
def test_every_rule_has_cases_of_trouble_and_quiet_ones(rule_name: str) -> None:
    cases = yaml.safe_load((CASES / f"{rule_name}.yaml").read_text())
    assert all(set(case) & {"findings", "fires_at", "silent"} for case in cases)
    assert any(case.get("findings") for case in cases)
    assert any(case.get("findings") == [] for case in cases)
    assert any("silent" in case for case in cases)


@pytest.mark.parametrize("rule_name", registry.rule_names())
def test_every_rule_says_what_it_needs_and_why_it_is_silent_where_there_is_nothing(rule_name: str) -> None:
    rule = registry.rule(rule_name)
    assert rule.needs
    for reason in ("snapshot", "tick"):
        outcome = rule.check(
            Window(run="gpt", snapshots=(), tensors=(), drifts=(), now=0.0, reason=reason), rule.Options()
        )
        assert outcome.silent
        assert outcome.findings == ()


@pytest.mark.parametrize("rule_name", registry.rule_names())
def test_no_rule_but_those_about_files_judges_a_checkpoint_that_could_not_be_read(rule_name: str) -> None:
    rule = registry.rule(rule_name)
    outcome = rule.check(window_of([{}, {}, {}, {"failed": "corrupt"}]), rule.Options())
    assert (outcome.silent is None) == (Needs.FILES in rule.needs and bool(outcome.findings or rule.on_tick))
