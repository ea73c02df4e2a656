"""Everything of one database in another: from SQLite to PostgreSQL, and back, all of it or nothing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import select

from storage import queries, telling, writer
from storage.copying import copy_all
from storage.database import Database, open_database
from storage.errors import DatabaseConflictError, DatabaseError
from storage.models import Base
from storage.records import Notification
from tests.support.postgresql import PostgresqlServer, needs_postgresql
from tests.support.stored import make_alert, make_finding, make_snapshot

HARD = "gpt/\udcff\x00{{7*7}}"


@pytest.fixture
def filled(path: Path) -> Iterator[Database]:
    database = open_database(str(path))
    with database.write() as session:
        for step in range(1, 6):
            number = writer.add_snapshot(session, make_snapshot(step))
            assert number is not None
            writer.save_findings(session, number, [make_finding()])
        writer.touch_run(session, HARD, "/data/\udcff", 1.0)
        alert = make_alert(run=HARD)
        writer.save_alert(session, alert)
        for n in range(3):
            message = Notification(
                notifier="log",
                reason="firing",
                alert=alert,
                deduplication_key=f"key-{n}",
                last_good_step=4,
                last_good_path="/data/\udcff",
                created_at=1.0,
                due_at=1.0,
            )
            assert writer.enqueue(session, message)
        writer.add_silence(session, runs="*", rules="*", now=1.0, ends_at=1e12)
        writer.set_meta(session, "fact", "value")
    yield database
    database.close()


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=needs_postgresql)])
def target(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    if request.param == "sqlite":
        opened = open_database(str(tmp_path / "copy.db"))
    else:
        server: PostgresqlServer = request.getfixturevalue("postgresql")
        opened = open_database(server.create())
    yield opened
    opened.close()


def contents(database: Database) -> dict[str, list[tuple[object, ...]]]:
    with database.read() as session:
        return {
            each.name: [tuple(row) for row in session.execute(select(each).order_by(*each.primary_key.columns))]
            for each in Base.metadata.sorted_tables
        }


def test_a_copy_holds_the_same_and_can_be_gone_on_with(filled: Database, target: Database) -> None:
    progress: list[str] = []
    copied = copy_all(filled, target, on_progress=lambda name, _: progress.append(name))
    assert contents(target) == contents(filled)
    assert copied["snapshots"] == 5
    assert copied["runs"] == 2
    assert {"snapshots", "tensor_statistics"} <= set(progress)
    with target.write() as session:  # the counters go on where the rows end
        assert writer.add_snapshot(session, make_snapshot(6)) == 6
        assert writer.add_snapshot(session, make_snapshot(5)) is None
        assert writer.add_silence(session, runs="*", rules="*", now=1.0, ends_at=1e12) == 2
    with target.read() as session:
        assert [run.run for run in queries.runs(session)] == sorted(["gpt", HARD], key=lambda name: name)
        assert len(queries.due_notifications(session, "log", now=1e12, limit=10)) == 3
        assert len(telling.silences(session, now=2.0)) == 2


def test_there_and_back_again_is_the_same(filled: Database, target: Database, tmp_path: Path) -> None:
    copy_all(filled, target)
    back = open_database(str(tmp_path / "back.db"))
    copy_all(target, back)
    assert contents(back) == contents(filled)
    assert back.quick_check() == ()
    back.close()


def test_a_database_that_holds_something_is_left_alone(filled: Database, target: Database) -> None:
    with target.write() as session:
        writer.touch_run(session, "bert", "/data", 1.0)
    before = contents(target)
    with pytest.raises(DatabaseConflictError, match="copy into an empty one"):
        copy_all(filled, target)
    assert contents(target) == before


def test_a_copy_that_breaks_off_leaves_nothing(filled: Database, target: Database) -> None:
    before = contents(target)

    def break_off(name: str, _n_rows: int) -> None:
        if name == "alerts":
            raise KeyboardInterrupt

    with pytest.raises((KeyboardInterrupt, DatabaseError)):
        copy_all(filled, target, on_progress=break_off)
    assert contents(target) == before
