"""The benchmark of detection measures what it says: real trainings, real faults, and honest figures from them."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from benchmarks.detection import journal, markdown, report, sagemaker, trials
from benchmarks.detection.faults import FAULTS
from benchmarks.detection.settings import SETTINGS
from benchmarks.detection.training import Plan, Seen
from benchmarks.detection.trials import Result, Trial
from benchmarks.detection.watching import Fired


@pytest.fixture
def short_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a training save after every second step, which is enough to see how a fault goes through."""
    settings = tuple(dataclasses.replace(s, plan=Plan(save_every=2, n_checkpoints=12)) for s in SETTINGS)
    monkeypatch.setattr(trials, "SETTINGS", settings)


@pytest.mark.usefixtures("short_settings")
def test_a_sound_training_is_quiet_and_the_same_one_with_a_fault_is_not() -> None:
    sound = trials.run(Trial(setting="wide_sgd", fault="", seed=0))
    faulty = trials.run(Trial(setting="wide_sgd", fault="nan_in_one_tensor", seed=0))

    assert sound.n_checkpoints == faulty.n_checkpoints == 12
    assert sound.first_bad is None
    assert sound.alerts == ()
    assert faulty.first_bad is not None
    assert [(a.rule, a.checkpoint) for a in faulty.alerts] == [("nonfinite", faulty.first_bad)]
    found = report.document([sound, faulty])["all"]["ckptwatch"]
    assert (found["found_share"], found["median_delay"], found["n_false_alerts"]) == (1.0, 0, 0)
    document = report.document([sound, faulty])
    assert re.search(r"nan_in_one_tensor +1/1 0 late nonfinite", report.text(document))
    assert "| one element of one saved tensor is NaN | 1 of 1 | 0 | nonfinite |" in markdown.text(document)


def test_every_fault_applies_to_several_settings_and_three_seeds_try_every_pair() -> None:
    for fault in FAULTS:
        assert [s.name for s in SETTINGS if fault.applies(s)], fault.name
    pairs = {(t.setting, t.fault) for t in trials.planned(range(3), one_in=3)}
    assert pairs == {(t.setting, t.fault) for t in trials.planned([0], one_in=1)}
    assert len({s.name for s in SETTINGS if s.held_out}) >= 8
    assert len({s.name for s in SETTINGS if not s.held_out}) >= 8


def _result(first_bad: int | None, alerts: Sequence[tuple[str, str, int]], setting: str = "wide_sgd") -> Result:
    fired = tuple(Fired(rule=rule, severity=severity, checkpoint=at) for rule, severity, at in alerts)
    return Result(
        trial=Trial(setting=setting, fault="" if first_bad is None else "rate_zero", seed=0),
        held_out=True,
        n_checkpoints=500,
        first_bad=first_bad,
        alerts=fired,
        debugger=(),
    )


def test_what_fires_without_the_fault_too_or_before_it_or_only_informs_is_no_evidence() -> None:
    sound = _result(None, [("loss_spike", "warning", 12)])
    faulty = _result(10, [("loss_spike", "warning", 12), ("drift_spike", "warning", 9), ("overfit", "info", 10)])
    figures = report.figures([sound, faulty])["ckptwatch"]
    assert (figures["n_faults"], figures["n_found"], figures["n_false_alerts"]) == (1, 0, 1)
    assert figures["false_alerts_per_1000"] == 2.0

    seen = report.figures([sound, _result(10, [("drift_spike", "critical", 13)])])["ckptwatch"]
    assert (seen["n_found"], seen["median_delay"]) == (1, 3)


def test_a_journal_gives_back_what_was_kept_and_passes_over_a_line_that_was_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "trials.jsonl"
    assert journal.read(path) == {}
    kept = [_result(None, [("loss_spike", "warning", 12)]), _result(10, [])]
    for result in kept:
        journal.append(path, result)
    with path.open("a") as file:
        file.write('{"trial": {"sett')
    assert journal.read(path) == {result.trial: result for result in kept}


def _seen(step: int = 10, loss: float = 1.0, **changes: object) -> Seen:
    values = np.linspace(-1.0, 1.0, 64, dtype=np.float32).reshape(8, 8)
    plain = Seen(step=step, weights={"w": values}, gradients={"w": values}, loss=loss, activity={}, saturation={})
    return dataclasses.replace(plain, **changes)  # type: ignore[arg-type]


W = np.linspace(-1.0, 1.0, 64, dtype=np.float32).reshape(8, 8)


@pytest.mark.parametrize(
    ("rule", "series"),
    [
        ("ExplodingTensor", [_seen(weights={"w": W * np.nan})]),
        ("ExplodingTensor", [_seen(gradients={"w": W * np.inf})]),
        ("VanishingGradient", [_seen(gradients={"w": W * 1e-8})]),
        ("WeightUpdateRatio", [_seen(), _seen(weights={"w": W * 12})]),
        ("WeightUpdateRatio", [_seen(), _seen()]),
        ("UnchangedTensor", [_seen(), _seen(), _seen()]),
        ("AllZero", [_seen(weights={"w": W * 0})]),
        ("PoorWeightInitialization", [_seen(weights={"v": W, "w": 4 * W})]),
        ("PoorWeightInitialization", [_seen(gradients={"w": W * 1e-4})]),
        ("LossNotDecreasing", [_seen(10, 1.0), _seen(20, 1.0)]),
        ("DeadRelu", [_seen(activity={"relu": np.array([0.0, 0.0, 1.0])})]),
        ("SaturatedActivation", [_seen(saturation={"tanh": np.array([1.0, 1.0, 0.0])})]),
    ],
)
def test_a_debugger_rule_fires_at_its_published_threshold(rule: str, series: list[Seen]) -> None:
    with np.errstate(all="ignore"):
        assert sagemaker.RULES[rule](series)


def test_debugger_rules_are_quiet_over_a_training_that_goes_well_and_an_alarm_counts_once() -> None:
    series = [_seen(10 * n, 1.0 / n, weights={"w": W * (1 + 0.01 * n)}) for n in range(1, 9)]
    assert sagemaker.alarms(series) == []
    broken = [dataclasses.replace(s, weights={"w": W * np.nan}) if s.step > 50 else s for s in series]
    assert [a for a in sagemaker.alarms(broken) if a[0] == "ExplodingTensor"] == [("ExplodingTensor", 6)]
