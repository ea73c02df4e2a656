"""A damaged, lost or foreign database: set aside or refused with a reason, never deleted, and filled again."""

from __future__ import annotations

import os
import re
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from monitor.config import load
from monitor.daemon import Daemon, DaemonOptions, Ending
from storage import queries
from storage.database import open_database
from storage.errors import CorruptDatabaseError, DatabaseLockedError, DatabaseReplacedError
from storage.records import RunSummary
from storage.recovery import ASIDE_FILES_MAX, newest_set_aside, open_for_recording
from storage.writer import add_snapshot, touch_run
from tests.faults.launcher import Launcher
from tests.faults.stored_state import difference, problems_of, state
from tests.faults.world import World, save
from tests.support.daemons import DaemonProcess, clean_environment, wait_for
from tests.support.stored import make_snapshot

pytestmark = pytest.mark.timeout(300)

NOW = 1_700_000_000.0
N_SNAPSHOTS = 30


@pytest.fixture(scope="module")
def launcher() -> Iterator[Launcher]:
    with Launcher() as running:
        yield running


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Return the path of a sound database with some content."""
    path = tmp_path / "ckptwatch.db"
    opened = open_database(str(path))
    with opened.write() as session:
        for step in range(N_SNAPSHOTS):
            add_snapshot(session, make_snapshot(step))
    opened.close()
    return path


def runs(path: Path) -> list[RunSummary]:
    opened = open_database(str(path))
    with opened.read() as session:
        found = queries.runs(session)
    opened.close()
    return found


def aside(path: Path) -> list[str]:
    return sorted(p.name for p in path.parent.glob("*.corrupt-*"))


def no_database(path: Path) -> None:
    path.write_bytes(b"SQLite format 3\0" + b"and then a letter, not a database" * 40)


def cut_off(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def page_overwritten(path: Path) -> None:
    with path.open("r+b") as stream:
        for page in range(2, path.stat().st_size // 4096, 2):
            stream.seek(page * 4096)
            stream.write(b"\xa5" * 4096)


@pytest.mark.parametrize("damage", [no_database, cut_off, page_overwritten])
def test_a_damaged_database_is_set_aside_with_its_log_and_an_empty_one_takes_its_place(
    path: Path, damage: Callable[[Path], None]
) -> None:
    damage(path)
    before = path.read_bytes()
    Path(f"{path}-wal").write_bytes(b"")
    Path(f"{path}.lock").write_text("4194000\n")  # the last daemon did not close in order
    recording = open_for_recording(str(path), now=NOW)
    assert recording.set_aside is not None
    assert recording.set_aside.path.name == "ckptwatch.db.corrupt-20231114T221320Z"
    assert recording.set_aside.path.read_bytes() == before
    assert newest_set_aside(str(path)) == NOW
    with recording.database.write() as session:
        touch_run(session, "gpt", "/data", NOW)
    recording.close()
    assert [run.run for run in runs(path)] == ["gpt"]


def test_a_sound_database_is_opened_as_it_is_after_a_crash_too(path: Path) -> None:
    for left in ("", "4194000\n"):
        Path(f"{path}.lock").write_text(left)
        recording = open_for_recording(str(path), now=NOW)
        assert recording.set_aside is None
        recording.close()
    assert aside(path) == []
    assert newest_set_aside(str(path)) is None
    assert runs(path)[0].n_snapshots == N_SNAPSHOTS


def test_what_is_set_aside_never_takes_the_place_of_what_was_set_aside_before_and_there_is_an_end(path: Path) -> None:
    for n in range(ASIDE_FILES_MAX):
        no_database(path)
        path.write_bytes(path.read_bytes() + b"%d" % n)
        open_for_recording(str(path), now=NOW).close()
    assert len(aside(path)) == ASIDE_FILES_MAX
    assert len({p.read_bytes() for p in path.parent.glob("*.corrupt-*")}) == ASIDE_FILES_MAX
    no_database(path)
    with pytest.raises(CorruptDatabaseError, match="check the disk"):
        open_for_recording(str(path), now=NOW)
    assert len(aside(path)) == ASIDE_FILES_MAX


def test_a_second_daemon_at_the_same_database_is_refused_and_a_reader_is_not(path: Path) -> None:
    first = open_for_recording(str(path), now=NOW)
    with pytest.raises(DatabaseLockedError, match=rf"another ckptwatch \(process {os.getpid()}\) is recording"):
        open_for_recording(str(path), now=NOW)
    assert runs(path)
    first.close()
    open_for_recording(str(path), now=NOW).close()


def test_a_log_that_is_taken_away_while_it_is_in_use_is_noticed_and_loses_nothing(path: Path) -> None:
    recording = open_for_recording(str(path), now=NOW)
    for name in ("one", "two"):
        with recording.database.write() as session:
            touch_run(session, name, "/data", NOW)
    os.unlink(f"{path}-wal")
    with pytest.raises(DatabaseReplacedError, match="-wal"), recording.database.write() as session:
        touch_run(session, "three", "/data", NOW)
    recording.close()
    again = open_for_recording(str(path), now=NOW)
    with again.database.write() as session:
        touch_run(session, "three", "/data", NOW)
    again.close()
    assert {run.run for run in runs(path)} >= {"one", "two", "three"}
    assert problems_of(path) == []


def test_a_log_that_is_taken_away_after_a_crash_loses_what_was_in_it_and_nothing_else(path: Path) -> None:
    code = (
        "import os, sys; from storage.recovery import open_for_recording; from storage.writer import touch_run\n"
        "recording = open_for_recording(sys.argv[1], now=0.0)\n"
        "with recording.database.write() as session: touch_run(session, 'late', '/data', 1.0)\n"
        "os.kill(os.getpid(), 9)"
    )
    ended = subprocess.run([sys.executable, "-c", code, str(path)], env=clean_environment(), check=False)
    assert ended.returncode == -signal.SIGKILL
    assert Path(f"{path}-wal").stat().st_size > 0
    os.unlink(f"{path}-wal")
    recording = open_for_recording(str(path), now=NOW)
    assert recording.set_aside is None
    recording.close()
    assert [run.run for run in runs(path)] == ["gpt"]


@pytest.mark.parametrize("place", ["aside.begin", "aside.companions", "aside.done"])
def test_a_kill_while_a_database_is_set_aside_leaves_it_beside_the_new_one(path: Path, place: str) -> None:
    no_database(path)
    before = path.read_bytes()
    code = "import sys; from storage.recovery import open_for_recording; open_for_recording(sys.argv[1], now=0.0)"
    ended = subprocess.run(
        [sys.executable, "-c", code, str(path)],
        env=clean_environment(CKPTWATCH_FAILPOINTS=f"{place}=kill"),
        capture_output=True,
        check=False,
    )
    assert ended.returncode == -signal.SIGKILL
    open_for_recording(str(path), now=NOW).close()
    assert runs(path) == []
    assert [p.read_bytes() for p in path.parent.glob("*.corrupt-*")] == [before]


@pytest.mark.slow
def test_a_running_daemon_fills_a_new_database_when_the_old_one_is_replaced_or_removed_under_it(tmp_path: Path) -> None:
    root = tmp_path / "run"
    root.mkdir()
    for step in (1, 2, 3):
        save(root, step)
    with DaemonProcess(tmp_path / "state", root) as daemon:
        wait_for("three snapshots", lambda: n_stored(daemon.database) == 3)
        pid = daemon.pid
        for step, harm in ((4, _replace), (5, _remove)):
            n_starts = daemon.log.count("watching ")
            harm(daemon.database)
            save(root, step)  # something to store
            wait_for("a fresh start", lambda n=n_starts: daemon.log.count("watching ") > n)  # type: ignore[misc]
            wait_for("all that is on disk", lambda n=step: n_stored(daemon.database) == n)  # type: ignore[misc]
        daemon.port = int(re.findall(r"on http://127\.0\.0\.1:(\d+)", daemon.log)[-1])
        assert daemon.pid == pid, "it is the same process"
        assert daemon.metric("ckptwatch_database_writable") == 1
        assert daemon.metric("ckptwatch_database_set_aside_timestamp_seconds") > NOW
        assert daemon.terminate() == 0
    assert len([n for n in aside(daemon.database) if "-wal" not in n and "-shm" not in n]) == 1
    assert problems_of(daemon.database) == []
    assert "was set aside as" in daemon.log


def n_stored(database: Path) -> int:
    try:
        with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as connection:
            return int(connection.execute("SELECT count(*) FROM snapshots").fetchone()[0])
    except sqlite3.DatabaseError:
        return -1


def _replace(database: Path) -> None:
    no_database(database.with_name("letter"))
    for name in ("-wal", "-shm"):
        Path(f"{database}{name}").unlink()
    os.replace(database.with_name("letter"), database)


def _remove(database: Path) -> None:
    for name in database.parent.glob("ckptwatch.db*"):
        if ".corrupt-" not in name.name:
            name.unlink()


def test_a_daemon_that_meets_damage_ends_so_that_the_next_one_sets_the_database_aside(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = load(None, {"storage": {"url": str(path)}, "serve": {"enabled": False}})

    def damaged(*_: object) -> None:
        raise CorruptDatabaseError("a page is not what it was")

    daemon = Daemon(config)
    monkeypatch.setattr(daemon.backlog, "advance", damaged)
    assert daemon.run() is Ending.DAMAGED
    daemon.close()
    daemon = Daemon(config, options=DaemonOptions(is_damaged=True))
    assert daemon.run(until_done=True) is Ending.DONE
    daemon.close()
    assert runs(path) == []
    assert len(aside(path)) == 1


def test_a_second_daemon_says_who_has_the_database_or_the_port_and_ends_with_4(
    tmp_path: Path, launcher: Launcher
) -> None:
    root = tmp_path / "run"
    with DaemonProcess(tmp_path / "state", root_with_one(root)) as daemon:
        other = World(tmp_path / "other", root, launcher)
        other.settings["storage"]["url"] = f"sqlite:///{daemon.database}"
        second = other.start()
        assert second.wait() == 4
        assert f"another ckptwatch (process {daemon.pid}) is recording" in second.log
        other.settings["storage"]["url"] = f"sqlite:///{tmp_path / 'own.db'}"
        other.settings["serve"] = {"listen": f"127.0.0.1:{daemon.port}"}
        third = other.start()
        assert third.wait() == 4
        assert "another program, perhaps another ckptwatch, listens there" in third.log
        assert "Traceback" not in third.log
        assert daemon.get("/livez")[0] == 200


def root_with_one(root: Path) -> Path:
    root.mkdir(exist_ok=True)
    save(root, 1)
    return root


@pytest.mark.slow
def test_a_database_refilled_by_a_scan_is_that_of_a_daemon_that_saw_it_all(tmp_path: Path, launcher: Launcher) -> None:
    root = tmp_path / "run"
    first, second = World(tmp_path / "a", root, launcher), World(tmp_path / "b", root, launcher)
    for step in range(1, 9):
        save(root, step)
    first.finish(8)
    no_database(first.database)
    first.finish(8)
    second.finish(8)
    assert difference(state(first.database), state(second.database)) == []
