from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import HealthCheck, given, settings
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from storage import queries, writer
from storage.database import Database, open_database
from storage.errors import DatabaseConflictError
from storage.models import Base, OutboxRow, SnapshotRow, StatisticsRow, TensorRow, table
from storage.records import Alert, AlertState, Finding, Notification, Severity, Snapshot
from tests.support import stored
from tests.support.stored import make_alert, make_failure, make_finding, make_snapshot


@pytest.fixture(scope="module")
def shared() -> Iterator[Database]:
    """One database for all examples of a property; each example undoes what it did."""
    with TemporaryDirectory() as directory:
        opened = open_database(str(Path(directory) / "shared.db"))
        yield opened
        opened.close()


class _UndoError(Exception):
    """Ends an example's transaction."""


@contextmanager
def undone(database: Database) -> Iterator[Session]:
    """Lend a writing session whose changes are rolled back."""
    with suppress(_UndoError), database.write() as session:
        yield session
        raise _UndoError


def add(database: Database, snapshot: Snapshot) -> int:
    with database.write() as session:
        number = writer.add_snapshot(session, snapshot)
    assert number is not None
    return number


def counts(database: Database) -> dict[str, int]:
    with database.read() as session:
        return {
            name: session.execute(select(func.count()).select_from(found)).scalar_one()
            for name, found in Base.metadata.tables.items()
        }


@settings(suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large], max_examples=60)
@given(snapshot=stored.snapshots)
def test_every_snapshot_comes_back_as_it_was(shared: Database, snapshot: Snapshot) -> None:
    ordered = tuple(replace(tensor, position=i) for i, tensor in enumerate(snapshot.tensors))
    snapshot = replace(snapshot, tensors=ordered)
    with undone(shared) as session:
        number = writer.add_snapshot(session, snapshot)
        assert number is not None
        assert queries.snapshot(session, number) == stored.stored_as(snapshot, number)
        assert queries.tensors(session, number, with_sketch=True) == ordered
        assert queries.drifts(session, number) == snapshot.drifts
        assert queries.scalars(session, number) == snapshot.scalars


@settings(max_examples=60)
@given(finding=stored.findings)
def test_every_finding_comes_back_as_it_was(shared: Database, finding: Finding) -> None:
    with undone(shared) as session:
        number = writer.add_snapshot(session, make_snapshot())
        assert number is not None
        writer.save_findings(session, number, [finding])
        assert queries.findings(session, number) == (finding,)


@settings(max_examples=60)
@given(alert=stored.alerts)
def test_every_alert_comes_back_as_it_was_and_so_does_the_one_in_a_message(shared: Database, alert: Alert) -> None:
    with undone(shared) as session:
        writer.save_alert(session, alert)
        assert queries.latest_episode(session, alert.fingerprint) == alert
        assert queries.alerts(session) == [alert]
        assert enqueue(session, alert)
        assert [message.alert for message in queries.due_notifications(session, "slack", now=0.0, limit=9)] == [alert]


def test_the_same_checkpoint_is_stored_once(database: Database) -> None:
    add(database, make_snapshot(5))
    before = counts(database)
    with database.write() as session:
        assert writer.add_snapshot(session, make_snapshot(5)) is None
    assert counts(database) == before


def test_a_checkpoint_overwritten_in_place_is_stored_again(database: Database) -> None:
    first = add(database, make_snapshot(5, path="/data/gpt/last.pt"))
    second = add(database, make_snapshot(6, path="/data/gpt/last.pt"))
    with database.read() as session:
        assert [found.id for found in queries.history(session, "gpt")] == [first, second]


def test_the_same_file_seen_by_two_runs_is_stored_for_each(database: Database) -> None:
    add(database, make_snapshot(5, path="/data/x.pt"))
    add(database, make_snapshot(5, path="/data/x.pt", run="other"))
    with database.read() as session:
        assert [found.n_snapshots for found in queries.runs(session)] == [1, 1]


def test_what_stays_equal_of_a_tensor_is_stored_once_for_a_run(database: Database) -> None:
    for step in range(5):
        add(database, make_snapshot(step))
    found = counts(database)
    assert found[TensorRow.__tablename__] == 2
    assert found[StatisticsRow.__tablename__] == 10


def test_a_tensor_that_changes_its_shape_keeps_the_shape_of_each_snapshot(database: Database) -> None:
    one = add(database, make_snapshot(1, tensors=(stored.make_tensor("w", shape=(3, 4)),), drifts=()))
    two = add(database, make_snapshot(2, tensors=(stored.make_tensor("w", shape=(4, 4)),), drifts=()))
    with database.read() as session:
        assert queries.tensors(session, one)[0].shape == (3, 4)
        assert queries.tensors(session, two)[0].shape == (4, 4)


def test_more_tensors_than_one_statement_may_name_are_stored(database: Database) -> None:
    many = tuple(stored.make_tensor(f"layer.{i}", i, sketch=None) for i in range(1203))
    number = add(database, make_snapshot(1, tensors=many, drifts=()))
    again = add(database, make_snapshot(2, tensors=many, drifts=()))
    with database.read() as session:
        assert queries.tensors(session, number) == queries.tensors(session, again) == many


def test_two_tensors_in_one_place_are_refused_as_a_whole(database: Database) -> None:
    twice = (stored.make_tensor("a", 0), stored.make_tensor("b", 0))
    with pytest.raises(DatabaseConflictError), database.write() as session:
        writer.add_snapshot(session, make_snapshot(1, tensors=twice))
    assert set(counts(database).values()) == {0}


def test_numbers_that_no_database_holds_are_stored_clamped(database: Database) -> None:
    number = add(database, make_snapshot(2**70, n_parameters=2**64, bytes_read=-(2**80)))
    with database.read() as session:
        found = queries.snapshot(session, number)
    assert found is not None
    assert (found.step, found.n_parameters, found.bytes_read) == (2**63 - 1, 2**63 - 1, -(2**63) + 1)


def test_messages_lose_what_is_not_utf8_but_stay_readable(database: Database) -> None:
    number = add(database, make_snapshot())
    with database.write() as session:
        writer.save_findings(session, number, [make_finding(subject="a\udc80b", summary="x\0y")])
    with database.read() as session:
        (found,) = queries.findings(session, number)
    assert (found.subject, found.summary) == ("a\\udc80b", "x\\x00y")


def test_a_finding_of_the_same_rule_and_identity_is_replaced(database: Database) -> None:
    number = add(database, make_snapshot())
    with database.write() as session:
        writer.save_findings(session, number, [make_finding(value=1.0), make_finding(identity="other")])
        writer.save_findings(session, number, [make_finding(value=2.0)])
    with database.read() as session:
        assert {(found.identity, found.value) for found in queries.findings(session, number)} == {
            ("weights", 2.0),
            ("other", 3.0),
        }


def test_the_worst_severity_of_a_snapshot_comes_from_its_own_findings(database: Database) -> None:
    quiet, loud = add(database, make_snapshot(1)), add(database, make_snapshot(2))
    findings = [make_finding(severity=Severity.INFO), make_finding("stalled_run", severity=Severity.WARNING)]
    with database.write() as session:
        writer.save_findings(session, loud, findings)
    with database.read() as session:
        assert [found.worst_severity for found in queries.history(session, "gpt")] == [None, Severity.WARNING]
        assert [found.rule for found in queries.findings(session, loud)] == ["stalled_run", "nonfinite"]
        assert queries.findings(session, quiet) == ()


def test_an_alert_is_replaced_within_its_episode_and_kept_beyond(database: Database) -> None:
    first = make_alert()
    resolved = replace(first, state=AlertState.RESOLVED, resolved_at=200.0)
    again = make_alert(episode=2, opened_at=300.0)
    with database.write() as session:
        for alert in (first, resolved, again):
            writer.save_alert(session, alert)
    with database.read() as session:
        assert queries.alerts(session) == [again, resolved]
        assert queries.latest_episode(session, "f1") == again


def enqueue(session: Session, alert: Alert, key: str = "k1", notifier: str = "slack", due_at: float = 0.0) -> bool:
    return writer.enqueue(
        session,
        Notification(
            notifier=notifier,
            reason="firing",
            alert=alert,
            deduplication_key=key,
            last_good_step=6,
            last_good_path="/data/gpt/checkpoint-6.pt",
            created_at=50.0,
            due_at=due_at,
        ),
    )


def test_a_message_is_queued_once_for_each_notifier(database: Database) -> None:
    with database.write() as session:
        assert enqueue(session, make_alert())
        assert not enqueue(session, make_alert())
        assert enqueue(session, make_alert(), notifier="email")
    with database.read() as session:
        assert queries.outbox_counts(session) == {("slack", "pending"): 1, ("email", "pending"): 1}


def test_a_message_says_what_the_alert_was_when_it_was_queued(database: Database) -> None:
    alert = make_alert()
    with database.write() as session:
        writer.save_alert(session, alert)
        enqueue(session, alert)
        writer.save_alert(session, replace(alert, state=AlertState.RESOLVED, resolved_at=200.0))
    with database.read() as session:
        (message,) = queries.due_notifications(session, "slack", now=60.0, limit=5)
    assert message.alert == alert
    assert (message.last_good_step, message.last_good_path) == (6, "/data/gpt/checkpoint-6.pt")
    assert (message.created_at, message.due_at, message.n_attempts, message.last_error) == (50.0, 0.0, 0, None)


def test_a_sent_message_is_never_due_again(database: Database) -> None:
    with database.write() as session:
        enqueue(session, make_alert())
        (message,) = queries.due_notifications(session, "slack", now=60.0, limit=5)
        writer.mark_sent(session, message.id, 61.0)
        writer.mark_failed(session, message.id, error="late answer", due_at=0.0, dead=False)
    with database.read() as session:
        assert queries.due_notifications(session, "slack", now=1e9, limit=5) == []
        assert queries.next_due_at(session, "slack") is None
        row = session.execute(select(table(OutboxRow))).one()
    assert (row.state, row.sent_at, row.n_attempts, row.last_error) == ("sent", 61.0, 1, None)


def test_a_failed_message_is_due_later_with_its_error(database: Database) -> None:
    with database.write() as session:
        enqueue(session, make_alert())
        (message,) = queries.due_notifications(session, "slack", now=60.0, limit=5)
        writer.mark_failed(session, message.id, error="x" * 10_000, due_at=70.0, dead=False)
    with database.read() as session:
        assert queries.due_notifications(session, "slack", now=69.0, limit=5) == []
        assert queries.next_due_at(session, "slack") == 70.0
        (message,) = queries.due_notifications(session, "slack", now=70.0, limit=5)
    assert (message.n_attempts, message.last_error) == (1, "x" * 500)


def test_a_dead_message_is_counted_and_not_sent(database: Database) -> None:
    with database.write() as session:
        enqueue(session, make_alert())
        (message,) = queries.due_notifications(session, "slack", now=60.0, limit=5)
        writer.mark_failed(session, message.id, error="gone", due_at=0.0, dead=True)
    with database.read() as session:
        assert queries.due_notifications(session, "slack", now=1e9, limit=5) == []
        assert queries.outbox_counts(session) == {("slack", "dead"): 1}


def test_a_run_is_active_until_it_is_said_otherwise(database: Database) -> None:
    with database.write() as session:
        writer.touch_run(session, "gpt", "/data", 10.0)
        writer.set_run_active(session, "unknown", False)
    with database.read() as session:
        found = queries.run(session, "gpt")
    assert found is not None
    assert (found.active, found.n_snapshots, found.attempt, found.last_step) == (True, 0, 1, None)
    with database.write() as session:
        writer.set_run_active(session, "gpt", False)
        writer.touch_run(session, "gpt", "/moved", 20.0)
    with database.read() as session:
        (found,) = queries.runs(session)
    assert (found.active, found.root) == (False, "/moved")


def test_an_alert_of_a_run_leaves_its_root_alone(database: Database) -> None:
    add(database, make_snapshot())
    with database.write() as session:
        writer.save_alert(session, make_alert())
    with database.read() as session:
        assert [found.root for found in queries.runs(session)] == ["/data"]


def test_a_small_fact_is_kept_replaced_and_removed(database: Database) -> None:
    with database.write() as session:
        assert queries.get_meta(session, "clean") is None
        writer.set_meta(session, "clean", "no")
        writer.set_meta(session, "clean", "yes")
    with database.write() as session:
        assert queries.get_meta(session, "clean") == "yes"
        writer.set_meta(session, "clean", None)
        assert queries.get_meta(session, "clean") is None


def test_a_deleted_snapshot_takes_everything_of_it_along(database: Database) -> None:
    number = add(database, make_snapshot())
    with database.write() as session:
        writer.save_findings(session, number, [make_finding()])
        session.execute(table(SnapshotRow).delete())
    left = {name for name, n in counts(database).items() if n}
    assert left == {"runs", "tensors"}


def test_the_number_of_a_deleted_snapshot_is_not_used_again(database: Database) -> None:
    number = add(database, make_snapshot(1))
    with database.write() as session:
        session.execute(table(SnapshotRow).delete())
    assert add(database, make_failure(2)) > number
