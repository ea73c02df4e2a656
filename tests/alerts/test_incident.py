"""The alerts of a run under their first cause: one conversation, however many rules and tensors are hit."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, ClassVar, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alerts import registry
from alerts.announcing import Route, deduplication_key
from alerts.digest import compose_group
from alerts.document import document
from alerts.engine import Engine, EngineSettings, RecordOutcome
from alerts.incident import OTHERS_MAX, Occasion, gather, gathering, lead, news
from alerts.message import compose
from alerts.rule import Needs, Outcome, Rule, RuleSetting
from storage import queries, telling, writer
from storage.database import Database, open_database
from storage.records import AlertState, Finding, Incident, Notification, Severity, Window
from tests.support.alert_series import PACE_SECONDS, START, snapshot_of
from tests.support.stored import make_alert, make_finding

WARNING, CRITICAL = Severity.WARNING, Severity.CRITICAL
Script = Mapping[int, Severity | None]


class Scripted:
    """A rule that finds what the test says at each step; a step that is not named finds nothing, None is silence."""

    severity: ClassVar[Severity] = WARNING
    needs: ClassVar[tuple[Needs, ...]] = ()
    on_tick: ClassVar[bool] = False
    Options: ClassVar[type[Any]] = dict

    def __init__(self, name: str, script: Script, subject: str = "") -> None:
        self.name = name
        self.script = script
        self.subject = subject

    def check(self, window: Window, options: Any) -> Outcome:
        newest = window.newest
        assert newest is not None
        assert newest.step is not None
        if newest.step not in self.script:
            return Outcome()
        severity = self.script[newest.step]
        if severity is None:
            return Outcome(silent="not asked")
        return Outcome(findings=(self.finding(newest.step, severity),))

    def finding(self, step: int, severity: Severity) -> Finding:
        return make_finding(
            self.name, step=step, severity=severity, subject=self.subject, summary=f"{self.name} hit", identity=""
        )


class Late(Scripted):
    """The same, asked when time has passed: stalled for as long as it is told to be."""

    on_tick: ClassVar[bool] = True
    hits = False

    def check(self, window: Window, options: Any) -> Outcome:
        return Outcome(findings=(self.finding(1, WARNING),)) if self.hits and window.reason == "tick" else Outcome()


@dataclass
class Bench:
    """An engine with rules after a script, and what its receivers were told."""

    database: Database
    rules: tuple[Scripted, ...]
    routes: tuple[Route, ...] = (Route(notifier="slack"),)
    patience: Mapping[str, int] | None = None
    repeat_interval_seconds: float | None = None
    now: float = START

    def engine(self) -> Engine:
        patience = self.patience or {}
        settings = tuple(
            RuleSetting(rule=cast(Rule, r), options={}, for_snapshots=patience.get(r.name)) for r in self.rules
        )
        repeat = self.repeat_interval_seconds
        return Engine(
            EngineSettings(rules=settings, routes=self.routes, repeat_interval_seconds=repeat), clock=lambda: self.now
        )

    def go(self, first: int, last: int, **entry: Any) -> list[RecordOutcome]:
        outcomes = []
        for step in range(first, last + 1):
            self.now = START + step * PACE_SECONDS + 1.0
            snapshot = snapshot_of({"step": step, **entry}, step)
            outcomes.append(self.engine().record(self.database, snapshot))
        return outcomes

    def tick(self, seconds: float) -> RecordOutcome:
        self.now += seconds
        return self.engine().tick(self.database, "gpt", self.now)

    def told(self, notifier: str = "slack") -> list[Notification]:
        found: list[Notification] = []
        while True:
            with self.database.write() as session:
                due = queries.due_notifications(session, notifier, now=1e12, limit=1)
                for notification in due:
                    writer.mark_sent(session, notification.id, self.now, f"receipt-{notification.id}")
            if not due:
                return found
            found += due

    def said(self, notifier: str = "slack") -> list[tuple[str, str, str]]:
        return [(n.reason, n.alert.rule, n.alert.severity.label) for n in self.told(notifier)]

    def incidents(self) -> list[Incident]:
        with self.database.read() as session:
            found = {a.incident.id: a.incident for a in queries.alerts(session, limit=10_000) if a.incident}
        return [found[number] for number in sorted(found)]


def test_three_hundred_tensors_of_nan_are_exactly_one_notification(database: Database) -> None:
    rules = tuple(registry.rule_setting(name, {}) for name in registry.rule_names())
    routes = (Route(notifier="slack"), Route(notifier="hook", severity_min=Severity.INFO))
    engine = Engine(EngineSettings(rules=rules, routes=routes, repeat_interval_seconds=None), clock=lambda: START)
    names = [f"layers.{n}.weight" for n in range(300)]
    good: dict[str, Any] = {"tensors": [{"name": n, "std": 0.5} for n in names], "gradient": 1.0}
    spreading = [{"name": n, "n_nan": 12 if i >= 290 else 0} for i, n in enumerate(names)]
    dead = [{"name": n, "n_nan": 12, "norm_l2": None, "std": None, "abs_max": None} for n in names]
    for step in range(1, 9):
        engine.record(database, snapshot_of({"step": step, **good}, step))
    engine.record(database, snapshot_of({"step": 9, "tensors": spreading}, 9))
    for step in range(10, 14):
        engine.record(database, snapshot_of({"step": step, "tensors": dead}, step))
    for notifier in ("slack", "hook"):
        with database.read() as session:
            messages = queries.due_notifications(session, notifier, now=1e12, limit=100)
        assert [(m.alert.rule, m.alert.step, m.alert.subject) for m in messages] == [
            ("nonfinite", 9, "layers.290.weight")
        ]
        assert messages[0].last_good_step == 8


def test_rules_that_hit_in_one_checkpoint_are_one_incident_under_the_cause_of_them(database: Database) -> None:
    bench = Bench(
        database,
        (
            Scripted("weight_explosion", {2: CRITICAL, 3: CRITICAL}, "b.bias"),
            Scripted("drift_spike", {2: CRITICAL}, "a.weight"),
            Scripted("gradient_explosion", {2: CRITICAL}),
            Scripted("loss_spike", {2: WARNING}),
        ),
    )
    bench.go(1, 4)
    (incident,) = bench.incidents()
    assert (incident.rule, incident.step, incident.tensor) == ("gradient_explosion", 2, "a.weight")
    assert (incident.n_alerts, incident.severity, incident.state) == (4, CRITICAL, AlertState.RESOLVED)
    firing, resolved = bench.told()
    assert (firing.reason, resolved.reason) == ("firing", "resolved")
    assert firing.conversation == resolved.conversation == incident.opened_by
    assert resolved.first_receipt == f"receipt-{firing.id}"
    message = compose(firing)
    assert message.title == "Critical: gradient explosion and 3 more in gpt at step 2"
    labels = [label for label, _ in message.facts]
    assert labels[-3:] == [
        "Critical: drift spike at step 2",
        "Critical: weight explosion at step 2",
        "Warning: loss spike at step 2",
    ]
    assert compose(resolved).title == "Resolved: gradient explosion and 3 more in gpt at step 2"


def test_a_milder_cause_is_named_beside_the_worse_that_came_of_it(database: Database) -> None:
    bench = Bench(
        database, (Scripted("resume_discontinuity", {2: WARNING}), Scripted("weight_explosion", {2: CRITICAL}, "head"))
    )
    bench.go(1, 2)
    (message,) = bench.told()
    assert message.alert.rule == "weight_explosion"
    facts = dict(compose(message).facts)
    assert facts["First cause"] == "resume discontinuity at step 2: resume_discontinuity hit"


def test_what_follows_from_it_a_checkpoint_later_is_not_told_again(database: Database) -> None:
    bench = Bench(
        database,
        (
            Scripted("gradient_explosion", dict.fromkeys(range(2, 9), CRITICAL)),
            Scripted("weight_explosion", dict.fromkeys(range(3, 9), CRITICAL)),
            Scripted("loss_spike", dict.fromkeys(range(5, 9), WARNING)),
        ),
    )
    bench.go(1, 8)
    assert bench.said() == [("firing", "gradient_explosion", "critical")]
    bench.go(9, 9)
    (resolved,) = bench.told()
    assert resolved.gathering is not None
    assert [a.rule for a in resolved.gathering.others] == ["weight_explosion", "loss_spike"]


def test_a_later_and_worse_cause_goes_on_with_the_conversation(database: Database) -> None:
    bench = Bench(
        database,
        (Scripted("overfit", dict.fromkeys(range(2, 9), WARNING)), Scripted("nonfinite", {5: CRITICAL}, "a.weight")),
        routes=(Route(notifier="slack"), Route(notifier="pager", severity_min=CRITICAL)),
    )
    bench.go(1, 9)
    assert len(bench.incidents()) == 1
    told = bench.told()
    assert [(n.reason, n.alert.rule) for n in told] == [
        ("firing", "overfit"),
        ("firing", "nonfinite"),
        ("resolved", "nonfinite"),
    ]
    assert len({n.conversation for n in told}) == 1
    assert [n.first_receipt for n in told] == [None, *[f"receipt-{told[0].id}"] * 2]
    assert dict(compose(told[1]).facts)["First cause"].startswith("overfit at step 2")
    assert bench.said("pager") == [("firing", "nonfinite", "critical"), ("resolved", "nonfinite", "critical")]


def test_the_worst_that_comes_back_while_something_mild_goes_on_is_told_again(database: Database) -> None:
    bench = Bench(
        database,
        (
            Scripted("overfit", dict.fromkeys(range(2, 30), WARNING)),
            Scripted("nonfinite", {5: CRITICAL, 7: CRITICAL}, "a.weight"),
        ),
    )
    bench.go(1, 8)
    assert bench.said() == [
        ("firing", "overfit", "warning"),
        ("firing", "nonfinite", "critical"),
        ("firing", "nonfinite", "critical"),
    ]


def test_new_trouble_in_an_old_incident_is_told_and_what_comes_at_once_is_not(database: Database) -> None:
    bench = Bench(
        database,
        (
            Scripted("untouched_since_init", dict.fromkeys(range(2, 99), WARNING)),
            Scripted("loss_spike", dict.fromkeys(range(4, 99), WARNING)),
            Scripted("overfit", dict.fromkeys(range(9, 99), WARNING)),
        ),
    )
    bench.go(1, 12)
    assert bench.said() == [("firing", "untouched_since_init", "warning"), ("firing", "overfit", "warning")]


def test_a_stall_is_told_though_an_incident_of_the_same_severity_is_open(database: Database) -> None:
    stalled = Late("stalled_run", {})
    bench = Bench(database, (Scripted("overfit", dict.fromkeys(range(2, 9), WARNING)), stalled))
    bench.go(1, 2)
    stalled.hits = True
    assert bench.tick(500.0).n_enqueued == 1
    assert bench.tick(500.0).n_enqueued == 0
    assert bench.said() == [("firing", "overfit", "warning"), ("firing", "stalled_run", "warning")]


def test_an_alert_that_had_to_be_seen_twice_may_be_the_first_cause_after_all(database: Database) -> None:
    bench = Bench(
        database,
        (
            Scripted("gradient_explosion", {2: CRITICAL, 3: CRITICAL}),
            Scripted("weight_explosion", {3: CRITICAL}, "a.weight"),
        ),
        patience={"gradient_explosion": 2},
    )
    bench.go(1, 3)
    assert [(i.rule, i.step) for i in bench.incidents()] == [("gradient_explosion", 2)]
    late = Bench(
        database,
        (
            Scripted("gradient_explosion", {12: CRITICAL, 13: CRITICAL, 14: CRITICAL}),
            Scripted("weight_explosion", {13: CRITICAL, 14: CRITICAL}, "a.weight"),
        ),
        patience={"gradient_explosion": 3},
    )
    late.go(11, 14)
    incident = late.incidents()[-1]
    assert (incident.rule, incident.step, incident.n_alerts) == ("gradient_explosion", 12, 2)
    assert len(late.told()) == 3  # firing and resolved of the first, firing of the second


def test_a_new_incident_begins_when_all_of_the_old_one_is_over(database: Database) -> None:
    bench = Bench(database, (Scripted("nonfinite", {2: CRITICAL, 5: CRITICAL}),))
    bench.go(1, 6)
    assert [i.state for i in bench.incidents()] == [AlertState.RESOLVED, AlertState.RESOLVED]
    told = bench.told()
    assert [n.reason for n in told] == ["firing", "resolved", "firing", "resolved"]
    assert len({n.conversation for n in told}) == 2
    assert len({n.deduplication_key for n in told}) == 4


def test_an_info_is_told_on_its_own_and_not_while_there_is_worse(database: Database) -> None:
    info = Route(notifier="slack", severity_min=Severity.INFO)
    bench = Bench(
        database,
        (
            Scripted("duplicate_checkpoint", {2: Severity.INFO, 5: Severity.INFO, 6: Severity.INFO}),
            Scripted("nonfinite", {5: CRITICAL}),
        ),
        routes=(info,),
    )
    bench.go(1, 5)
    bench.tick(1.0)
    assert bench.said() == [
        ("firing", "duplicate_checkpoint", "info"),
        ("resolved", "duplicate_checkpoint", "info"),
        ("firing", "nonfinite", "critical"),
    ]
    bench.go(6, 6)
    bench.tick(1.0)
    assert bench.said() == [("resolved", "nonfinite", "critical"), ("firing", "duplicate_checkpoint", "info")]


def test_what_is_silenced_belongs_to_the_incident_and_does_not_speak_for_it(database: Database) -> None:
    bench = Bench(
        database,
        (
            Scripted("gradient_explosion", dict.fromkeys(range(2, 9), CRITICAL)),
            Scripted("loss_spike", dict.fromkeys(range(2, 9), WARNING)),
        ),
    )
    with database.write() as session:
        number = writer.add_silence(session, runs="*", rules="gradient_explosion", now=START, ends_at=1e11)
    bench.go(1, 3)
    (first,) = bench.told()
    assert first.alert.rule == "loss_spike"
    assert first.gathering is not None
    assert first.gathering.others == ()
    with database.write() as session:
        writer.end_silence(session, number, bench.now)
    assert bench.tick(1.0).n_enqueued == 1
    assert bench.tick(1.0).n_enqueued == 0
    (second,) = bench.told()
    assert (second.alert.rule, second.conversation) == ("gradient_explosion", first.conversation)


def test_an_incident_is_repeated_as_one(database: Database) -> None:
    bench = Bench(
        database,
        (Scripted("gradient_explosion", {2: CRITICAL}), Scripted("drift_spike", {2: CRITICAL})),
        repeat_interval_seconds=3600.0,
    )
    bench.go(1, 2)
    assert [bench.tick(1800.0).n_enqueued for _ in range(5)] == [0, 1, 0, 1, 0]
    assert [n.reason for n in bench.told()] == ["firing", "repeat", "repeat"]


def test_a_receiver_that_forgets_is_told_again_of_all_that_is_as_severe(database: Database) -> None:
    bench = Bench(
        database,
        (
            Scripted("gradient_explosion", {2: CRITICAL}),
            Scripted("drift_spike", {2: CRITICAL}),
            Scripted("loss_spike", {2: WARNING}),
        ),
    )
    bench.go(1, 2)
    with database.read() as session:
        told = telling.told_alerts(session, "slack", resolved_since=0.0)
    assert sorted(t.alert.rule for t in told) == ["drift_spike", "gradient_explosion"]


def test_what_fired_before_there_were_incidents_is_gathered_and_not_told_again(database: Database) -> None:
    bench = Bench(database, (Scripted("gradient_explosion", dict.fromkeys(range(1, 9), CRITICAL)),))
    bench.go(1, 1)
    assert len(bench.told()) == 1
    with database.write() as session:
        (alert,) = queries.open_alerts(session)
        writer.save_alert(session, replace(alert, incident=None))
    outcome = bench.go(2, 2)[0]
    assert outcome.n_enqueued == 0
    with database.read() as session:
        assert queries.open_alerts(session)[0].incident is not None


def test_the_same_snapshot_twice_leaves_the_incident_alone(database: Database) -> None:
    bench = Bench(database, (Scripted("gradient_explosion", {1: CRITICAL}),))
    bench.go(1, 1)
    before = bench.incidents()
    bench.go(1, 1)
    assert bench.incidents() == before


def test_a_message_in_a_group_counts_the_alerts_of_its_incident() -> None:
    first = make_alert("a", opened_at=START)
    incident = gather(None, [first, make_alert("b")], occasion())
    assert incident is not None
    about = gathering(replace(incident, id=1), first, [first, make_alert("b")])
    facts: dict[str, Any] = {"notifier": "x", "reason": "firing", "deduplication_key": "k", "last_good_step": None}
    facts |= {"last_good_path": None, "created_at": 0.0, "due_at": 0.0, "n_attempts": 0, "last_error": None}
    told = Notification(id=1, alert=first, gathering=about, **facts)
    alone = Notification(id=2, alert=make_alert("c", severity=Severity.INFO), **facts)
    assert compose_group((told, alone)).title == "Critical: 3 alerts in gpt"
    written = document(told, compose(told))
    assert written["incident"]["n_alerts"] == 2
    assert [other["fingerprint"] for other in written["incident"]["others"]] == ["b"]
    assert document(alone, compose(alone))["incident"] is None


def test_keys_of_messages_are_those_of_earlier_releases() -> None:
    assert deduplication_key("f1.3", "firing", "critical") == "bc3e348aca22cdd2b6bc6cccc1498c50"


def occasion(**changes: Any) -> Occasion:
    facts: dict[str, Any] = {"run": "gpt", "now": START, "order": {}, "measured_at": (), "is_tick": False}
    return Occasion(**{**facts, **changes})


def test_the_first_tensor_is_that_of_the_models_order_and_not_of_the_alphabet() -> None:
    alerts = [make_alert(name, rule="drift_spike", subject=name) for name in ("a.head", "z.embed", "m.block")]
    incident = gather(None, alerts, occasion(order={"z.embed": 0, "m.block": 1, "a.head": 2}))
    assert incident is not None
    assert incident.tensor == "z.embed"
    assert incident.opened_by == "z.embed.1"


def test_a_path_is_no_tensor() -> None:
    incident = gather(None, [make_alert(rule="unreadable_checkpoint", subject="/data/x.pt")], occasion())
    assert incident is not None
    assert incident.tensor == ""


@given(
    st.permutations(range(6)),
    st.lists(
        st.tuples(
            st.sampled_from(["x", "nonfinite", "loss_spike"]), st.integers(1, 3), st.sampled_from([WARNING, CRITICAL])
        ),
        min_size=6,
        max_size=6,
    ),
)
def test_the_cause_and_the_speaker_do_not_depend_on_the_order_of_the_alerts(
    order: list[int], facts: list[tuple[str, int, Severity]]
) -> None:
    alerts = [make_alert(f"f{n}", rule=r, step=s, severity=v) for n, (r, s, v) in enumerate(facts)]
    shuffled = [alerts[n] for n in order]
    assert gather(None, alerts, occasion()) == gather(None, shuffled, occasion())
    assert lead(alerts, {}) == lead(shuffled, {})
    assert lead(alerts, {}).severity == max(a.severity for a in alerts)


def test_a_gathering_holds_the_worst_and_counts_the_rest() -> None:
    alerts = [make_alert(f"f{n}", severity=WARNING if n % 2 else CRITICAL) for n in range(80)]
    incident = gather(None, alerts, occasion())
    assert incident is not None
    about = gathering(incident, alerts[0], alerts)
    assert (len(about.others), about.n_others) == (OTHERS_MAX, 79)
    assert all(a.severity is CRITICAL for a in about.others)


LEVELS: list[tuple[Severity | None, Severity, bool]] = [
    (told, level, joined)
    for told, level, joined in itertools.product([None, WARNING, CRITICAL], [WARNING, CRITICAL], [False, True])
]


@pytest.mark.parametrize(("told", "level", "joined"), LEVELS)
def test_it_is_news_when_nobody_knew_or_it_became_worse_or_something_new_joined_what_had_settled(
    told: Severity | None, level: Severity, joined: bool
) -> None:
    alert = make_alert(severity=level)
    incident = gather(None, [alert], occasion())
    assert incident is not None
    incident = replace(incident, told_severity=told)

    def is_news(**changes: Any) -> bool:
        keys = frozenset({alert.key}) if joined else frozenset[str]()
        return news(incident, [alert], occasion(**changes), grew_at=START, joined=keys) is not None

    worse = told is None or level > told
    assert is_news() == worse
    assert is_news(measured_at=(START + 1, START + 2, START + 3)) == (worse or (joined and level == told))
    assert is_news(is_tick=True) == (worse or (joined and level == told))
    assert news(incident, [], occasion(), grew_at=START, joined=frozenset()) is None


@contextmanager
def fresh() -> Iterator[Database]:
    with tempfile.TemporaryDirectory() as directory:
        opened = open_database(f"{directory}/x.db")
        try:
            yield opened
        finally:
            opened.close()


@settings(max_examples=10, deadline=None)
@given(st.lists(st.lists(st.sampled_from([None, WARNING, CRITICAL]), min_size=3, max_size=3), min_size=1, max_size=12))
def test_whatever_happens_every_incident_is_told_of_once_before_it_is_over_and_ends_once(
    course: list[list[Severity | None]],
) -> None:
    with fresh() as database:
        rules = tuple(
            Scripted(f"rule_{n}", {step: c[n] for step, c in enumerate(course, 1) if c[n] is not None})
            for n in range(3)
        )
        bench = Bench(database, rules)
        bench.go(1, len(course) + 1)
        by_conversation: dict[str, list[Notification]] = {}
        for notification in bench.told():
            by_conversation.setdefault(notification.conversation, []).append(notification)
        assert set(by_conversation) == {i.opened_by for i in bench.incidents()}
        for messages in by_conversation.values():
            assert [m.reason for m in messages] == ["firing"] * (len(messages) - 1) + ["resolved"]
            assert len(messages) >= 2
        worst = [max((s for s in c if s is not None), default=None) for c in course]
        n_stretches = sum(s is not None and (n == 0 or worst[n - 1] is None) for n, s in enumerate(worst))
        assert len(by_conversation) == n_stretches
        with database.read() as session:
            assert queries.open_incident(session, "gpt") is None


def test_a_rate_times_one_hundred_is_one_notification_that_names_the_rate_as_the_first_cause(
    database: Database,
) -> None:
    rules = tuple(registry.rule_setting(name, {}) for name in registry.rule_names())
    settings = EngineSettings(rules=rules, routes=(Route(notifier="slack"),), repeat_interval_seconds=None)
    engine = Engine(settings, clock=lambda: START)
    rate = "optimizer.param_groups.0.lr"
    for step in range(1, 9):
        usual = {"gradient": 1.0, "update_ratio": 0.001, "weight_norm": 3.0, "scalars": {rate: 0.001}}
        engine.record(database, snapshot_of({"step": step, **usual}, step))
    for step in range(9, 12):
        grown = 30.0 * 10.0 ** (step - 9)
        wild = {"gradient": 500.0, "update_ratio": 0.9, "weight_norm": grown, "scalars": {rate: 0.1}}
        engine.record(database, snapshot_of({"step": step, **wild}, step))
    with database.read() as session:
        (message,) = queries.due_notifications(session, "slack", now=1e12, limit=100)
        fired = {a.rule for a in queries.open_alerts(session)}
        incident = queries.open_incident(session, "gpt")
    assert {"drift_spike", "gradient_explosion", "hyperparameters", "weight_explosion"} <= fired
    assert incident is not None
    assert (incident.rule, incident.step, incident.n_alerts) == ("hyperparameters", 9, len(fired))
    assert message.alert.severity is CRITICAL
    assert dict(compose(message).facts)["First cause"].startswith("hyperparameters at step 9: The learning rate leapt")
