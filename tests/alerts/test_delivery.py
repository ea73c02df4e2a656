"""Messages leave the outbox at least once, in order, and patiently."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest

from alerts import registry
from alerts.announcing import Route
from alerts.delivery import Delivery, DeliveryPolicy, DeliveryResult
from alerts.engine import Engine, EngineSettings
from alerts.notifier import DeliveryError, Message
from alerts.notifiers.slack import SlackNotifier
from storage import queries, writer
from storage.database import Database
from storage.errors import DatabaseError
from storage.records import Alert, Notification
from tests.support.alert_series import START, snapshot_of
from tests.support.receivers import HttpReceiver, free_port
from tests.support.stored import make_alert, make_snapshot

QUICK = DeliveryPolicy(backoff_seconds_min=0.02, backoff_seconds_max=0.1, idle_seconds_max=0.2)


class Recorder:
    """A notifier that keeps what it was given and fails as it is told to."""

    kind: ClassVar[str] = "recorder"
    Config: ClassVar[type[Any]] = dict
    joins: ClassVar[bool] = False

    def __init__(self, config: Any = None) -> None:
        self.sent: list[tuple[str, str]] = []
        self.failing: Callable[[Notification], Exception | None] = lambda notification: None

    def send(self, notification: Notification, content: Message) -> None:
        error = self.failing(notification)
        if error is not None:
            raise error
        self.sent.append((notification.alert.fingerprint, notification.reason))


class Clock:
    def __init__(self) -> None:
        self.now = START

    def __call__(self) -> float:
        return self.now


def queue(database: Database, *messages: tuple[str, str], notifier: str = "x", now: float = START) -> None:
    with database.write() as session:
        writer.add_snapshot(session, make_snapshot(1))
        for fingerprint, reason in messages:
            alert: Alert = make_alert(fingerprint)
            writer.save_alert(session, alert)
            writer.enqueue(
                session,
                Notification(
                    notifier=notifier,
                    reason=reason,
                    alert=alert,
                    deduplication_key=f"{fingerprint}-{reason}",
                    last_good_step=None,
                    last_good_path=None,
                    created_at=now,
                    due_at=now,
                ),
            )


def counts(database: Database) -> dict[tuple[str, str], int]:
    with database.read() as session:
        return dict(queries.outbox_counts(session))


@pytest.fixture
def started(database: Database) -> Iterator[Callable[..., Delivery]]:
    """Return a function that makes and starts a Delivery, which is stopped at the end."""
    running: list[Delivery] = []

    def start(notifiers: dict[str, Any], **changes: Any) -> Delivery:
        delivery = Delivery(database, notifiers, **{"policy": QUICK, **changes})
        running.append(delivery)
        delivery.start()
        return delivery

    yield start
    for delivery in running:
        assert delivery.stop(5.0)


def make(database: Database, notifier: Recorder, clock: Clock, results: list[DeliveryResult] | None = None) -> Delivery:
    return Delivery(
        database,
        {"x": notifier},
        clock=clock,
        jitter=lambda: 0.5,
        on_result=None if results is None else results.append,
    )


def test_what_is_due_is_sent_once_and_marked(database: Database) -> None:
    queue(database, ("a", "firing"), ("b", "firing"))
    notifier, results = Recorder(), list[DeliveryResult]()
    delivery = make(database, notifier, Clock(), results)
    assert delivery.send_due("x") is None
    assert delivery.send_due("x") is None
    assert notifier.sent == [("a", "firing"), ("b", "firing")]
    assert counts(database) == {("x", "sent"): 2}
    assert [(r.notifier, r.error, r.dead) for r in results] == [("x", None, False)] * 2


def test_a_failed_message_is_tried_again_later_and_later(database: Database) -> None:
    queue(database, ("a", "firing"))
    notifier, clock = Recorder(), Clock()
    notifier.failing = lambda _: DeliveryError("down")
    delivery = Delivery(
        database,
        {"x": notifier},
        clock=clock,
        jitter=lambda: 0.5,
        policy=DeliveryPolicy(failures_in_row_max=10**9),
    )
    pauses = []
    for _ in range(12):
        due_at = delivery.send_due("x")
        assert due_at is not None
        pauses.append(due_at - clock.now)
        clock.now = due_at
    assert pauses == pytest.approx([1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300, 300])
    assert notifier.sent == []
    notifier.failing = lambda _: None
    assert delivery.send_due("x") is None
    assert notifier.sent == [("a", "firing")]


def test_jitter_spreads_the_tries(database: Database) -> None:
    queue(database, ("a", "firing"))
    notifier, clock = Recorder(), Clock()
    notifier.failing = lambda _: DeliveryError("down")
    delivery = Delivery(database, {"x": notifier}, clock=clock, jitter=lambda: 0.0)
    assert delivery.send_due("x") == pytest.approx(clock.now + 0.5)


def test_a_receiver_that_asks_for_a_pause_gets_it(database: Database) -> None:
    queue(database, ("a", "firing"))
    notifier, clock = Recorder(), Clock()
    notifier.failing = lambda _: DeliveryError("slow down", retry_after_seconds=77.0)
    assert make(database, notifier, clock).send_due("x") == pytest.approx(clock.now + 77.0)


def test_a_permanent_failure_is_given_up_and_does_not_hold_up_others(database: Database) -> None:
    queue(database, ("a", "firing"), ("a", "resolved"), ("b", "firing"))
    notifier, results = Recorder(), list[DeliveryResult]()
    notifier.failing = lambda n: (
        DeliveryError("gone", permanent=True) if (n.alert.fingerprint, n.reason) == ("a", "firing") else None
    )
    make(database, notifier, Clock(), results).send_due("x")
    assert notifier.sent == [("a", "resolved"), ("b", "firing")]
    assert counts(database) == {("x", "dead"): 1, ("x", "sent"): 2}
    assert (results[0].error, results[0].dead) == ("gone", True)


def test_after_a_day_a_message_is_given_up(database: Database) -> None:
    queue(database, ("a", "firing"))
    notifier, clock = Recorder(), Clock()
    notifier.failing = lambda _: DeliveryError("down")
    delivery = make(database, notifier, clock)
    for _ in range(20):
        clock.now += 3600.0
        delivery.send_due("x")
    assert counts(database) == {("x", "pending"): 1}
    clock.now = START + 24 * 3600
    delivery.send_due("x")
    assert counts(database) == {("x", "dead"): 1}


def test_a_message_that_waited_for_days_is_not_given_up_at_the_first_failure(database: Database) -> None:
    queue(database, ("a", "firing"))
    notifier, clock = Recorder(), Clock()
    notifier.failing = lambda _: DeliveryError("down")
    delivery = make(database, notifier, clock)
    clock.now += 10 * 24 * 3600.0
    for _ in range(9):
        clock.now += 600.0
        delivery.send_due("x")
    assert counts(database) == {("x", "pending"): 1}
    clock.now += 600.0
    delivery.send_due("x")
    assert counts(database) == {("x", "dead"): 1}


def test_a_resolve_never_overtakes_its_firing(database: Database) -> None:
    queue(database, ("a", "firing"), ("a", "resolved"), ("b", "firing"))
    notifier, clock = Recorder(), Clock()
    notifier.failing = lambda n: DeliveryError("busy") if n.reason == "firing" and n.alert.fingerprint == "a" else None
    delivery = make(database, notifier, clock)
    delivery.send_due("x")
    delivery.send_due("x")
    assert notifier.sent == [("b", "firing")]
    notifier.failing = lambda _: None
    clock.now += 10.0
    delivery.send_due("x")
    assert notifier.sent == [("b", "firing"), ("a", "firing"), ("a", "resolved")]


def test_a_receiver_that_is_down_is_not_tried_with_every_message(database: Database) -> None:
    queue(database, *[(f"a{n}", "firing") for n in range(50)])
    notifier, clock, tries = Recorder(), Clock(), list[str]()

    def down(notification: Notification) -> DeliveryError:
        tries.append(notification.alert.fingerprint)
        return DeliveryError("down")

    notifier.failing = down
    delivery = make(database, notifier, clock)
    again_at = delivery.send_due("x")
    assert len(tries) == 3
    assert again_at is not None
    assert again_at > clock.now
    notifier.failing = lambda _: None
    clock.now += 400.0
    delivery.send_due("x")
    assert len(notifier.sent) == 50


def test_a_notifier_that_breaks_is_tried_again_and_its_text_is_not_shown(database: Database) -> None:
    queue(database, ("a", "firing"))
    notifier, clock, results = Recorder(), Clock(), list[DeliveryResult]()
    notifier.failing = lambda _: RuntimeError("https://hooks.example/SECRET")
    make(database, notifier, clock, results).send_due("x")
    assert results[0].error == "the notifier failed with RuntimeError"
    assert counts(database) == {("x", "pending"): 1}


def test_a_message_that_was_sent_but_could_not_be_marked_is_not_sent_again(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue(database, ("a", "firing"))
    notifier = Recorder()
    delivery = make(database, notifier, Clock())

    def locked(*args: object) -> None:
        raise DatabaseError("locked")

    monkeypatch.setattr("storage.writer.mark_sent", locked)
    with pytest.raises(DatabaseError):
        delivery.send_due("x")
    with pytest.raises(DatabaseError):
        delivery.send_due("x")
    monkeypatch.undo()
    delivery.send_due("x")
    assert notifier.sent == [("a", "firing")]
    assert counts(database) == {("x", "sent"): 1}


def test_the_threads_send_when_woken(database: Database, started: Callable[..., Delivery]) -> None:
    notifier, done = Recorder(), threading.Event()
    delivery = started(
        {"x": notifier}, policy=DeliveryPolicy(idle_seconds_max=60.0), on_result=lambda result: done.set()
    )
    queue(database, ("a", "firing"), now=0.0)
    delivery.wake()
    assert done.wait(20)
    assert notifier.sent == [("a", "firing")]


def test_what_an_earlier_process_left_is_sent_at_the_start(
    database: Database, started: Callable[..., Delivery]
) -> None:
    queue(database, ("a", "firing"), now=0.0)
    done = threading.Event()
    started({"x": Recorder()}, on_result=lambda result: done.set())
    assert done.wait(20)


def test_a_slow_receiver_delays_no_other(database: Database, started: Callable[..., Delivery]) -> None:
    queue(database, ("a", "firing"), now=0.0, notifier="slow")
    queue(database, ("a", "firing"), now=0.0, notifier="quick")
    slow, quick, release, done = Recorder(), Recorder(), threading.Event(), threading.Event()

    def hang(notification: Notification) -> None:
        release.wait(30)

    slow.failing = hang
    started({"slow": slow, "quick": quick}, on_result=lambda result: done.set() if result.notifier == "quick" else None)
    try:
        assert done.wait(20)
        assert slow.sent == []
    finally:
        release.set()


def test_stopping_does_not_wait_for_a_send_that_hangs(database: Database) -> None:
    queue(database, ("a", "firing"), now=0.0)
    notifier, release, entered = Recorder(), threading.Event(), threading.Event()

    def hang(notification: Notification) -> None:
        entered.set()
        release.wait(30)

    notifier.failing = hang
    delivery = Delivery(database, {"x": notifier}, policy=QUICK)
    delivery.start()
    assert entered.wait(20)
    assert delivery.stop(0.1) is False
    release.set()
    assert delivery.stop(20.0) is True


def test_a_broken_database_does_not_end_a_thread(
    database: Database, started: Callable[..., Delivery], monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    broken, done, failed = True, threading.Event(), threading.Event()
    due = queries.due_notifications

    def unreliable(*args: Any, **kwargs: Any) -> Any:
        if broken:
            failed.set()
            raise DatabaseError("corrupt")
        return due(*args, **kwargs)

    monkeypatch.setattr("storage.queries.due_notifications", unreliable)
    queue(database, ("a", "firing"), now=0.0)
    started({"x": Recorder()}, on_result=lambda result: done.set())
    assert failed.wait(20)
    broken = False
    assert done.wait(20)


def slack(url: str) -> SlackNotifier:
    return SlackNotifier(SlackNotifier.Config(url=url))  # type: ignore[arg-type]


def judge_nan(database: Database, clock: Callable[[], float] = time.time) -> None:
    engine = Engine(
        EngineSettings(rules=(registry.rule_setting("nonfinite", {}),), routes=(Route(notifier="slack"),)),
        clock=clock,
    )
    engine.record(database, snapshot_of({"step": 1}, 0))
    engine.record(database, snapshot_of({"step": 2, "tensors": [{"name": "head", "n_nan": 1}]}, 1))


def test_restarting_everything_sends_nothing_twice(
    database: Database, receiver: HttpReceiver, started: Callable[..., Delivery]
) -> None:
    for _ in range(3):
        judge_nan(database)
        done = threading.Event()
        delivery = Delivery(database, {"slack": slack(receiver.url)}, policy=QUICK)
        delivery.send_due("slack")
        delivery = started({"slack": slack(receiver.url)}, on_result=lambda result, done=done: done.set())
        delivery.wake()
        assert not done.wait(0.1)
        assert delivery.stop(5.0)
    assert len(receiver.received) == 1
    assert counts(database) == {("slack", "sent"): 1}


def test_a_receiver_that_was_down_gets_the_message_when_it_is_back(
    database: Database, started: Callable[..., Delivery]
) -> None:
    port = free_port()
    failed, sent = threading.Event(), threading.Event()
    judge_nan(database)
    started(
        {"slack": slack(f"http://127.0.0.1:{port}/services/T/B/SECRETSECRET")},
        on_result=lambda result: (failed if result.error else sent).set(),
    )
    assert failed.wait(20)
    with HttpReceiver(port) as receiver:
        assert sent.wait(20)
        assert len(receiver.received) == 1
        assert "head" in receiver.received[0].body.decode()


KILLED_BEFORE_MARKING = """
import os, signal, sys
from alerts.delivery import Delivery
from alerts.notifiers.slack import SlackNotifier
from storage import writer
from storage.database import open_database

writer.mark_sent = lambda *args: os.kill(os.getpid(), signal.SIGKILL)
notifier = SlackNotifier(SlackNotifier.Config.model_validate({"url": sys.argv[2]}))
Delivery(open_database(sys.argv[1]), {"slack": notifier}).send_due("slack")
"""


def test_a_kill_between_sending_and_marking_costs_one_message_twice_with_the_same_key_and_none_lost(
    database: Database, receiver: HttpReceiver, tmp_path: Path
) -> None:
    judge_nan(database)
    died = subprocess.run(
        [sys.executable, "-c", KILLED_BEFORE_MARKING, str(tmp_path / "ckptwatch.db"), receiver.url],
        cwd=Path(__file__).parents[2],
        timeout=60,
        check=False,
    )
    assert died.returncode == -signal.SIGKILL
    assert counts(database) == {("slack", "pending"): 1}
    Delivery(database, {"slack": slack(receiver.url)}).send_due("slack")
    Delivery(database, {"slack": slack(receiver.url)}).send_due("slack")
    first, second = (r.document["blocks"][-1] for r in receiver.wait_for(2))
    assert first == second
    assert len(receiver.received) == 2
    assert counts(database) == {("slack", "sent"): 1}
