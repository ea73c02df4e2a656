"""A stored run judged again: what is stored is enough, and nothing stored is touched."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from alerts import registry
from alerts.announcing import Route
from alerts.engine import Engine, EngineSettings
from monitor.replay import replay
from storage import queries
from storage.database import Database, open_database
from tests.support.alert_series import expanded, snapshot_of

SERIES: list[Mapping[str, Any]] = [
    {"gradient": 1.0, "repeat": 8},
    {"gradient": 6.0},
    {"gradient": 1.0},
    {"gradient": 40.0},
    {"tensors": [{"name": "a.weight", "n_nan": 2}]},
]


@pytest.fixture
def source(tmp_path: Path) -> Iterator[Database]:
    opened = open_database(str(tmp_path / "source.db"))
    yield opened
    opened.close()


@pytest.fixture
def scratch(tmp_path: Path) -> Iterator[Database]:
    opened = open_database(str(tmp_path / "scratch.db"))
    yield opened
    opened.close()


def _settings(*, routes: tuple[Route, ...] = (), **options: Any) -> EngineSettings:
    explosion = registry.rule_setting("gradient_explosion", {"highest_min": 1.0, **options})
    return EngineSettings(rules=(explosion, registry.rule_setting("nonfinite", {})), routes=routes)


def _store(
    database: Database, settings: EngineSettings, series: list[Mapping[str, Any]] = SERIES
) -> list[tuple[str, int]]:
    """Record the series and return the (rule, step) of what fired."""
    now = 0.0
    engine = Engine(settings, clock=lambda: now)
    fired = []
    for index, entry in enumerate(expanded(series)):
        snapshot = snapshot_of(entry, index)
        now = snapshot.measured_at
        outcome = engine.record(database, snapshot)
        fired += [
            (change.alert.rule, change.alert.step or 0)
            for change in outcome.changes
            if change.transition.value == "fired"
        ]
    return fired


def test_the_same_settings_fire_the_same_alerts_at_the_same_steps_and_times(
    source: Database, scratch: Database
) -> None:
    fired = _store(source, _settings())
    found = replay(source, scratch, _settings(), "gpt", limit=100)
    assert found is not None
    assert [(a.rule, a.step) for a in found.fired] == fired
    assert ("gradient_explosion", 11) in fired
    with source.read() as session:
        measured = {s.step: s.measured_at for s in queries.history(session, "gpt", limit=100)}
    assert all(a.fired_at == measured[a.step] for a in found.fired)


def test_other_thresholds_fire_otherwise_and_leave_what_is_stored_alone(source: Database, scratch: Database) -> None:
    _store(source, _settings(z_max=1000.0))
    with source.read() as session:
        before = (queries.alerts(session), queries.history(session, "gpt", limit=100))
    strict = replay(source, scratch, _settings(factor=4.0), "gpt", limit=100)
    assert strict is not None
    assert [a.step for a in strict.fired if a.rule == "gradient_explosion"] == [9, 11]
    with source.read() as session:
        assert (queries.alerts(session), queries.history(session, "gpt", limit=100)) == before


def test_only_the_latest_snapshots_are_judged_and_a_rule_that_lacks_a_past_says_so(
    source: Database, scratch: Database
) -> None:
    _store(source, _settings())
    found = replay(source, scratch, _settings(), "gpt", limit=3)
    assert found is not None
    assert found.n_snapshots == 3
    assert [(a.rule, a.step) for a in found.fired] == [("nonfinite", 12)]
    assert "gradient_explosion" in found.silent


def test_nobody_is_told_of_a_replay(source: Database, scratch: Database) -> None:
    _store(source, _settings())
    assert replay(source, scratch, _settings(routes=(Route(notifier="slack"),)), "gpt", limit=100) is not None
    with scratch.read() as session:
        assert queries.outbox_counts(session) == {}


def test_a_run_that_is_not_stored_gives_none(source: Database, scratch: Database) -> None:
    assert replay(source, scratch, _settings(), "no/such", limit=10) is None
