from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import ClauseElement, create_mock_engine, event
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import ORMExecuteState, Session
from sqlalchemy.schema import CreateIndex, CreateTable

from storage import queries, retention, windows, writer
from storage.database import Database
from storage.models import AlertRow, Base, table
from storage.records import AlertState, Notification, Severity, Sketch, Snapshot, Window
from tests.support.stored import make_alert, make_failure, make_finding, make_snapshot, make_tensor, stored_as


def add(database: Database, *snapshots: Snapshot) -> list[int]:
    numbers = []
    with database.write() as session:
        for snapshot in snapshots:
            number = writer.add_snapshot(session, snapshot)
            assert number is not None
            numbers.append(number)
    return numbers


def steps(database: Database, run: str = "gpt", attempt: int | None = None, limit: int = 100) -> list[int | None]:
    with database.read() as session:
        return [found.step for found in queries.history(session, run, attempt=attempt, limit=limit)]


def test_history_is_oldest_first_and_its_limit_keeps_the_newest(database: Database) -> None:
    add(database, *(make_snapshot(step) for step in range(10)))
    assert steps(database) == list(range(10))
    assert steps(database, limit=3) == [7, 8, 9]
    assert steps(database, "unknown") == []


def test_a_snapshot_stored_late_takes_its_place_in_history(database: Database) -> None:
    add(database, make_snapshot(1), make_snapshot(3), make_snapshot(2))
    assert steps(database) == [1, 2, 3]


def test_a_checkpoint_without_a_step_keeps_the_place_in_which_it_was_stored(database: Database) -> None:
    add(database, make_snapshot(1), make_failure(None), make_snapshot(2))
    assert steps(database) == [1, None, 2]


def test_checkpoints_that_never_name_a_step_keep_their_order(database: Database) -> None:
    numbers = add(database, *(make_snapshot(None, signature=f"s{i}", written_at=float(9 - i)) for i in range(4)))
    with database.read() as session:
        assert [found.id for found in queries.history(session, "gpt")] == numbers


def test_a_restart_that_goes_back_comes_after_the_first_attempt(database: Database) -> None:
    add(database, make_snapshot(10), make_snapshot(20), make_snapshot(5, attempt=2), make_snapshot(30))
    assert steps(database) == [10, 20, 30, 5]
    assert steps(database, attempt=2) == [5]
    with database.read() as session:
        newest = queries.newest(session, "gpt")
    assert newest is not None
    assert (newest.attempt, newest.step) == (2, 5)


def test_the_summary_of_a_run_counts_all_attempts_and_shows_the_newest(database: Database) -> None:
    add(database, make_snapshot(10), make_snapshot(5, attempt=2, measured_at=77.0), make_snapshot(1, run="b"))
    with database.read() as session:
        one, two = queries.runs(session)
        assert (one.run, two.run) == ("b", "gpt")
        assert queries.run(session, "gpt") == two
        assert queries.run(session, "unknown") is None
        assert [found.run for found in queries.runs(session, limit=1)] == ["b"]
    assert (two.attempt, two.n_snapshots, two.last_step) == (2, 2, 5)
    assert (two.last_written_at, two.last_measured_at) == (1005.0, 77.0)


def test_the_last_step_of_a_run_survives_a_checkpoint_without_one(database: Database) -> None:
    add(database, make_snapshot(10), make_failure(None))
    with database.read() as session:
        (found,) = queries.runs(session)
    assert found.last_step == 10


def test_the_window_holds_the_current_attempt_and_the_newest_tensors(database: Database) -> None:
    newest = make_snapshot(6, attempt=2, tensors=(make_tensor("w"),))
    add(database, make_snapshot(9), make_snapshot(4, attempt=2), make_snapshot(5, attempt=2), newest)
    with database.read() as session:
        window = windows.window(session, "gpt", n_snapshots_max=2, now=5.0, reason="tick")
    assert [found.step for found in window.snapshots] == [5, 6]
    assert window.tensors == (make_tensor("w", sketch=None),)
    assert window.drifts == newest.drifts
    assert (window.run, window.now, window.reason) == ("gpt", 5.0, "tick")


def test_the_window_holds_the_last_complete_snapshots_before_the_newest_with_their_contents(
    database: Database,
) -> None:
    add(database, *(make_snapshot(step) for step in range(1, 12)), make_failure(12), make_snapshot(13))
    with database.read() as session:
        window = windows.window(session, "gpt", n_snapshots_max=64, now=9.0, reason="snapshot")
    assert [p.snapshot.step for p in window.past] == list(range(4, 12))
    assert window.scalars == make_snapshot().scalars
    for past in window.past:
        assert [t.name for t in past.tensors] == ["a.weight", "b.bias"]
        assert all(t.sketch is None and t.histogram is None for t in past.tensors)
        assert past.drifts == make_snapshot().drifts
        assert past.scalars == make_snapshot().scalars
    assert window.previous_attempt is None


def test_snapshots_with_very_many_tensors_make_the_past_shorter(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(database, *(make_snapshot(step) for step in range(1, 7)))
    monkeypatch.setattr(windows, "PAST_TENSORS_MAX", 5)
    with database.read() as session:
        window = windows.window(session, "gpt", n_snapshots_max=64, now=9.0, reason="snapshot")
    assert [p.snapshot.step for p in window.past] == [4, 5]
    monkeypatch.setattr(windows, "PAST_TENSORS_MAX", 0)
    with database.read() as session:
        window = windows.window(session, "gpt", n_snapshots_max=64, now=9.0, reason="snapshot")
    assert [p.snapshot.step for p in window.past] == [5]


def test_the_window_of_a_restart_shows_where_the_attempt_before_ended(database: Database) -> None:
    add(database, make_snapshot(10), make_snapshot(20), make_snapshot(15, attempt=2, signature="again"))
    with database.read() as session:
        window = windows.window(session, "gpt", n_snapshots_max=64, now=9.0, reason="snapshot")
    assert window.past == ()
    assert window.previous_attempt is not None
    assert window.previous_attempt.snapshot.step == 20
    assert [t.name for t in window.previous_attempt.tensors] == ["a.weight", "b.bias"]


def test_the_window_of_a_failed_checkpoint_has_no_tensors_and_of_no_run_nothing(database: Database) -> None:
    add(database, make_snapshot(1), make_failure(2))
    with database.read() as session:
        failed = windows.window(session, "gpt", n_snapshots_max=9, now=5.0, reason="snapshot")
        unknown = windows.window(session, "unknown", n_snapshots_max=9, now=5.0, reason="snapshot")
    assert (len(failed.snapshots), failed.tensors, failed.drifts) == (2, (), ())
    assert unknown == Window(run="unknown", snapshots=(), tensors=(), drifts=(), now=5.0, reason="snapshot")


def test_the_reference_is_the_newest_complete_snapshot_with_a_smaller_step(database: Database) -> None:
    add(database, make_snapshot(1), make_snapshot(3), make_failure(4), make_snapshot(5), make_snapshot(2, attempt=2))
    with database.read() as session:

        def step_of(attempt: int, step: int) -> int | None:
            found = queries.reference(session, "gpt", attempt, step=step, written_at=0.0)
            return None if found is None else found.step

        assert [step_of(1, step) for step in (1, 2, 3, 4, 5, 6)] == [None, 1, 1, 3, 3, 5]
        assert [step_of(2, step) for step in (2, 3)] == [None, 2]
        assert queries.reference(session, "unknown", 1, step=9, written_at=0.0) is None
        huge = queries.reference(session, "gpt", 1, step=2**70, written_at=0.0)
    assert huge is not None
    assert huge.step == 5


def test_the_reference_of_a_checkpoint_without_a_step_is_the_one_written_before(database: Database) -> None:
    one, two, three = (
        make_snapshot(None, signature="1", written_at=10.0),
        make_snapshot(None, signature="2", written_at=20.0),
        make_failure(None, signature="3", written_at=25.0),
    )
    numbers = add(database, two, one, three)
    with database.read() as session:
        found = [queries.reference(session, "gpt", 1, step=None, written_at=at) for at in (10.0, 15.0, 30.0)]
    assert [None if item is None else item.id for item in found] == [None, numbers[1], numbers[0]]


def test_tensors_without_distribution_are_equal_in_all_else(database: Database) -> None:
    (number,) = add(database, make_snapshot(1))
    with database.read() as session:
        whole = queries.tensors(session, number)
        lean = queries.tensors(session, number, with_distribution=False)
        assert queries.tensors(session, number + 1) == ()
    assert lean == tuple(replace(tensor, quantiles={}, histogram=None) for tensor in whole)
    assert whole[0].histogram is not None


def test_one_tensor_can_be_followed_through_history(database: Database) -> None:
    add(database, *(make_snapshot(step, tensors=(make_tensor("w", mean=float(step)),), drifts=()) for step in range(6)))
    add(database, make_snapshot(6), make_snapshot(7, tensors=(make_tensor("w", shape=(9,)),), drifts=(), attempt=2))
    with database.read() as session:
        found = queries.tensor_history(session, "gpt", "w", limit=3)
        first = queries.tensor_history(session, "gpt", "w", attempt=1)
        assert queries.tensor_history(session, "gpt", "unknown") == []
    assert [(stored.step, tensor.mean, tensor.shape) for stored, tensor in found] == [
        (4, 4.0, (3, 4)),
        (5, 5.0, (3, 4)),
        (7, 0.1, (9,)),
    ]
    assert [stored.step for stored, _ in first] == list(range(6))


def test_what_is_known_of_a_root_is_every_path_below_it(database: Database) -> None:
    add(
        database,
        make_snapshot(1, path="/data/a.pt"),
        make_snapshot(2, path="/data/a.pt"),
        make_failure(3, path="/data/deep/b.pt", run="other"),
        make_snapshot(4, path="/database/c.pt"),
        make_snapshot(5, path="/data"),
        make_snapshot(6, path="/data_x/c.pt"),
    )
    with database.read() as session:
        expected = {"/data/a.pt": {"signature-1", "signature-2"}, "/data/deep/b.pt": {"signature-3"}}
        assert queries.known(session, "/data") == {**expected, "/data": {"signature-5"}}
        assert queries.known(session, "/data/") == expected
        assert len(queries.known(session, "/")) == 5


@pytest.mark.parametrize("root", ["/data\udcff", "/d_%*?[a]", "/\ufdd0", "/ü\0"])
def test_paths_that_are_hard_to_store_are_still_known(database: Database, root: str) -> None:
    path = f"{root}/x\udc80.pt"
    add(database, make_snapshot(1, root=root, path=path), make_snapshot(2), make_snapshot(3, path="/dXYZ/x.pt"))
    with database.read() as session:
        assert queries.known(session, root) == {path: {"signature-1"}}
        assert queries.is_known(session, "gpt", path, "signature-1")
        assert not queries.is_known(session, "gpt", path, "signature-2")
        assert not queries.is_known(session, "other", path, "signature-1")


def test_open_alerts_are_those_pending_or_firing(database: Database) -> None:
    pending = make_alert("a", state=AlertState.PENDING, opened_at=3.0)
    firing = make_alert("b", opened_at=1.0)
    other = make_alert("c", opened_at=2.0, run="other")
    done = make_alert("d", state=AlertState.RESOLVED, resolved_at=9.0)
    with database.write() as session:
        for alert in (pending, firing, other, done):
            writer.save_alert(session, alert)
        assert queries.open_alerts(session) == [firing, other, pending]
        assert queries.open_alerts(session, "gpt") == [firing, pending]


def test_alerts_are_newest_first_and_can_be_narrowed(database: Database) -> None:
    old = make_alert("a", opened_at=1.0, state=AlertState.RESOLVED, resolved_at=5.0)
    long = make_alert("b", opened_at=2.0)
    new = make_alert("c", opened_at=9.0, run="other", state=AlertState.RESOLVED, resolved_at=11.0)
    with database.write() as session:
        for alert in (long, new, old):
            writer.save_alert(session, alert)
        assert queries.alerts(session) == [new, long, old]
        assert queries.alerts(session, limit=1) == [new]
        assert queries.alerts(session, run="gpt") == [long, old]
        assert queries.alerts(session, state=AlertState.FIRING) == [long]
        assert queries.alerts(session, since=5.0) == [new, long, old]
        assert queries.alerts(session, since=6.0) == [new, long]


def test_firing_alerts_are_counted_by_run_rule_and_severity(database: Database) -> None:
    with database.write() as session:
        for fingerprint, run, state in (
            ("a", "gpt", AlertState.FIRING),
            ("b", "gpt", AlertState.FIRING),
            ("c", "other", AlertState.FIRING),
            ("d", "gpt", AlertState.PENDING),
        ):
            writer.save_alert(session, make_alert(fingerprint, run=run, state=state))
        assert queries.firing_counts(session) == {
            ("gpt", "nonfinite", Severity.CRITICAL): 2,
            ("other", "nonfinite", Severity.CRITICAL): 1,
        }


def enqueue(
    session: Session, key: str, *, fingerprint: str = "f", notifier: str = "slack", due_at: float = 0.0
) -> None:
    assert writer.enqueue(
        session,
        Notification(
            notifier=notifier,
            reason="firing",
            alert=make_alert(fingerprint),
            deduplication_key=key,
            last_good_step=None,
            last_good_path=None,
            created_at=0.0,
            due_at=due_at,
        ),
    )


def due(session: Session, now: float, limit: int = 10) -> list[str]:
    return [item.deduplication_key for item in queries.due_notifications(session, "slack", now=now, limit=limit)]


def test_due_messages_come_in_the_order_in_which_they_were_queued(database: Database) -> None:
    with database.write() as session:
        enqueue(session, "1", fingerprint="a", due_at=5.0)
        enqueue(session, "2", fingerprint="b", due_at=1.0)
        enqueue(session, "3", fingerprint="c", due_at=1.0)
        assert due(session, 0.0) == []
        assert due(session, 1.0) == ["2", "3"]
        assert due(session, 5.0) == ["1", "2", "3"]
        assert due(session, 5.0, limit=2) == ["1", "2"]


def test_a_message_never_overtakes_an_earlier_one_of_the_same_alert(database: Database) -> None:
    with database.write() as session:
        enqueue(session, "firing", due_at=0.0)
        enqueue(session, "resolved", due_at=1.0)
        enqueue(session, "other notifier", notifier="email", due_at=1.0)
        (first, *_) = queries.due_notifications(session, "slack", now=1.0, limit=1)
        writer.mark_failed(session, first.id, error="down", due_at=60.0, dead=False)
        assert due(session, 1.0) == []
        assert queries.next_due_at(session, "slack") == 60.0
        assert queries.next_due_at(session, "email") == 1.0
        assert due(session, 60.0) == ["firing", "resolved"]
        writer.mark_failed(session, first.id, error="gone", due_at=60.0, dead=True)
        assert due(session, 1.0) == ["resolved"]
        assert queries.next_due_at(session, "slack") == 1.0


def test_it_is_known_whether_an_episode_was_ever_announced(database: Database) -> None:
    with database.write() as session:
        assert not queries.was_enqueued(session, "f", 1)
        enqueue(session, "1")
        assert queries.was_enqueued(session, "f", 1)
        assert not queries.was_enqueued(session, "f", 2)


def ask_everything(session: Session) -> None:
    """Run each query and each change once."""
    number = writer.add_snapshot(session, make_snapshot(1))
    assert number is not None
    writer.save_findings(session, number, [make_finding()])
    writer.save_alert(session, make_alert())
    enqueue(session, "1")
    writer.set_meta(session, "a", "b")
    writer.set_run_active(session, "gpt", True)
    writer.mark_failed(session, 1, error="x", due_at=1.0, dead=False)
    writer.mark_sent(session, 1, 1.0)
    retention.thin_sketches(session, "gpt", n_recent=1)
    writer.set_meta(session, "a", None)
    assert queries.snapshot(session, number) == stored_as(make_snapshot(1), number, Severity.CRITICAL)
    queries.runs(session)
    queries.run(session, "gpt")
    queries.history(session, "gpt", attempt=1)
    windows.window(session, "gpt", n_snapshots_max=5, now=0.0, reason="tick")
    queries.reference(session, "gpt", 1, step=5, written_at=0.0)
    queries.reference(session, "gpt", 1, step=None, written_at=0.0)
    queries.tensors(session, number, with_sketch=True)
    queries.tensors(session, number, with_distribution=False)
    queries.tensor_history(session, "gpt", "a.weight", attempt=1)
    queries.drifts(session, number)
    queries.scalars(session, number)
    queries.findings(session, number)
    queries.is_known(session, "gpt", "/x", "y")
    queries.known(session, "/data")
    queries.open_alerts(session, "gpt")
    queries.alerts(session, run="gpt", since=0.0, state=AlertState.FIRING)
    queries.latest_episode(session, "f")
    queries.firing_counts(session)
    queries.due_notifications(session, "slack", now=0.0, limit=5)
    queries.next_due_at(session, "slack")
    queries.outbox_counts(session)
    queries.was_enqueued(session, "f", 1)
    queries.get_meta(session, "a")


def plans(session: Session, ask: Callable[[Session], object]) -> list[tuple[str, str]]:
    """Return the lines of SQLite's plan for each single statement that `ask` runs, with the statement."""
    asked: list[tuple[str, Sequence[Any]]] = []
    connection = session.connection()

    @event.listens_for(connection, "before_cursor_execute")
    def note(_connection: Any, _cursor: Any, statement: str, parameters: Any, _context: Any, many: bool) -> None:
        if not many:
            asked.append((statement, parameters))

    ask(session)
    cursor = connection.connection.cursor()
    lines = []
    for statement, parameters in asked:
        cursor.execute(f"EXPLAIN QUERY PLAN {statement}", parameters)
        lines += [(str(row[3]), statement) for row in cursor.fetchall()]
    return lines


def test_no_query_walks_through_the_tensor_tables(sqlite_database: Database) -> None:
    large = {"tensor_statistics", "tensor_distributions", "tensor_sketches", "drifts", "tensors"}
    with sqlite_database.write() as session:
        lines = plans(session, ask_everything)
    assert len(lines) > 30
    assert [line for line in lines if line[0].startswith("SCAN") and large & {*line[0].split()}] == []


def test_a_tensor_is_followed_by_the_index_that_begins_with_it(sqlite_database: Database) -> None:
    add(sqlite_database, make_snapshot(1), make_snapshot(2))
    with sqlite_database.read() as session:
        lines = [line for line, _ in plans(session, lambda session: queries.tensor_history(session, "gpt", "a.weight"))]
    searches = [line for line in lines if line.startswith("SEARCH tensor_statistics")]
    assert len(searches) == 2
    assert all("ix_tensor_statistics_tensor_id_snapshot_id" in line for line in searches)


def test_history_is_read_in_index_order(sqlite_database: Database) -> None:
    with sqlite_database.read() as session:
        lines = [line for line, _ in plans(session, lambda session: queries.history(session, "gpt", limit=10))]
    assert any("ix_snapshots_run_id_attempt_sort_step_id" in line for line in lines)
    assert not any("TEMP B-TREE" in line for line in lines)


def test_every_table_and_query_is_also_valid_for_postgresql(database: Database) -> None:
    dialect = postgresql.dialect()  # type: ignore[no-untyped-call]
    for found in Base.metadata.sorted_tables:
        assert "WITHOUT ROWID" not in str(CreateTable(found).compile(dialect=dialect))
        for index in found.indexes:
            assert len(str(index.name)) <= 63
            str(CreateIndex(index).compile(dialect=dialect))
    compiled = []

    def compile_too(state: ORMExecuteState) -> None:
        # What was built for SQLite cannot be compiled for another; `upsert` chooses by the session's dialect.
        if not isinstance(state.statement, sqlite.Insert):
            assert isinstance(state.statement, ClauseElement)
            compiled.append(str(state.statement.compile(dialect=dialect)))

    with database.write() as session:
        event.listen(session, "do_orm_execute", compile_too)
        ask_everything(session)
    assert len(compiled) > 30


def test_an_upsert_speaks_the_dialect_of_its_session() -> None:
    engine = create_mock_engine("postgresql+psycopg://", lambda *_: None)
    session = Session(bind=engine)  # type: ignore[arg-type]
    statement = writer.upsert(session, table(AlertRow)).values(fingerprint="f").on_conflict_do_nothing()
    assert isinstance(statement, postgresql.Insert)
    assert "ON CONFLICT DO NOTHING" in str(statement.compile(dialect=engine.dialect))


def test_the_window_names_the_snapshots_that_another_run_has_too(database: Database) -> None:
    with database.write() as session:
        for run, norm, weights in (
            ("gpt", 2.0, b"same"),
            ("copy", 2.0, b"same"),
            ("other", 2.0, b"differ"),
            ("longer", 2.5, b"same"),
        ):
            for step in (0, 5, 9):
                facts: dict[str, Any] = {"weight_norm": norm + step, "weights": weight_sketch(weights * 2)}
                assert writer.add_snapshot(session, make_snapshot(step, run=run, **facts))
        writer.add_snapshot(session, make_snapshot(5, run="again", path="/data/gpt/checkpoint-5.pt", weight_norm=7.0))
        window = windows.window(session, "gpt", n_snapshots_max=9, now=5.0, reason="snapshot")
    pairs = [(mine.step, twin.run, twin.step) for mine, twin in window.twins]
    assert pairs == [(5, "copy", 5), (9, "copy", 9)]


def weight_sketch(values: bytes) -> Sketch:
    return Sketch(kind="weights", n_buckets=len(values) // 4, seed=3, dtype="float32", values=values)
