from __future__ import annotations

import os
import shutil
import sqlite3
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path

import pytest
from sqlalchemy import text
from sqlalchemy.orm import Session

from storage import database as database_module
from storage import migrations, queries, sqlite, writer
from storage.database import Database, move_aside, open_database
from storage.errors import (
    CorruptDatabaseError,
    DatabaseConflictError,
    DatabaseError,
    DatabaseFullError,
    DatabaseLockedError,
    DatabaseUnreachableError,
    ForeignDatabaseError,
    NewerSchemaError,
    ReadOnlyDatabaseError,
    UnsupportedDatabaseError,
    kind_of_sqlite,
)
from tests.support.stored import make_snapshot, make_tensor

ROOT = Path(__file__).resolve().parents[2]


def run_python(code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run a script in a fresh interpreter that finds the packages."""
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_new_database_and_the_directories_made_for_it_belong_to_their_user_alone(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    path = tmp_path / "state" / "ckptwatch" / "ckptwatch.db"
    opened = open_database(f"sqlite:///{path}")
    with opened.write() as session:
        writer.touch_run(session, "gpt", "/data", 1.0)
        files = sorted(path.parent.iterdir())
    assert [mode(path.parent), mode(path.parent.parent), mode(tmp_path)] == [0o700, 0o700, 0o755]
    assert len(files) == 3
    assert {mode(file) for file in files} == {0o600}
    opened.close()


def test_every_connection_has_the_settings_that_safety_rests_on(sqlite_database: Database) -> None:
    def setting(session: Session, name: str) -> object:
        return session.connection().exec_driver_sql(f"PRAGMA {name}").scalar()

    for lend in (sqlite_database.read, sqlite_database.write):
        with lend() as session:
            assert setting(session, "journal_mode") == "wal"
            assert setting(session, "synchronous") == 1
            assert setting(session, "foreign_keys") == 1
            assert setting(session, "busy_timeout") == 10_000
            assert setting(session, "journal_size_limit") == 64 * 2**20


def test_closing_leaves_one_file(sqlite_database: Database, path: Path) -> None:
    with sqlite_database.write() as session:
        writer.touch_run(session, "gpt", "/data", 1.0)
    sqlite_database.close()
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("spelling", ["sqlite:///{}", "sqlite+pysqlite:///{}", "{}"])
def test_what_was_stored_is_there_after_opening_again(path: Path, spelling: str) -> None:
    for step in (1, 2):
        opened = open_database(spelling.format(path))
        with opened.write() as session:
            writer.add_snapshot(session, make_snapshot(step))
        opened.close()
    opened = open_database(spelling.format(path))
    with opened.read() as session:
        assert [run.n_snapshots for run in queries.runs(session)] == [2]
    opened.close()


@pytest.mark.parametrize("name", ["with space?&#%.db", "ümlaut.db", "caf\udce9.db"])
def test_the_file_may_have_any_name(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    open_database(str(path)).close()
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("DELETE FROM alembic_version")
        connection.execute("INSERT INTO alembic_version VALUES ('unknown')")
        connection.commit()
    with pytest.raises(NewerSchemaError):
        open_database(str(path))
    assert os.listdir(os.fsencode(tmp_path)) == [os.fsencode(name)]


def test_the_home_directory_may_be_written_short(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    open_database("~/x.db").close()
    assert (tmp_path / "x.db").exists()


def test_neither_a_new_nor_an_existing_database_needs_alembic(path: Path) -> None:
    code = (
        "import sys; from storage.database import open_database; import storage.writer, storage.queries\n"
        "open_database(sys.argv[1]).close(); open_database(sys.argv[1]).close()\n"
        "print(sorted({m.split('.')[0] for m in sys.modules} & {'alembic', 'mako', 'numpy'}))"
    )
    done = run_python(code, path)
    assert (done.stdout.strip(), done.stderr) == ("[]", "")


def test_processes_that_start_at_once_all_succeed(url: str) -> None:
    code = (
        "import sys; from storage.database import open_database; from storage import writer\n"
        "print('ready', flush=True); sys.stdin.readline()\n"
        "database = open_database(sys.argv[1])\n"
        "with database.write() as session: writer.touch_run(session, sys.argv[2], '/data', 1.0)\n"
        "database.close()"
    )
    children = [
        subprocess.Popen(
            [sys.executable, "-c", code, url, f"run-{i}"],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(4)
    ]
    for child in children:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
    assert [child.communicate("go\n", timeout=60)[1] for child in children] == [""] * 4
    opened = open_database(url)
    with opened.read() as session:
        assert [run.run for run in queries.runs(session)] == [f"run-{i}" for i in range(4)]
    opened.close()


def test_threads_that_open_a_new_database_at_once_all_succeed(path: Path) -> None:
    barrier, failures = threading.Barrier(6), []

    def start() -> None:
        barrier.wait()
        try:
            open_database(str(path)).close()
        except DatabaseError as error:
            failures.append(error)

    threads = [threading.Thread(target=start) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


def test_a_newer_schema_is_refused_with_what_to_do_and_left_alone(path: Path) -> None:
    open_database(str(path)).close()
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
        connection.commit()
    before = path.read_bytes()
    with pytest.raises(NewerSchemaError, match=rf"9999 is newer .*\({migrations.HEAD}\); install the release"):
        open_database(str(path))
    assert path.read_bytes() == before


def test_a_database_of_another_program_is_refused_and_left_alone(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE experiments (x INTEGER)")
    with pytest.raises(ForeignDatabaseError, match="another program \\(experiments\\)"):
        open_database(str(path))
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("SELECT name FROM sqlite_master").fetchall() == [("experiments",)]


def test_a_file_that_is_no_database_is_called_corrupt_and_left_alone(path: Path) -> None:
    path.write_bytes(b"not a database " * 1000)
    with pytest.raises(CorruptDatabaseError, match="move it aside"):
        open_database(str(path))
    assert path.read_bytes() == b"not a database " * 1000


def test_an_empty_file_becomes_a_database(path: Path) -> None:
    path.touch()
    open_database(str(path)).close()
    assert path.stat().st_size > 0


def damage(path: Path) -> None:
    content = bytearray(path.read_bytes())
    for start in range(4096, len(content), 4096):
        content[start : start + 100] = b"\xff" * 100
    path.write_bytes(content)


def test_damaged_pages_are_called_corrupt(sqlite_database: Database, path: Path) -> None:
    with sqlite_database.write() as session:
        writer.add_snapshot(session, make_snapshot(1))
    assert sqlite_database.quick_check() == ()
    sqlite_database.close()
    damage(path)
    with pytest.raises(CorruptDatabaseError):
        open_database(str(path)).close()


def test_a_corrupt_database_can_be_moved_aside_with_its_log_and_nothing_is_deleted(tmp_path: Path) -> None:
    for name in ("x.db", "x.db-wal", "x.db-shm"):
        (tmp_path / name).write_text(name)
    assert move_aside(str(tmp_path / "x.db"), suffix=".corrupt.1") == tmp_path / "x.db.corrupt.1"
    names = ["x.db.corrupt.1", "x.db.corrupt.1-shm", "x.db.corrupt.1-wal"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    assert (tmp_path / "x.db.corrupt.1-wal").read_text() == "x.db-wal"
    with pytest.raises(DatabaseUnreachableError):
        move_aside(str(tmp_path / "x.db"), suffix=".corrupt.2")


@pytest.mark.parametrize("make", [Path.mkdir, lambda path: path.parent.joinpath("file").touch()])
def test_a_place_that_cannot_hold_a_file_is_called_unreachable(tmp_path: Path, make: Callable[[Path], None]) -> None:
    make(tmp_path / "x.db")
    for path in (tmp_path / "x.db", tmp_path / "file" / "x.db"):
        if path.is_dir() or path.parent.is_file():
            with pytest.raises(DatabaseUnreachableError, match="check that the place exists"):
                open_database(str(path))


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("", "address is empty"),
        ("sqlite://", "in memory"),
        ("sqlite:///:memory:", "in memory"),
        ("sqlite:///file:x?mode=memory&uri=true", "in memory"),
        ("mysql://user:secret@host/db", "only sqlite and postgresql"),
        ("nonsense+driver://user:secret@host/db", "only sqlite and postgresql"),
        ("postgresql+nonsense://user:secret@host/db", "driver is missing"),
        ("://secret", "cannot be understood"),
        ("postgresql://user:secret@host:port/db", "cannot be understood"),
    ],
)
def test_an_address_that_cannot_be_used_is_refused_without_showing_the_password(url: str, words: str) -> None:
    with pytest.raises(UnsupportedDatabaseError, match=words) as caught:
        open_database(url)
    assert "secret" not in str(caught.value)


def test_a_read_session_cannot_change_anything(database: Database) -> None:
    with pytest.raises(ReadOnlyDatabaseError), database.read() as session:
        writer.touch_run(session, "gpt", "/data", 1.0)
    with database.write() as session:
        writer.touch_run(session, "gpt", "/data", 1.0)


def test_an_exception_undoes_the_whole_transaction(database: Database) -> None:
    with suppress(KeyError), database.write() as session:
        writer.add_snapshot(session, make_snapshot(1))
        raise KeyError
    with database.read() as session:
        assert queries.runs(session) == []
    with database.write() as session:
        assert writer.add_snapshot(session, make_snapshot(1)) is not None


def test_a_second_write_session_of_the_same_thread_is_a_mistake_not_a_deadlock(database: Database) -> None:
    with pytest.raises(RuntimeError, match="already open"), database.write(), database.write():
        pass
    with database.write() as session:
        writer.touch_run(session, "gpt", "/data", 1.0)


def test_a_reader_sees_one_state_and_never_waits_for_a_writer(database: Database) -> None:
    with database.write() as session:
        writer.add_snapshot(session, make_snapshot(1))
    with database.read() as reading:
        assert len(queries.history(reading, "gpt")) == 1
        with database.write() as session:
            writer.add_snapshot(session, make_snapshot(2))
            assert len(queries.history(reading, "gpt")) == 1
        assert len(queries.history(reading, "gpt")) == 1
    with database.read() as reading:
        assert len(queries.history(reading, "gpt")) == 2


def test_many_threads_may_read_and_write_at_once(database: Database) -> None:
    failures: list[BaseException] = []

    def work(number: int) -> None:
        try:
            for step in range(15):
                with database.write() as session:
                    writer.add_snapshot(session, make_snapshot(step, run=f"run-{number}"))
                with database.read() as session:
                    assert len(queries.history(session, f"run-{number}")) == step + 1
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert database.quick_check() == ()


def test_a_database_held_by_another_process_is_called_locked_and_works_afterwards(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite, "BUSY_TIMEOUT_SECONDS", 0.05)
    opened = open_database(str(path))
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(DatabaseLockedError, match="end the other process"), opened.write():
            pytest.fail("the session must not be lent")
        with opened.read() as session:
            assert queries.runs(session) == []
        other.execute("ROLLBACK")
    with opened.write() as session:
        writer.touch_run(session, "gpt", "/data", 1.0)
    opened.close()


def test_a_thread_that_writes_for_ever_does_not_hold_up_the_others_for_ever(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database_module, "WRITER_WAIT_SECONDS", 0.05)
    caught: list[DatabaseError] = []

    def second() -> None:
        try:
            with database.write():
                pass
        except DatabaseError as error:
            caught.append(error)

    with database.write():
        thread = threading.Thread(target=second)
        thread.start()
        thread.join()
    assert [type(error) for error in caught] == [DatabaseLockedError]
    with database.write() as session:
        writer.touch_run(session, "gpt", "/data", 1.0)


def test_a_full_disk_is_called_full_stores_nothing_and_passes(sqlite_database: Database) -> None:
    with sqlite_database.write() as session:
        writer.add_snapshot(session, make_snapshot(1))
    with sqlite_database.write() as session:
        pages = session.connection().exec_driver_sql("PRAGMA page_count").scalar_one()
        session.connection().exec_driver_sql(f"PRAGMA max_page_count={pages + 2}")
    large = tuple(make_tensor(f"layer.{i}", i) for i in range(1000))
    with pytest.raises(DatabaseFullError, match="free some space"), sqlite_database.write() as session:
        writer.add_snapshot(session, make_snapshot(2, tensors=large))
    with sqlite_database.read() as session:
        assert len(queries.history(session, "gpt")) == 1
    with sqlite_database.write() as session:
        session.connection().exec_driver_sql("PRAGMA max_page_count=1073741823")
        assert writer.add_snapshot(session, make_snapshot(2)) is not None
    assert sqlite_database.quick_check() == ()


def test_a_quota_on_the_size_of_files_is_called_full_too(path: Path) -> None:
    code = (
        "import resource, signal, sys\n"
        "from storage.database import open_database; from storage import writer, queries\n"
        "from storage.errors import DatabaseFullError\n"
        "from tests.support.stored import make_snapshot\n"
        "database = open_database(sys.argv[1])\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, resource.RLIM_INFINITY))\n"
        "try:\n"
        "    for step in range(1000):\n"
        "        with database.write() as session: writer.add_snapshot(session, make_snapshot(step))\n"
        "except DatabaseFullError: print('full after some', step > 1)\n"
        "with database.read() as session: print(len(queries.history(session, 'gpt')) == step)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))\n"
        "with database.write() as session: print(writer.add_snapshot(session, make_snapshot(step)) is not None)\n"
        "print(database.quick_check())"
    )
    done = run_python(code, path)
    assert done.stdout.splitlines() == ["full after some True", "True", "True", "()"], done.stderr


@pytest.mark.parametrize("replace", [False, True])
def test_a_database_removed_or_replaced_while_open_is_noticed(path: Path, replace: bool) -> None:
    opened = open_database(str(path))
    copy = shutil.copy(path, path.with_suffix(".copy"))
    path.unlink()
    if replace:
        os.rename(copy, path)
    with pytest.raises(DatabaseUnreachableError, match="removed or replaced"), opened.write():
        pytest.fail("the session must not be lent")
    opened.close()


def test_a_broken_rule_of_the_schema_is_called_a_conflict_without_showing_values(database: Database) -> None:
    statement = text("INSERT INTO tensors VALUES (1, 999, 'd', :name, 'k', 't', 's')")
    with pytest.raises(DatabaseConflictError) as caught, database.write() as session:
        session.execute(statement, {"name": "very-secret"})
    assert "very-secret" not in str(caught.value)
    assert "FOREIGN KEY" in str(caught.value).upper()


def test_a_mistake_in_a_statement_is_called_internal(database: Database) -> None:
    with pytest.raises(DatabaseError) as caught, database.read() as session:
        session.execute(text("SELECT nonsense FROM nowhere"))
    assert caught.value.kind == "internal"


def test_a_database_that_may_only_be_read_gives_the_kind_read_only(path: Path) -> None:
    open_database(str(path)).close()
    connection = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
    with closing(connection), pytest.raises(sqlite3.OperationalError) as caught:
        connection.execute("DELETE FROM runs")
    assert kind_of_sqlite(caught.value) == "read_only"


def test_a_database_on_a_filesystem_without_shared_memory_uses_the_old_journal(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite, "on_network_filesystem", lambda _path: True)
    opened = open_database(str(path))
    with opened.write() as session:
        assert session.connection().exec_driver_sql("PRAGMA journal_mode").scalar() == "delete"
        assert session.connection().exec_driver_sql("PRAGMA synchronous").scalar() == 2
        writer.add_snapshot(session, make_snapshot(1))
    with opened.read() as session:
        assert len(queries.history(session, "gpt")) == 1
    opened.close()


def test_a_database_moved_to_a_network_filesystem_leaves_write_ahead_logging(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = open_database(str(path))
    with opened.write() as session:
        writer.add_snapshot(session, make_snapshot(1))
    opened.close()
    monkeypatch.setattr(sqlite, "on_network_filesystem", lambda _path: True)
    opened = open_database(str(path))
    with opened.read() as session:
        assert session.connection().exec_driver_sql("PRAGMA journal_mode").scalar() == "delete"
        assert len(queries.history(session, "gpt")) == 1
    opened.close()
