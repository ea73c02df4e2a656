"""A snapshot in, findings, alerts and outbox rows out, once."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import pytest

from alerts import registry
from alerts.announcing import Route
from alerts.engine import Engine, EngineSettings, RecordOutcome, RunOverride
from alerts.lifecycle import Transition
from alerts.rule import Needs, Outcome, RuleSetting
from storage import queries, writer
from storage.database import Database
from storage.errors import DatabaseError
from storage.records import AlertState, Notification, Severity, StoredSnapshot, Window
from tests.support.alert_series import START, snapshot_of
from tests.support.stored import make_finding

HOUR = 3600.0
SLACK = Route(notifier="slack")


class Clock:
    def __init__(self, now: float = START) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


class Broken:
    """A rule that raises."""

    name: ClassVar[str] = "broken"
    severity: ClassVar[Severity] = Severity.WARNING
    needs: ClassVar[tuple[Needs, ...]] = ()
    on_tick: ClassVar[bool] = True

    @dataclass(frozen=True)
    class Options:
        """None."""

    def check(self, window: Window, options: Options) -> Outcome:
        raise ZeroDivisionError("this rule is broken")


class Told:
    """A rule that finds whatever the test says; None stands for silence."""

    name: ClassVar[str] = "told"
    severity: ClassVar[Severity] = Severity.WARNING
    needs: ClassVar[tuple[Needs, ...]] = ()
    on_tick: ClassVar[bool] = False
    severities: Severity | None = Severity.WARNING

    @dataclass(frozen=True)
    class Options:
        """None."""

    def check(self, window: Window, options: Options) -> Outcome:
        if self.severities is None:
            return Outcome(silent="not asked")
        return Outcome(findings=(make_finding(severity=self.severities, value=float("nan")),))


def make_engine(clock: Clock | None = None, exists: Any = None, **changes: Any) -> Engine:
    facts: dict[str, Any] = {
        "rules": tuple(registry.rule_setting(name, {}) for name in registry.rule_names()),
        "routes": (SLACK,),
        **changes,
    }
    return Engine(EngineSettings(**facts), clock=clock or Clock(), exists=exists)


def feed(engine: Engine, database: Database, *entries: Mapping[str, Any], first: int = 0) -> list[RecordOutcome]:
    return [engine.record(database, snapshot_of(entry, first + n)) for n, entry in enumerate(entries)]


def outbox(database: Database, notifier: str = "slack", now: float = START + 1e9) -> list[Notification]:
    """Return what is due one message after the other, and mark it sent."""
    sent: list[Notification] = []
    while True:
        with database.write() as session:
            due = queries.due_notifications(session, notifier, now=now, limit=100)
            for notification in due:
                writer.mark_sent(session, notification.id, now)
        if not due:
            return sent
        sent += due


NAN: dict[str, Any] = {"tensors": [{"name": "embed"}, {"name": "head", "n_nan": 2}]}


def test_nan_is_one_critical_message_with_run_step_tensor_and_last_good_checkpoint(database: Database) -> None:
    feed(make_engine(), database, {"step": 10}, {"step": 20}, {"step": 30, **NAN}, {"step": 40, **NAN})
    messages = outbox(database)
    assert [m.reason for m in messages] == ["firing"]
    alert = messages[0].alert
    assert (alert.run, alert.step, alert.subject, alert.severity) == ("gpt", 30, "head", Severity.CRITICAL)
    assert (messages[0].last_good_step, messages[0].last_good_path) == (20, "/data/gpt/checkpoint-20.pt")


def test_recovery_is_told_once_and_the_good_checkpoint_is_the_recovered_one(database: Database) -> None:
    feed(make_engine(), database, {"step": 10}, {"step": 20, **NAN}, {"step": 30}, {"step": 40})
    messages = outbox(database)
    assert [m.reason for m in messages] == ["firing", "resolved"]
    assert messages[1].alert.state is AlertState.RESOLVED
    assert messages[1].last_good_step == 30


def test_the_second_time_is_a_new_episode_and_a_new_message(database: Database) -> None:
    feed(make_engine(), database, {"step": 10, **NAN}, {"step": 20}, {"step": 30, **NAN})
    messages = outbox(database)
    assert [(m.reason, m.alert.episode) for m in messages] == [("firing", 1), ("resolved", 1), ("firing", 2)]
    assert len({m.deduplication_key for m in messages}) == 3


def test_the_same_snapshot_twice_changes_nothing(database: Database) -> None:
    engine = make_engine()
    first, second = feed(engine, database, {"step": 10, **NAN}), feed(engine, database, {"step": 10, **NAN})
    assert first[0].stored
    assert second == [RecordOutcome(stored=False)]
    assert len(outbox(database)) == 1


def test_a_new_engine_on_the_same_database_goes_on_where_the_old_one_stopped(database: Database) -> None:
    for n, entry in enumerate([{"step": 10, **NAN}, {"step": 20, **NAN}, {"step": 30}, {"step": 40}]):
        feed(make_engine(), database, entry, first=n)
        feed(make_engine(), database, entry, first=n)
    assert [m.reason for m in outbox(database)] == ["firing", "resolved"]


def test_findings_are_stored_with_the_snapshot(database: Database) -> None:
    outcome = feed(make_engine(), database, {"step": 10, **NAN})[0]
    assert outcome.snapshot_id is not None
    with database.read() as session:
        found = queries.findings(session, outcome.snapshot_id)
        stored = queries.snapshot(session, outcome.snapshot_id)
    assert [f.rule for f in found] == ["nonfinite"]
    assert found == outcome.findings
    assert stored is not None
    assert stored.worst_severity is Severity.CRITICAL


def test_a_mask_is_noted_opens_no_alert_and_leaves_the_checkpoint_good(database: Database) -> None:
    mask = {"tensors": [{"name": "embed"}, {"name": "mask", "n_neginf": 6, "n_zero": 6}]}
    broken = {"tensors": [{"name": "embed", "n_nan": 1}, {"name": "mask", "n_neginf": 6, "n_zero": 6}]}
    outcomes = feed(make_engine(), database, {"step": 10, **mask}, {"step": 20, **broken})
    assert outcomes[0].changes == ()
    message = outbox(database)[0]
    assert (message.last_good_step, message.alert.step, message.alert.subject) == (10, 20, "embed")


def test_an_explosion_fires_stays_and_is_over(database: Database) -> None:
    engine = make_engine()
    outcomes = feed(engine, database, *[{"gradient": g} for g in [1, 1, 1, 1, 1, 50, 60, 55, 1]])
    assert [[c.transition for c in o.changes] for o in outcomes[5:]] == [
        [Transition.FIRED],
        [Transition.SEEN],
        [Transition.SEEN],
        [Transition.RESOLVED],
    ]
    firing, resolved = outbox(database)
    assert (firing.last_good_step, resolved.last_good_step) == (5, 9)


def test_a_rule_that_cannot_judge_does_not_resolve_its_alert(database: Database) -> None:
    outcomes = feed(
        make_engine(),
        database,
        *[{"gradient": 1.0}] * 5,
        {"gradient": 50.0},
        {"tensors": [{"n_nan": 1}]},
        {"failed": "corrupt"},
    )
    assert "gradient_explosion" in outcomes[6].silent
    with database.read() as session:
        firing = {a.rule for a in queries.open_alerts(session, "gpt") if a.state is AlertState.FIRING}
    assert firing == {"gradient_explosion", "nonfinite", "unreadable_checkpoint"}


def test_a_failed_checkpoint_is_a_warning_until_one_can_be_read(database: Database) -> None:
    feed(make_engine(), database, {"step": 1}, {"step": 2, "failed": "truncated"}, {"step": 3})
    messages = outbox(database)
    assert [(m.reason, m.alert.rule) for m in messages] == [
        ("firing", "unreadable_checkpoint"),
        ("resolved", "unreadable_checkpoint"),
    ]
    assert messages[0].last_good_step == 1


def test_a_rule_that_raises_is_counted_and_stops_no_other(database: Database, caplog: pytest.LogCaptureFixture) -> None:
    broken = RuleSetting(rule=Broken(), options=Broken.Options())
    engine = make_engine(rules=(broken, registry.rule_setting("nonfinite", {})))
    with caplog.at_level(logging.CRITICAL, logger="alerts.engine"):
        outcome = feed(engine, database, {"step": 10, **NAN})[0]
        ticked = engine.tick(database, "gpt", START)
    assert [(f.rule, f.message) for f in outcome.failures] == [("broken", "ZeroDivisionError: this rule is broken")]
    assert [c.alert.rule for c in outcome.changes] == ["nonfinite"]
    assert [f.rule for f in ticked.failures] == ["broken"]


def test_a_late_older_checkpoint_keeps_its_findings_but_moves_no_alert(database: Database) -> None:
    engine = make_engine()
    feed(engine, database, {"step": 10}, {"step": 30})
    late = engine.record(database, snapshot_of({"step": 20, **NAN}, 5))
    assert late.late
    assert [f.rule for f in late.findings] == ["nonfinite"]
    assert late.changes == ()
    assert outbox(database) == []


def test_nothing_is_stored_when_the_transaction_fails(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object, **kwargs: object) -> bool:
        raise DatabaseError("disk full")

    monkeypatch.setattr("storage.writer.enqueue", full)
    with pytest.raises(DatabaseError):
        feed(make_engine(), database, {"step": 10, **NAN})
    monkeypatch.undo()
    with database.read() as session:
        assert queries.newest(session, "gpt") is None
        assert queries.open_alerts(session) == []
    assert feed(make_engine(), database, {"step": 10, **NAN})[0].n_enqueued == 1


def test_each_notifier_hears_from_its_own_severity_on(database: Database) -> None:
    routes = (
        Route(notifier="slack", severity_min=Severity.CRITICAL),
        Route(notifier="email", severity_min=Severity.WARNING, send_resolved=False),
    )
    feed(make_engine(routes=routes), database, {"step": 1, "failed": "corrupt"}, {"step": 2, **NAN}, {"step": 3})
    assert [(m.alert.rule, m.reason) for m in outbox(database, "slack")] == [
        ("nonfinite", "firing"),
        ("nonfinite", "resolved"),
    ]
    assert [(m.alert.rule, m.reason) for m in outbox(database, "email")] == [
        ("unreadable_checkpoint", "firing"),
        ("nonfinite", "firing"),
    ]


def test_a_rising_severity_is_told_again_and_reaches_who_only_hears_the_worst(database: Database) -> None:
    told = Told()
    routes = (SLACK, Route(notifier="pager", severity_min=Severity.CRITICAL))
    engine = make_engine(rules=(RuleSetting(rule=told, options=None),), routes=routes)
    feed(engine, database, {"step": 1})
    told.severities = Severity.CRITICAL
    feed(engine, database, {"step": 2}, {"step": 3}, first=1)
    assert [m.alert.severity for m in outbox(database, "slack")] == [Severity.WARNING, Severity.CRITICAL]
    assert [m.alert.severity for m in outbox(database, "pager")] == [Severity.CRITICAL]


def test_an_alert_that_never_fired_is_not_told_to_be_over(database: Database) -> None:
    patient = registry.rule_setting("nonfinite", {"for_snapshots": 2})
    feed(make_engine(rules=(patient,)), database, {"step": 1, **NAN}, {"step": 2})
    assert outbox(database) == []


def test_an_alert_that_fired_before_there_was_a_notifier_is_not_told_to_be_over(database: Database) -> None:
    feed(make_engine(routes=()), database, {"step": 1, **NAN})
    feed(make_engine(), database, {"step": 2}, first=1)
    assert outbox(database) == []


def test_two_clean_checkpoints_can_be_asked_for_before_it_is_over(database: Database) -> None:
    patient = registry.rule_setting("nonfinite", {"resolve_after_snapshots": 2})
    outcomes = []
    for n, entry in enumerate([{**NAN}, {}, {}, {}]):
        outcomes += feed(make_engine(Clock(START + n * 100.0 + 2.0), rules=(patient,)), database, entry, first=n)
    assert [[c.transition for c in o.changes] for o in outcomes] == [
        [Transition.FIRED],
        [Transition.MISSED],
        [Transition.RESOLVED],
        [],
    ]


def test_a_run_can_have_settings_of_its_own(database: Database) -> None:
    off = RunOverride(runs="gp*", rules=(registry.rule_setting("nonfinite", {"enabled": False}),))
    other = RunOverride(runs="bert*", rules=(registry.rule_setting("stalled_run", {"enabled": False}),))
    outcome = feed(make_engine(overrides=(off, other)), database, {"step": 1, **NAN})[0]
    assert outcome.findings == ()


def test_a_severity_can_be_set(database: Database) -> None:
    mild = registry.rule_setting("nonfinite", {"severity": "warning"})
    outcome = feed(make_engine(rules=(mild,)), database, {"step": 1, **NAN})[0]
    assert [f.severity for f in outcome.findings] == [Severity.WARNING]


def test_switching_a_rule_off_ends_its_alerts(database: Database) -> None:
    feed(make_engine(), database, {"step": 1, **NAN})
    off = (registry.rule_setting("nonfinite", {"enabled": False}),)
    outcome = make_engine(rules=off).tick(database, "gpt", START + 5)
    assert [c.transition for c in outcome.changes] == [Transition.RESOLVED]
    assert [m.reason for m in outbox(database)] == ["firing", "resolved"]


def test_numbers_that_are_none_do_not_reach_the_database_as_nan(database: Database) -> None:
    outcome = feed(make_engine(rules=(RuleSetting(rule=Told(), options=None),)), database, {"step": 1})[0]
    assert [f.value for f in outcome.findings] == [None]
    assert [f.rule for f in outcome.findings] == ["told"]


def test_the_last_good_checkpoint_is_still_there_and_was_not_overwritten(database: Database) -> None:
    asked: list[int | None] = []

    def exists(snapshot: StoredSnapshot) -> bool:
        asked.append(snapshot.step)
        return snapshot.step == 1

    engine = make_engine(exists=exists)
    feed(
        engine,
        database,
        {"step": 1},
        {"step": 2},
        {"step": 3, "path": "/data/last.pt"},
        {"step": 4, "path": "/data/last.pt", **NAN},
    )
    assert outbox(database)[0].last_good_step == 1
    assert 3 not in asked[-2:]


def stalled(clock: Clock, database: Database) -> Engine:
    engine = make_engine(clock)
    feed(engine, database, *[{}] * 8)
    return engine


def test_time_alone_finds_a_stalled_run_once_and_a_checkpoint_ends_it(database: Database) -> None:
    clock = Clock()
    engine = stalled(clock, database)
    assert engine.tick(database, "gpt", START + 1000.0).changes == ()
    outcome = engine.tick(database, "gpt", START + 1400.0)
    assert [(c.transition, c.alert.rule) for c in outcome.changes] == [(Transition.FIRED, "stalled_run")]
    assert engine.tick(database, "gpt", START + 1500.0).changes == ()
    assert make_engine(clock).tick(database, "gpt", START + 1500.0).changes == ()
    feed(engine, database, {"at": 2000}, first=8)
    assert [m.reason for m in outbox(database)] == ["firing", "resolved"]


def test_the_end_of_a_run_ends_its_stall(database: Database) -> None:
    engine = stalled(Clock(), database)
    engine.tick(database, "gpt", START + 1400.0)
    with database.write() as session:
        writer.set_run_active(session, "gpt", False)
    outcome = engine.tick(database, "gpt", START + 1500.0)
    assert [c.transition for c in outcome.changes] == [Transition.RESOLVED]


def test_a_tick_without_change_writes_nothing(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = stalled(Clock(), database)
    engine.tick(database, "gpt", START + 1400.0)

    def no_write() -> None:
        raise AssertionError("a tick that changes nothing must not write")

    monkeypatch.setattr(database, "write", no_write)
    engine.tick(database, "gpt", START + 1410.0)


def test_a_tick_of_an_unknown_run_says_nothing(database: Database) -> None:
    assert make_engine().tick(database, "nobody", START) == RecordOutcome(stored=False)


def test_what_still_fires_is_repeated_every_four_hours_also_over_restarts(database: Database) -> None:
    clock = Clock()
    feed(make_engine(clock), database, {"step": 1}, {"step": 2, **NAN})
    for hours in (1.0, 3.9, 4.0, 4.1, 7.9, 8.0, 8.0, 30.0):
        make_engine(clock).tick(database, "gpt", START + hours * HOUR)
    messages = outbox(database)
    repeats = [m.created_at - START for m in messages if m.reason == "repeat" and m.alert.rule == "nonfinite"]
    assert repeats == [4.0 * HOUR, 8.0 * HOUR, 30.0 * HOUR]
    assert all(m.last_good_step == 1 for m in messages if m.reason == "repeat")


def test_nothing_is_repeated_for_a_run_that_has_ended_or_where_repeats_are_off(database: Database) -> None:
    feed(make_engine(), database, {"step": 1, **NAN})
    assert make_engine(repeat_interval_seconds=None).tick(database, "gpt", START + 50 * HOUR).n_enqueued == 0
    with database.write() as session:
        writer.set_run_active(session, "gpt", False)
    assert make_engine().tick(database, "gpt", START + 50 * HOUR).n_enqueued == 0


def test_runs_do_not_touch_each_other(database: Database) -> None:
    engine = make_engine()
    engine.record(database, snapshot_of({"step": 1, **NAN}, 0, run="a"))
    engine.record(database, snapshot_of({"step": 1}, 1, run="b"))
    with database.read() as session:
        assert [a.run for a in queries.open_alerts(session)] == ["a"]


def test_a_restart_of_the_run_from_the_last_good_checkpoint_resolves_its_alert(database: Database) -> None:
    feed(make_engine(), database, {"step": 10}, {"step": 20, **NAN}, {"step": 15, "attempt": 2})
    assert [m.reason for m in outbox(database)] == ["firing", "resolved"]


def test_the_first_bad_checkpoint_after_a_restart_names_the_good_one_before_it(database: Database) -> None:
    feed(make_engine(), database, {"step": 10}, {"step": 5, "attempt": 2, **NAN})
    assert outbox(database)[0].last_good_step == 10


def test_settings_are_plain_data_that_can_be_replaced() -> None:
    settings = EngineSettings(rules=())
    assert replace(settings, repeat_interval_seconds=1.0).repeat_interval_seconds == 1.0
