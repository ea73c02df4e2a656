"""Messages that belong together go out as one; receivers that forget are told again."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alerts.delivery import RESEND_RESOLVED_SECONDS, Delivery, DeliveryPolicy, MessageExtras
from alerts.digest import compose_group
from alerts.grouping import STORM_RUNS_MIN, grouped, latest_of_each, lead
from alerts.message import compose
from alerts.notifier import DeliveryError, Message
from alerts.notifiers.slack import payload
from storage import queries, writer
from storage.database import Database
from storage.records import Alert, AlertState, Notification, Severity, ToldAlert
from tests.support.alert_series import START
from tests.support.daemons import wait_for
from tests.support.golden import check_golden
from tests.support.notifier_conformance import make_notification
from tests.support.stored import alerts as any_alert
from tests.support.stored import make_alert, make_snapshot


class Joining:
    """A notifier for people: keeps every message, fails as it is told to."""

    kind: ClassVar[str] = "joining"
    Config: ClassVar[type[Any]] = dict

    def __init__(self) -> None:
        self.sent: list[Message] = []
        self.failing: Callable[[Message], DeliveryError | None] = lambda _: None

    def send(self, notification: Notification, content: Message) -> None:
        error = self.failing(content)
        if error is not None:
            raise error
        self.sent.append(content)


class Forgetful(Joining):
    """A notifier whose receiver forgets."""

    joins: ClassVar[bool] = False
    resend_seconds = 60.0

    def __init__(self) -> None:
        super().__init__()
        self.resent: list[list[tuple[str, str]]] = []
        self.links: Mapping[str, str] = {}
        self.down = False

    def resend(self, alerts: Sequence[ToldAlert], links: Mapping[str, str]) -> None:
        if self.down:
            raise DeliveryError("down")
        self.links = links
        self.resent.append([(told.alert.fingerprint, told.alert.state.value) for told in alerts])


class Clock:
    now = START

    def __call__(self) -> float:
        return self.now


def queue(database: Database, *alerts: Alert, reason: str = "firing", now: float = START) -> None:
    with database.write() as session:
        for alert in alerts:
            writer.add_snapshot(session, make_snapshot(1, run=alert.run))
            writer.save_alert(session, alert)
            key = f"{alert.fingerprint}-{alert.episode}-{reason}"
            facts: dict[str, Any] = {"reason": reason, "alert": alert, "deduplication_key": key}
            facts |= {"last_good_step": 6, "last_good_path": "/data/ckpt-6.pt", "created_at": now, "due_at": now}
            assert writer.enqueue(session, Notification(notifier="x", **facts))


def deliver(database: Database, notifier: Joining, clock: Callable[[], float] | None = None, **more: Any) -> Delivery:
    return Delivery(database, {"x": notifier}, clock=clock or Clock(), jitter=lambda: 0.5, **more)


def states(database: Database) -> dict[str, int]:
    with database.read() as session:
        return {state: n for (_, state), n in queries.outbox_counts(session).items()}


def test_alerts_of_one_run_are_one_message_and_all_are_marked(database: Database) -> None:
    queue(database, make_alert("a"), make_alert("b", rule="gradient_explosion", severity=Severity.WARNING))
    queue(database, make_alert("c", run="bert"))
    notifier = Joining()
    deliver(database, notifier).send_due("x")
    assert [message.title for message in notifier.sent] == [
        "Critical: 2 alerts in gpt",
        "Critical: nonfinite in bert at step 7",
    ]
    assert states(database) == {"sent": 3}


def test_a_storm_is_one_digest(database: Database) -> None:
    queue(database, *(make_alert(f"{n}", run=f"run-{n}") for n in range(STORM_RUNS_MIN)))
    notifier = Joining()
    deliver(database, notifier).send_due("x")
    assert [message.title for message in notifier.sent] == [f"Critical: {STORM_RUNS_MIN} alerts in 6 runs"]
    assert states(database) == {"sent": STORM_RUNS_MIN}


def test_programs_get_every_alert_on_its_own(database: Database) -> None:
    queue(database, *(make_alert(f"{n}", run=f"run-{n % 2}") for n in range(20)))
    notifier = Forgetful()
    deliver(database, notifier).send_due("x")
    assert len(notifier.sent) == 20


def test_a_group_that_fails_is_tried_again_as_a_whole_with_what_came_meanwhile(database: Database) -> None:
    queue(database, make_alert("a"), make_alert("b"))
    notifier, clock = Joining(), Clock()
    notifier.failing = lambda _: DeliveryError("down")
    delivery = deliver(database, notifier, clock)
    delivery.send_due("x")
    assert states(database) == {"pending": 2}
    queue(database, make_alert("c"))
    notifier.failing = lambda _: None
    clock.now += 5.0
    delivery.send_due("x")
    assert [message.title for message in notifier.sent] == ["Critical: 3 alerts in gpt"]


def test_an_alert_that_the_receiver_never_takes_does_not_take_the_others_along(database: Database) -> None:
    queue(database, make_alert("a"), make_alert("b", summary="poison"), make_alert("c"))
    notifier = Joining()

    def refuse(content: Message) -> DeliveryError | None:
        bad = "poison" in content.text or any("poison" in text for _, text in content.facts)
        return DeliveryError("never", permanent=True) if bad else None

    notifier.failing = refuse
    deliver(database, notifier).send_due("x")
    assert [message.thread for message in notifier.sent] == ["a.1", "c.1"]
    assert states(database) == {"sent": 2, "dead": 1}


def test_what_is_over_before_anybody_was_told_is_only_said_to_be_over(database: Database) -> None:
    firing = make_alert("a")
    queue(database, firing)
    queue(database, replace(firing, state=AlertState.RESOLVED, resolved_at=START), reason="resolved")
    notifier = Joining()
    deliver(database, notifier).send_due("x")
    assert [message.title for message in notifier.sent] == ["Resolved: nonfinite in gpt at step 7"]
    assert states(database) == {"sent": 2}


def test_links_and_pictures_come_from_outside_and_only_where_they_are_shown(database: Database) -> None:
    queue(database, make_alert("a"))
    queue(database, make_alert("b", run="bert"))
    drawn: list[str] = []

    def draw(alert: Alert) -> bytes:
        drawn.append(alert.run)
        return b"picture"

    extras = MessageExtras(link_of=lambda run: f"https://example.org/runs/{run}", picture_of=draw)
    plain = Joining()
    deliver(database, plain, extras=extras).send_due("x")
    assert [(m.link, m.picture) for m in plain.sent] == [
        ("https://example.org/runs/gpt", None),
        ("https://example.org/runs/bert", None),
    ]
    assert drawn == []
    queue(database, make_alert("c"))
    showing = Joining()
    showing.shows_pictures = True  # type: ignore[attr-defined]
    deliver(database, showing, extras=extras).send_due("x")
    assert [m.picture for m in showing.sent] == [b"picture"]
    assert drawn == ["gpt"]


def test_the_golden_digests() -> None:
    group = (
        make_notification(id=1, alert=make_alert("a", opened_at=START)),
        make_notification(
            id=2,
            alert=make_alert(
                "b", rule="gradient_explosion", severity=Severity.WARNING, summary="12 times", subject="b.bias"
            ),
        ),
        make_notification(
            id=3, reason="resolved", alert=make_alert("c", rule="stalled_run", step=None, state=AlertState.RESOLVED)
        ),
    )
    check_golden("slack_digest_run.json", payload(compose_group(group), "feedface" * 4))
    storm = tuple(make_notification(id=n, alert=make_alert(f"{n}", run=f"run-{n // 2}")) for n in range(60))
    content = compose_group(storm)
    check_golden("slack_digest_storm.json", payload(content, "feedface" * 4))
    assert content.facts[-1] == ("And", "6 more runs; `ckptwatch alerts` lists all")


@given(st.lists(any_alert, min_size=1, max_size=40))
def test_every_digest_is_printable_and_within_the_limits(alerts: list[Alert]) -> None:
    group = tuple(make_notification(id=n, alert=alert) for n, alert in enumerate(alerts))
    content = compose_group(group)
    for text in [content.title, content.text, *(text for fact in content.facts for text in fact)]:
        assert text.isprintable()
        text.encode()
    assert len(content.title) <= 150
    assert len(content.facts) <= 30
    assert len(payload(content, "k")["blocks"]) <= 50
    assert len(latest_of_each(group)) > 1 or content == compose(latest_of_each(group)[0])


@given(st.lists(st.integers(0, 9), min_size=1, max_size=30), st.integers(2, 8))
def test_grouping_loses_and_doubles_nothing(runs: list[int], storm_runs_min: int) -> None:
    due = [make_notification(id=n, alert=make_alert(f"{n}", run=f"{run}")) for n, run in enumerate(runs)]
    groups = grouped(due, storm_runs_min=storm_runs_min)
    assert sorted(n.id for group in groups for n in group) == list(range(len(runs)))
    assert all(list(group) == sorted(group, key=lambda n: n.id) for group in groups)
    assert len(groups) == (1 if len(set(runs)) >= storm_runs_min else len(set(runs)))


def test_what_still_fires_and_is_worst_speaks_for_a_group() -> None:
    over = make_notification(id=1, alert=make_alert("a", state=AlertState.RESOLVED))
    mild = make_notification(id=2, alert=make_alert("b", severity=Severity.WARNING))
    worst = make_notification(id=3, alert=make_alert("c"))
    assert lead((over, mild, worst)) is worst
    assert lead((over, mild)) is mild


def test_a_receiver_that_forgets_is_told_again_while_it_fires_and_for_five_minutes_after(database: Database) -> None:
    firing = make_alert("a")
    queue(database, firing)
    notifier, clock = Forgetful(), Clock()
    extras = MessageExtras(link_of=lambda run: f"https://example.org/{run}")
    delivery = deliver(database, notifier, clock, extras=extras)
    assert delivery.resend_due("x") == clock.now + 60
    assert delivery.resend_due("x") == clock.now + 60  # not before its time
    assert notifier.resent == [[("a", "firing")]]
    assert notifier.links == {"gpt": "https://example.org/gpt"}
    clock.now += 60
    with database.write() as session:
        writer.save_alert(session, replace(firing, state=AlertState.RESOLVED, resolved_at=clock.now))
    delivery = deliver(database, notifier, clock)  # another process knows the same
    for _ in range(10):
        delivery.resend_due("x")
        clock.now += 60
    n_resolved = int(RESEND_RESOLVED_SECONDS / 60) + 1
    assert notifier.resent[1:] == [[("a", "resolved")]] * n_resolved


def test_telling_again_goes_on_after_a_failure_and_leaves_the_outbox_alone(database: Database) -> None:
    queue(database, make_alert("a"))
    notifier, clock = Forgetful(), Clock()
    delivery = deliver(database, notifier, clock)
    notifier.down = True
    again_at = delivery.resend_due("x")
    assert again_at == pytest.approx(clock.now + 1.0)
    assert states(database) == {"pending": 1}
    notifier.down = False
    clock.now += 2.0
    assert delivery.resend_due("x") == clock.now + 60
    assert notifier.resent == [[("a", "firing")]]


def test_others_are_never_told_again(database: Database) -> None:
    queue(database, make_alert("a"))
    assert deliver(database, Joining()).resend_due("x") is None


def test_the_thread_tells_again_by_itself(database: Database) -> None:
    queue(database, make_alert("a"))
    notifier = Forgetful()
    notifier.resend_seconds = 0.05
    delivery = Delivery(database, {"x": notifier}, policy=DeliveryPolicy(idle_seconds_max=5.0))
    delivery.start()
    try:
        wait_for("the third time", lambda: len(notifier.resent) >= 3)
    finally:
        assert delivery.stop(10.0)
    assert len(notifier.sent) == 1
