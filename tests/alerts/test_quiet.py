"""Silences and maintenance windows: who need not be told, and until when."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any
from zoneinfo import ZoneInfo

import pytest
import yaml
from pydantic import ValidationError

from alerts.announcing import Route
from alerts.engine import Engine, EngineSettings
from alerts.quiet import MaintenanceWindow, quiet_reason
from alerts.registry import rule_setting
from storage import queries, writer
from storage.database import Database
from storage.records import Alert, AlertState, Severity, Silence
from tests.support.alert_series import START, snapshot_of
from tests.support.stored import make_alert

BAD: Mapping[str, Any] = {"tensors": [{"name": "a.weight", "n_nan": 3}]}


def at(text: str, zone: str = "UTC") -> float:
    return datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone)).timestamp()


def silence(**changes: Any) -> Silence:
    facts: dict[str, Any] = {"id": 3, "runs": "gpt", "rules": "*", "created_at": START, "ends_at": START + 60}
    return Silence(**{**facts, "comment": "", **changes})


def window(**keys: Any) -> MaintenanceWindow:
    return MaintenanceWindow.model_validate(keys)


@pytest.mark.parametrize(
    ("runs", "rules", "covered"),
    [
        ("gpt", "*", True),
        ("gp*", "nonfinite", True),
        ("*", "non*", True),
        ("GPT", "*", False),
        ("gpt", "stalled_run", False),
        ("bert", "*", False),
    ],
)
def test_a_silence_covers_the_runs_and_rules_that_it_names(runs: str, rules: str, covered: bool) -> None:
    reason = quiet_reason(make_alert(), silences=[silence(runs=runs, rules=rules)], windows=(), at=START)
    assert (reason is not None) == covered
    if covered:
        assert reason == "silence 3 until 2023-11-14 22:14 UTC"


def test_a_name_with_signs_of_a_pattern_means_itself() -> None:
    alert = make_alert(run="sweep[1]/*")
    assert quiet_reason(alert, silences=[silence(runs="sweep[1]/*")], windows=(), at=START) is not None


@pytest.mark.parametrize(("later", "lasts"), [(-0.1, False), (0.0, True), (59.9, True), (60.0, False)])
def test_a_silence_lasts_from_its_beginning_to_its_end(later: float, lasts: bool) -> None:
    assert (quiet_reason(make_alert(), silences=[silence()], windows=(), at=START + later) is not None) == lasts


def test_a_window_that_happens_once() -> None:
    once = window(begins="2026-03-01T02:00", ends="2026-03-01T04:00", timezone="Europe/Berlin")
    assert once.lasts_at(at("2026-03-01T01:00"))
    assert not once.lasts_at(at("2026-03-01T00:59:59"))
    assert not once.lasts_at(at("2026-03-01T03:00"))
    offset = window(begins="2026-03-01T02:00+05:00", ends="2026-03-01T04:00Z", timezone="Europe/Berlin")
    assert offset.lasts_at(at("2026-02-28T21:00"))
    assert offset.lasts_at(at("2026-03-01T03:59"))


def test_a_weekly_window_goes_past_midnight_and_belongs_to_the_day_on_which_it_begins() -> None:
    night = window(days=["fri"], **{"from": "22:00", "to": "04:00"}, timezone="America/New_York")
    zone = "America/New_York"
    assert night.lasts_at(at("2026-03-06T22:00", zone))  # a Friday
    assert night.lasts_at(at("2026-03-07T03:59", zone))
    assert not night.lasts_at(at("2026-03-07T04:00", zone))
    assert not night.lasts_at(at("2026-03-06T03:00", zone))
    assert not night.lasts_at(at("2026-03-07T22:00", zone))


def test_a_weekly_window_keeps_to_the_clock_on_the_wall_when_that_changes() -> None:
    daily = window(**{"from": "09:00", "to": "10:00"}, timezone="Europe/Berlin")
    assert daily.lasts_at(at("2026-03-28T08:30"))  # winter time
    assert daily.lasts_at(at("2026-03-30T07:30"))  # summer time
    assert not daily.lasts_at(at("2026-03-30T08:30"))


def test_a_window_covers_what_it_names() -> None:
    always = window(runs="debug/*", **{"from": "00:00", "to": "00:00"})
    assert quiet_reason(make_alert(run="debug/1"), silences=(), windows=[always], at=START) == "maintenance of debug/*"
    assert quiet_reason(make_alert(run="gpt"), silences=(), windows=[always], at=START) is None


@pytest.mark.parametrize(
    "written", ["from: 22:30\nto: 6:05", "from: '22:30'\nto: '06:05'", "from: 22:30:00\nto: 06:05"]
)
def test_times_mean_the_same_with_and_without_quotes(written: str) -> None:
    keys = yaml.safe_load(written)
    if isinstance(keys["from"], int) and keys["from"] > 1440:
        with pytest.raises(ValidationError, match="time of day"):
            window(**keys)
        return
    found = window(**keys)
    assert (str(found.from_time), str(found.to_time)) == ("22:30:00", "06:05:00")


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({}, "either begins and ends, or from and to"),
        ({"begins": "2026-03-01"}, "either"),
        ({"from": "10:00"}, "either"),
        ({"begins": "2026-03-01", "ends": "2026-03-02", "from": "10:00", "to": "11:00"}, "either"),
        ({"begins": "2026-03-02", "ends": "2026-03-01"}, "end after it begins"),
        ({"from": "10:00", "to": "11:00", "timezone": "Mars/Olympus"}, "time zone"),
        ({"from": "10:00Z", "to": "11:00"}, "set timezone"),
        ({"from": "10:00", "to": "11:00", "days": ["someday"]}, "mon"),
        ({"from": "10:00", "to": "11:00", "days": []}, "at least 1"),
        ({"from": True, "to": "11:00"}, "time of day"),
    ],
)
def test_a_window_that_makes_no_sense_is_refused(keys: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        window(**keys)


class Bench:
    """An engine with one rule and one receiver, over a database and a clock of its own."""

    def __init__(self, database: Database, **settings: Any) -> None:
        self.database = database
        self.now = START
        facts: dict[str, Any] = {
            "rules": (rule_setting("nonfinite", {}),),
            "routes": (Route(notifier="pager", wait_seconds=5.0),),
            "repeat_interval_seconds": 100.0,
        }
        self.engine = Engine(EngineSettings(**{**facts, **settings}), clock=lambda: self.now)
        self.n = 0

    def snapshot(self, entry: Mapping[str, Any]) -> Any:
        self.n += 1
        self.now = START + self.n * 60.0 + 1.0
        return self.engine.record(self.database, snapshot_of(entry, self.n))

    def tick(self, later: float) -> Any:
        self.now += later
        return self.engine.tick(self.database, "gpt", self.now)

    def silence(self, **changes: Any) -> int:
        facts: dict[str, Any] = {"runs": "gpt", "rules": "*", "now": START, "ends_at": START + 10_000.0}
        with self.database.write() as session:
            return writer.add_silence(session, **{**facts, **changes})

    def alerts(self) -> list[Alert]:
        with self.database.read() as session:
            return queries.alerts(session)

    def outbox(self) -> list[tuple[str, float]]:
        with self.database.read() as session:
            found = queries.due_notifications(session, "pager", now=1e12, limit=100)
        return [(n.reason, n.due_at - n.created_at) for n in found]


def test_while_a_silence_lasts_alerts_go_on_and_nobody_is_told(database: Database) -> None:
    bench = Bench(database)
    bench.silence()
    fired = bench.snapshot(BAD)
    assert fired.n_enqueued == 0
    assert list(fired.quiet.values()) == ["silence 1 until 2023-11-15 01:00 UTC"]
    assert [a.state for a in bench.alerts()] == [AlertState.FIRING]
    assert bench.tick(1000.0).n_enqueued == 0
    assert bench.snapshot({}).n_enqueued == 0
    assert [a.state for a in bench.alerts()] == [AlertState.RESOLVED]
    assert bench.outbox() == []


def test_what_still_fires_when_the_silence_ends_is_told_once(database: Database) -> None:
    bench = Bench(database, repeat_interval_seconds=None)
    number = bench.silence()
    bench.snapshot(BAD)
    assert bench.tick(15.0).n_enqueued == 0
    with database.write() as session:
        assert writer.end_silence(session, number, bench.now)
    assert bench.tick(15.0).n_enqueued == 1
    assert bench.tick(15.0).n_enqueued == 0
    bench.snapshot({})
    assert [reason for reason, _ in bench.outbox()] == ["firing", "resolved"]


def test_a_silence_made_after_the_firing_also_keeps_repeats_and_the_end_quiet(database: Database) -> None:
    bench = Bench(database)
    bench.snapshot(BAD)
    bench.silence()
    assert bench.tick(500.0).n_enqueued == 0
    assert bench.snapshot({}).n_enqueued == 0
    assert bench.outbox() == [("firing", 5.0)]


def test_another_run_and_another_rule_are_told(database: Database) -> None:
    bench = Bench(database)
    bench.silence(runs="bert")
    bench.silence(rules="stalled_run")
    assert bench.snapshot(BAD).n_enqueued == 1


def test_in_a_maintenance_window_nobody_is_told(database: Database) -> None:
    lasting = MaintenanceWindow(begins=datetime.fromtimestamp(START, UTC), ends=datetime.fromtimestamp(START + 70, UTC))
    bench = Bench(database, windows=(lasting,))
    assert bench.snapshot(BAD).quiet.popitem()[1] == "maintenance of *"
    assert bench.tick(1.0).n_enqueued == 0
    assert bench.tick(60.0).n_enqueued == 1


def test_a_new_alert_waits_for_others_of_its_run_and_its_end_does_not(database: Database) -> None:
    bench = Bench(database)
    bench.snapshot(BAD)
    bench.snapshot({})
    assert bench.outbox() == [("firing", 5.0), ("resolved", 0.0)]


def test_what_no_receiver_wants_is_not_looked_for_again(database: Database) -> None:
    bench = Bench(database, routes=(Route(notifier="pager", severity_min=Severity.CRITICAL),))
    with database.write() as session:
        writer.add_snapshot(session, snapshot_of({}, 0))
        writer.save_alert(session, make_alert(rule="stalled_run", severity=Severity.WARNING))
    assert bench.tick(1.0).n_enqueued == 0
    assert bench.outbox() == []
