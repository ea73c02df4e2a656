"""What is particular to PostgreSQL: the schema by revisions, locks between processes, and what its errors mean."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import create_engine, make_url, text
from sqlalchemy.pool import NullPool

from storage import migrations, postgresql, queries, writer
from storage.database import Database, open_database
from storage.errors import (
    DatabaseErrorKind,
    DatabaseLockedError,
    DatabaseUnreachableError,
    ForeignDatabaseError,
    NewerSchemaError,
    ReadOnlyDatabaseError,
    kind_of_sqlstate,
)
from storage.migrations.__main__ import upgrade
from storage.models import Base
from tests.support.postgresql import PostgresqlServer, needs_postgresql
from tests.support.stored import make_snapshot

pytestmark = needs_postgresql


@pytest.fixture
def address(postgresql: PostgresqlServer) -> str:
    return postgresql.emptied()


@pytest.fixture
def opened(address: str) -> Iterator[Database]:
    database = open_database(address)
    yield database
    database.close()


def test_all_revisions_together_make_what_the_models_say(address: str) -> None:
    assert upgrade(make_url(address)) is None
    engine = create_engine(address, poolclass=NullPool)
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True, "compare_server_default": True})
        assert compare_metadata(context, Base.metadata) == []
    database = open_database(address)
    with database.write() as session:
        assert writer.add_snapshot(session, make_snapshot(1)) is not None
    database.close()


def test_a_database_that_is_behind_is_upgraded_at_the_start(address: str) -> None:
    upgrade(make_url(address), target=migrations.REVISIONS[-2])
    database = open_database(address)
    with database.read() as session:
        assert session.execute(text("SELECT version_num FROM alembic_version")).scalar() == migrations.HEAD
    database.close()


def test_a_plain_address_finds_its_driver_and_shows_no_password(address: str, postgresql: PostgresqlServer) -> None:
    database = open_database(address.replace("postgresql+psycopg://", "postgresql://"))
    assert postgresql.password not in repr(database)
    assert database.quick_check() == ()
    database.close()


def test_a_newer_schema_and_the_tables_of_another_program_are_refused(address: str, opened: Database) -> None:
    with opened.write() as session:
        session.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(NewerSchemaError):
        open_database(address)
    with opened.write() as session:
        session.execute(text("DROP TABLE alembic_version"))
    with pytest.raises(ForeignDatabaseError):
        open_database(address)


def test_a_wrong_password_and_a_server_that_is_not_there_are_said_without_the_password(address: str) -> None:
    wrong = make_url(address).set(password="wr0ng-secret")
    nobody = make_url(address).set(port=1)
    for url in (wrong, nobody, make_url(address).set(database="none_such")):
        with pytest.raises(DatabaseUnreachableError) as caught:
            open_database(url.render_as_string(hide_password=False))
        assert "wr0ng-secret" not in str(caught.value)


def test_writers_of_several_processes_wait_for_each_other_and_not_for_ever(
    address: str, opened: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = open_database(address)
    with other.write() as session:
        writer.touch_run(session, "gpt", "/data", 1.0)
        monkeypatch.setattr(postgresql, "LOCK_TIMEOUT_SECONDS", 0.2)
        with pytest.raises(DatabaseLockedError), opened.write():
            pytest.fail("the session must not be lent")
        with opened.read() as reading:
            assert queries.runs(reading) == []
        monkeypatch.undo()
        waited = threading.Thread(target=_touch, args=(opened,))
        waited.start()
    waited.join(30)
    with opened.read() as session:
        assert [run.run for run in queries.runs(session)] == ["bert", "gpt"]
    other.close()


def _touch(database: Database) -> None:
    with database.write() as session:
        writer.touch_run(session, "bert", "/data", 1.0)


def test_a_server_that_is_restarted_is_unreachable_for_a_while_and_nothing_that_was_stored_is_lost() -> None:
    server = PostgresqlServer().start()  # one of its own, since the others' tests go on
    try:
        database = open_database(server.create())
        _touch(database)
        server.stop()
        for _ in range(2):
            with pytest.raises(DatabaseUnreachableError):
                _touch(database)
        server.start()
        _touch(database)
        with database.read() as session:
            assert [run.run for run in queries.runs(session)] == ["bert"]
        database.close()
    finally:
        server.remove()


def test_a_database_that_may_only_be_read_gives_the_kind_read_only(opened: Database) -> None:
    with pytest.raises(ReadOnlyDatabaseError):
        _touch_read_only(opened)


def _touch_read_only(database: Database) -> None:
    with database.write() as session:
        session.execute(text("SET TRANSACTION READ ONLY"))
        writer.touch_run(session, "gpt", "/data", 1.0)


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        ("53100", DatabaseErrorKind.FULL),
        ("53300", DatabaseErrorKind.UNREACHABLE),
        ("57P01", DatabaseErrorKind.UNREACHABLE),
        ("40P01", DatabaseErrorKind.LOCKED),
        ("XX001", DatabaseErrorKind.CORRUPT),
        ("XX000", DatabaseErrorKind.INTERNAL),
        ("42601", None),
        (None, None),
    ],
)
def test_what_a_code_of_postgresql_means(code: str | None, kind: DatabaseErrorKind | None) -> None:
    assert kind_of_sqlstate(code) is kind
