from __future__ import annotations

from dataclasses import replace

from storage import queries, telling, writer
from storage.database import Database
from storage.records import Alert, AlertState, Notification, Severity, Silence
from tests.support.stored import make_alert

FIRING = make_alert("f1", run="gpt")


def store(database: Database, *alerts: Alert) -> None:
    with database.write() as session:
        for alert in alerts:
            writer.save_alert(session, alert)


def tell(database: Database, alert: Alert, notifier: str = "pager", reason: str = "firing", good: int = 6) -> None:
    with database.write() as session:
        assert writer.enqueue(
            session,
            Notification(
                notifier=notifier,
                reason=reason,
                alert=alert,
                deduplication_key=f"{alert.fingerprint}-{alert.episode}-{reason}",
                last_good_step=good,
                last_good_path=f"/data/{good}.pt",
                created_at=1.0,
                due_at=1.0,
            ),
        )


def untold(database: Database, run: str = "gpt") -> list[str]:
    with database.read() as session:
        return [alert.fingerprint for alert in telling.untold_alerts(session, run)]


def told(database: Database, notifier: str = "pager", since: float = 50.0) -> list[tuple[str, str]]:
    with database.read() as session:
        found = telling.told_alerts(session, notifier, resolved_since=since)
    return [(told.alert.fingerprint, told.alert.state.value) for told in found]


def test_untold_is_what_fires_and_never_had_a_message(database: Database) -> None:
    pending = replace(FIRING, fingerprint="f2", state=AlertState.PENDING)
    over = replace(FIRING, fingerprint="f3", state=AlertState.RESOLVED, resolved_at=60.0)
    elsewhere = replace(FIRING, fingerprint="f4", run="bert")
    store(database, FIRING, pending, over, elsewhere)
    assert untold(database) == ["f1"]
    tell(database, FIRING)
    assert untold(database) == []
    assert untold(database, "bert") == ["f4"]


def test_an_earlier_episode_that_was_told_says_nothing_about_this_one(database: Database) -> None:
    tell(database, FIRING)
    store(database, replace(FIRING, state=AlertState.RESOLVED, resolved_at=60.0), replace(FIRING, episode=2))
    assert untold(database) == ["f1"]


def test_told_is_what_this_notifier_heard_of_and_what_is_not_long_over(database: Database) -> None:
    recent = replace(FIRING, fingerprint="f2", state=AlertState.RESOLVED, resolved_at=60.0)
    old = replace(FIRING, fingerprint="f3", state=AlertState.RESOLVED, resolved_at=40.0)
    store(database, FIRING, recent, old, replace(FIRING, fingerprint="f4"))
    for alert in (FIRING, recent, old):
        tell(database, alert)
    assert told(database) == [("f1", "firing"), ("f2", "resolved")]
    assert told(database, "mail") == []


def test_told_alerts_come_with_the_last_good_checkpoint_of_their_last_message(database: Database) -> None:
    store(database, FIRING)
    tell(database, FIRING)
    tell(database, FIRING, "mail", good=9)
    tell(database, FIRING, reason="repeat", good=7)
    with database.read() as session:
        (found,) = telling.told_alerts(session, "pager", resolved_since=0.0)
    assert (found.last_good_step, found.last_good_path) == (7, "/data/7.pt")


def test_what_fires_in_a_run_that_has_ended_is_not_told_for_ever(database: Database) -> None:
    over = replace(FIRING, fingerprint="f2", state=AlertState.RESOLVED, resolved_at=60.0)
    store(database, FIRING, over)
    tell(database, FIRING)
    tell(database, over)
    with database.write() as session:
        writer.set_run_active(session, "gpt", False)
    assert told(database) == [("f2", "resolved")]


def test_later_messages_of_an_episode_know_what_the_receiver_calls_the_first(database: Database) -> None:
    store(database, FIRING)
    tell(database, FIRING)
    tell(database, FIRING, "mail")
    with database.write() as session:
        (first,) = queries.due_notifications(session, "pager", now=9.0, limit=9)
        assert first.first_receipt is None
        writer.mark_sent(session, first.id, 2.0, "C1 5.0")
    tell(database, FIRING, reason="repeat")
    tell(database, replace(FIRING, episode=2))
    with database.read() as session:
        pending = queries.due_notifications(session, "pager", now=9.0, limit=9)
        assert [n.first_receipt for n in pending] == ["C1 5.0", None]
        assert [n.first_receipt for n in queries.due_notifications(session, "mail", now=9.0, limit=9)] == [None]


def test_a_silence_lasts_until_its_end_and_can_be_ended_once(database: Database) -> None:
    with database.write() as session:
        long = writer.add_silence(session, runs="a/*\ud800", rules="*", now=1.0, ends_at=100.0, comment="x" * 600)
        short = writer.add_silence(session, runs="b", rules="nonfinite", now=1.0, ends_at=10.0)
    with database.read() as session:
        first, second = telling.silences(session, now=5.0)
        assert (first.id, second.id) == (short, long)
        assert second == Silence(id=long, runs="a/*\ud800", rules="*", created_at=1.0, ends_at=100.0, comment="x" * 500)
        assert [silence.id for silence in telling.silences(session, now=10.0)] == [long]
    with database.write() as session:
        assert writer.end_silence(session, long, 20.0)
        assert not writer.end_silence(session, long, 21.0)
        assert not writer.end_silence(session, 999, 20.0)
        assert writer.add_silence(session, runs="c", rules="*", now=1.0, ends_at=2.0) > long
    with database.read() as session:
        assert telling.silences(session, now=20.0) == []


def test_runs_with_something_untold_are_those_where_somebody_is_still_to_be_told(database: Database) -> None:
    info = replace(FIRING, fingerprint="f2", run="llama", severity=Severity.INFO)
    store(database, FIRING, replace(FIRING, fingerprint="f3"), info, replace(FIRING, fingerprint="f4", run="bert"))
    tell(database, replace(FIRING, fingerprint="f4", run="bert"))
    with database.read() as session:
        assert telling.runs_with_untold_alerts(session, severity_min=Severity.WARNING) == {"gpt"}
        assert telling.runs_with_untold_alerts(session, severity_min=Severity.INFO) == {"gpt", "llama"}


def test_when_each_notifier_was_last_reached_is_known(database: Database) -> None:
    store(database, FIRING)
    for notifier in ("pager", "slack", "dead"):
        tell(database, FIRING, notifier)
    tell(database, FIRING, "pager", "resolved")
    with database.write() as session:
        due = {
            (n.notifier, n.reason): n.id
            for name in ("pager", "slack")
            for n in queries.due_notifications(session, name, now=2.0, limit=9)
        }
        writer.mark_sent(session, due["pager", "firing"], 7.0)
        writer.mark_sent(session, due["slack", "firing"], 5.0)
    with database.read() as session:
        assert telling.last_sent(session) == {"pager": 7.0, "slack": 5.0}
