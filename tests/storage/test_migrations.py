from __future__ import annotations

import os
import re
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import URL, create_engine
from sqlalchemy.pool import NullPool

from storage import database as database_module
from storage import migrations, queries, telling, writer
from storage.database import open_database
from storage.errors import DatabaseErrorKind, MigrationError, NewerSchemaError
from storage.migrations.__main__ import SCRIPTS, configuration, upgrade
from storage.models import Base
from storage.records import Severity
from tests.support.stored import make_snapshot

HEAD = migrations.HEAD  # as this release has it; some tests pretend otherwise
ROOT = Path(__file__).resolve().parents[2]

NEXT_REVISION = '''
"""A later revision, as a future release could have it."""

import sqlalchemy as sa
from alembic import op

revision = "9999"
down_revision = "{head}"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table("snapshots") as batch:
        batch.add_column(sa.Column("note", sa.Text(), nullable=False, server_default="none"))
    {more}


def downgrade() -> None:
    with op.batch_alter_table("snapshots") as batch:
        batch.drop_column("note")
'''


def url(path: Path) -> URL:
    return URL.create("sqlite", database=str(path))


def schema(path: Path) -> dict[str, list[str]]:
    """Return the columns and constraints of each table and index, without white space, quotes and their order."""
    with closing(sqlite3.connect(path)) as connection:
        found = connection.execute("SELECT name, sql FROM sqlite_master").fetchall()
    parts = {}
    for name, sql in found:
        head, _, body = " ".join(str(sql).replace('"', "").split()).partition("(")
        body, _, tail = body.rpartition(")")
        parts[name] = sorted([head.strip(), tail.strip(), *re.split(r"\s*,\s*(?![^()]*\))", body.strip())])
    return parts


def revision(path: Path) -> str | None:
    with closing(sqlite3.connect(path)) as connection:
        row = connection.execute("SELECT version_num FROM alembic_version").fetchone()
    return None if row is None else str(row[0])


def later_release(directory: Path, more: str = "") -> str:
    """Return a directory of revisions with one more than this release has."""
    scripts = directory / "scripts"
    shutil.copytree(SCRIPTS, scripts, ignore=shutil.ignore_patterns("__pycache__"))
    text = NEXT_REVISION.format(head=HEAD, more=more)
    (scripts / "versions" / "revision_9999.py").write_text(text)
    return str(scripts)


def fill(path: Path) -> None:
    opened = open_database(str(path))
    with opened.write() as session:
        assert writer.add_snapshot(session, make_snapshot(1)) is not None
    opened.close()


def test_the_list_of_revisions_is_that_of_the_files() -> None:
    script = ScriptDirectory.from_config(configuration())
    assert tuple(reversed([found.revision for found in script.walk_revisions()])) == migrations.REVISIONS
    assert script.get_current_head() == HEAD


def test_all_revisions_together_make_what_the_models_say(path: Path) -> None:
    assert upgrade(url(path)) is None
    engine = create_engine(url(path), poolclass=NullPool)
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True, "compare_server_default": True})
        assert compare_metadata(context, Base.metadata) == []


def test_a_new_database_is_the_same_as_one_made_by_the_revisions(tmp_path: Path) -> None:
    upgrade(url(tmp_path / "revised.db"))
    open_database(str(tmp_path / "new.db")).close()
    assert schema(tmp_path / "revised.db") == schema(tmp_path / "new.db")
    assert revision(tmp_path / "revised.db") == revision(tmp_path / "new.db") == HEAD


def test_a_database_made_by_the_revisions_can_be_opened_and_used(path: Path) -> None:
    upgrade(url(path))
    fill(path)
    assert not list(path.parent.glob("*.backup-*"))


def test_upgrading_what_is_up_to_date_changes_nothing(path: Path) -> None:
    fill(path)
    before = path.read_bytes()
    assert upgrade(url(path)) == HEAD
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == [path.name]


def test_a_later_revision_keeps_all_rows_and_leaves_a_backup(path: Path, tmp_path: Path) -> None:
    fill(path)
    assert upgrade(url(path), scripts=later_release(tmp_path)) == HEAD
    backup = path.with_name(f"{path.name}.backup-{HEAD}")
    assert (revision(path), revision(backup)) == ("9999", HEAD)
    assert backup.stat().st_mode & 0o777 == 0o600
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("SELECT path, note FROM snapshots").fetchall() == [
            ("/data/gpt/checkpoint-1.pt", "none")
        ]
        # Rebuilding the table dropped the old one, which must not have taken the children along.
        assert connection.execute("SELECT count(*) FROM tensor_statistics").fetchone() == (2,)
        assert connection.execute("PRAGMA foreign_key_check").fetchall() == []
    opened = open_database(str(backup))
    with opened.read() as session:
        assert len(queries.history(session, "gpt")) == 1
    opened.close()


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ("op.execute('INSERT INTO nowhere VALUES (1)')", "no such table"),
        ("op.execute('DELETE FROM runs')", "without a parent"),
    ],
)
def test_a_revision_that_fails_leaves_the_database_as_it_was(path: Path, tmp_path: Path, more: str, words: str) -> None:
    fill(path)
    before = schema(path)
    with pytest.raises(Exception, match=words) as caught:
        upgrade(url(path), scripts=later_release(tmp_path, more))
    assert type(caught.value).__module__ == "storage.errors"
    assert schema(path) == before
    fill_again = open_database(str(path))
    with fill_again.read() as session:
        assert len(queries.history(session, "gpt")) == 1
    fill_again.close()


def test_an_older_release_refuses_what_a_later_one_upgraded(path: Path, tmp_path: Path) -> None:
    fill(path)
    upgrade(url(path), scripts=later_release(tmp_path))
    with pytest.raises(NewerSchemaError):
        open_database(str(path))
    with pytest.raises(NewerSchemaError):
        upgrade(url(path))


def pretend_to_be_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make this process believe that the schema has one more revision, which the child process knows nothing of."""
    monkeypatch.setattr(migrations, "REVISIONS", (*migrations.REVISIONS, "9999"))
    monkeypatch.setattr(migrations, "HEAD", "9999")


def later_package(directory: Path, more: str = "") -> str:
    """Return a directory that holds a later release's storage package."""
    shutil.copytree(ROOT / "storage", directory / "storage", ignore=shutil.ignore_patterns("__pycache__"))
    text = NEXT_REVISION.format(head=HEAD, more=more)
    (directory / "storage" / "migrations" / "versions" / "revision_9999.py").write_text(text)
    return str(directory)


def test_a_database_that_is_behind_is_upgraded_at_start_by_another_process(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(path)
    monkeypatch.setattr(database_module, "_PACKAGE_ROOT", later_package(tmp_path / "later"))
    pretend_to_be_behind(monkeypatch)
    opened = open_database(str(path))
    with opened.read() as session:
        assert len(queries.history(session, "gpt")) == 1
    opened.close()
    assert revision(path) == "9999"


def test_a_failed_upgrade_at_start_says_why(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(path)
    package = later_package(tmp_path / "later", "op.execute('DELETE FROM runs')")
    monkeypatch.setattr(database_module, "_PACKAGE_ROOT", package)
    pretend_to_be_behind(monkeypatch)
    with pytest.raises(MigrationError, match="without a parent") as caught:
        open_database(str(path))
    assert caught.value.kind is DatabaseErrorKind.MIGRATION
    assert revision(path) == HEAD


def test_an_upgrade_that_does_not_arrive_is_an_error(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(path)
    pretend_to_be_behind(monkeypatch)
    with pytest.raises(MigrationError, match=f"{HEAD} after the upgrade, not 9999"):
        open_database(str(path))


def test_a_broken_installation_is_reported_in_one_line(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(path)
    package = Path(later_package(tmp_path / "later"))
    (package / "storage" / "migrations" / "__main__.py").write_text("raise ImportError('alembic is not here')")
    monkeypatch.setattr(database_module, "_PACKAGE_ROOT", str(package))
    pretend_to_be_behind(monkeypatch)
    with pytest.raises(MigrationError, match="ImportError: alembic is not here"):
        open_database(str(path))


def test_processes_that_upgrade_at_once_all_succeed_and_one_does_the_work(path: Path, tmp_path: Path) -> None:
    fill(path)
    scripts = later_release(tmp_path, "import time; time.sleep(0.3)")
    code = (
        "import sys; from sqlalchemy import URL; from storage.migrations.__main__ import upgrade\n"
        "print('ready', flush=True); sys.stdin.readline()\n"
        "print(upgrade(URL.create('sqlite', database=sys.argv[1]), scripts=sys.argv[2]))"
    )
    children = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(path), scripts],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(3)
    ]
    for child in children:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
    for child in children:
        assert child.stdin is not None
        child.stdin.write("go\n")
        child.stdin.flush()
    before = sorted(child.communicate(timeout=60)[0].strip() for child in children)
    assert before == [HEAD, "9999", "9999"]
    assert revision(path) == "9999"


def test_an_upgrade_killed_at_any_moment_can_be_done_again(path: Path, tmp_path: Path) -> None:
    fill(path)
    hang = "import time; print('inside', flush=True); time.sleep(60)"
    scripts = later_release(tmp_path, hang)
    code = (
        "import sys; from sqlalchemy import URL; from storage.migrations.__main__ import upgrade\n"
        "upgrade(URL.create('sqlite', database=sys.argv[1]), scripts=sys.argv[2])"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", code, str(path), scripts],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
    )
    with child:
        assert child.stdout is not None
        assert child.stdout.readline() == "inside\n"
        child.kill()
    opened = open_database(str(path))
    assert opened.quick_check() == ()
    opened.close()
    assert revision(path) == HEAD
    (Path(scripts) / "versions" / "revision_9999.py").write_text(NEXT_REVISION.format(head=HEAD, more=""))
    assert upgrade(url(path), scripts=scripts) == HEAD
    assert revision(path) == "9999"


def test_what_an_older_release_wrote_is_still_there_after_the_upgrade_that_adds_silences(path: Path) -> None:
    upgrade(url(path), target="0001")
    engine = create_engine(url(path), poolclass=NullPool)
    with engine.begin() as connection:
        connection.exec_driver_sql("INSERT INTO runs VALUES (1, 'gpt', '/data', 1, 1, 5.0, 5.0)")
    opened = open_database(str(path))
    with opened.write() as session:
        number = writer.add_silence(session, runs="gpt", rules="*", now=1.0, ends_at=9.0)
    with opened.read() as session:
        assert [silence.id for silence in telling.silences(session, now=5.0)] == [number]
        assert [run.run for run in queries.runs(session)] == ["gpt"]
    opened.close()
    assert revision(path) == HEAD


def test_what_fired_in_an_older_release_becomes_one_incident_a_run_told_as_far_as_its_alerts_were(path: Path) -> None:
    upgrade(url(path), target="0003")
    columns = "fingerprint, episode, run_id, rule, severity, state, subject, step, unit, summary, details, opened_at"
    engine = create_engine(url(path), poolclass=NullPool)
    with engine.begin() as connection:
        connection.exec_driver_sql("INSERT INTO runs VALUES (1, 'gpt', '/data', 1, 1, 5.0, 5.0)")
        connection.exec_driver_sql("INSERT INTO runs VALUES (2, 'bert', '/data', 1, 1, 5.0, 5.0)")
        for fact in (
            "'a', 2, 1, 'nonfinite', 30, 'firing', 'w', 7",
            "'b', 1, 1, 'loss_spike', 20, 'firing', '', 8",
            "'c', 1, 1, 'overfit', 20, 'resolved', '', 8",
            "'d', 1, 2, 'overfit', 20, 'firing', '', 9",
            "'e', 1, 2, 'dead_units', 10, 'firing', '', 9",
        ):
            connection.exec_driver_sql(
                f"INSERT INTO alerts ({columns}, last_seen_at, n_seen) VALUES ({fact}, '', 'it hit', '[]', 5.0, 6.0, 1)"
            )
        connection.exec_driver_sql(
            "INSERT INTO outbox (notifier, deduplication_key, reason, fingerprint, episode, alert, state, created_at,"
            " due_at, n_attempts) VALUES ('x', 'k', 'firing', 'a', 2, '{}', 'sent', 5.0, 5.0, 1)"
        )
    opened = open_database(str(path))
    with opened.read() as session:
        by_name = {a.fingerprint: a.incident for a in queries.alerts(session)}
    opened.close()
    gpt, bert = by_name["a"], by_name["d"]
    assert gpt is not None
    assert bert is not None
    assert by_name["b"] == gpt
    assert (by_name["c"], by_name["e"]) == (None, None)
    assert (gpt.rule, gpt.step, gpt.tensor, gpt.opened_by, gpt.n_alerts) == ("nonfinite", 7, "w", "a.2", 2)
    assert (gpt.told_severity, bert.told_severity) == (Severity.CRITICAL, None)
    assert revision(path) == HEAD
