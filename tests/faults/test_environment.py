"""What the machine may do to a running daemon: no room, no lock, no descriptors, no terminal, no time to stop."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import pytest

from tests.faults.launcher import Launcher
from tests.faults.stored_state import difference, problems_of, state
from tests.faults.world import World, save
from tests.support.daemons import REPOSITORY, DaemonProcess, clean_environment, wait_for

pytestmark = pytest.mark.timeout(400)

HEAL_SECONDS_MAX = 30.0
STOP_SECONDS_MAX = 10.0


@pytest.fixture(scope="module")
def launcher() -> Iterator[Launcher]:
    with Launcher() as running:
        yield running


@contextmanager
def small_disk(path: Path, size_bytes: int) -> Iterator[None]:
    """Mount a filesystem of that size at a new directory; skip the test where that is not allowed."""
    path.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size_bytes}", "none", str(path)], capture_output=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip("mounting a small disk needs root")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(path)], check=True)


def calm_state(tmp_path: Path, root: Path, launcher: Launcher, n_saved: int) -> dict[str, list[str]]:
    calm = World(tmp_path / "calm", root, launcher)
    calm.finish(n_saved)
    return state(calm.database)


@pytest.mark.slow
def test_a_full_disk_is_waited_for_and_nothing_is_lost(tmp_path: Path, launcher: Launcher) -> None:
    disk, root = tmp_path / "disk", tmp_path / "run"
    with small_disk(disk, 4 * 2**20):
        world = World(disk / "state", root, launcher)
        world.log = tmp_path / "daemon.log"
        running = world.start()
        save(root, 1)
        wait_for("the first snapshot", lambda: world.n_stored() == 1, 120)
        filler = os.open(disk / "filler", os.O_WRONLY | os.O_CREAT)
        with suppress(OSError):
            while os.write(filler, b"\0" * 4096):
                pass
        os.close(filler)
        step = 1
        while "disk is full" not in running.log:
            step += 1
            save(root, step)
            assert step < 300, "the disk never was too small"
            time.sleep(0.3)
        n_before = world.n_stored()
        assert n_before < step
        assert running.status is None
        (disk / "filler").unlink()
        began = time.monotonic()
        wait_for("more snapshots", lambda: world.n_stored() > n_before, HEAL_SECONDS_MAX + 60)
        healed_after = time.monotonic() - began
        wait_for("all snapshots", lambda: world.n_stored() == step, 120)
        assert running.kill(signal.SIGTERM) == 0
        assert problems_of(world.database) == []
        stored = state(world.database)
    assert healed_after <= HEAL_SECONDS_MAX + 10
    assert difference(stored, calm_state(tmp_path, root, launcher, step)) == []


@pytest.mark.slow
def test_a_database_that_another_program_holds_is_waited_for_and_nothing_is_lost(
    tmp_path: Path, launcher: Launcher
) -> None:
    root = tmp_path / "run"
    world = World(tmp_path / "state", root, launcher)
    running = world.start()
    save(root, 1)
    wait_for("the first snapshot", lambda: world.n_stored() == 1, 120)
    with closing(sqlite3.connect(world.database, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        for step in (2, 3, 4):
            save(root, step)
        wait_for("the daemon to notice", lambda: "locked" in running.log, 60)
        assert running.status is None
        other.execute("ROLLBACK")
    began = time.monotonic()
    wait_for("the rest", lambda: world.n_stored() == 4, 120)
    assert time.monotonic() - began <= HEAL_SECONDS_MAX + 20  # with the time to measure them on a busy machine
    assert running.kill(signal.SIGTERM) == 0
    assert difference(state(world.database), calm_state(tmp_path, root, launcher, 4)) == []


@pytest.mark.slow
def test_a_daemon_with_hardly_any_descriptors_says_so_or_works(tmp_path: Path, launcher: Launcher) -> None:
    root = tmp_path / "run"
    world = World(tmp_path / "state", root, launcher)
    for step in range(1, 4):
        save(root, step)
    running = world.start(files_max=24)
    wait_for("an end or all snapshots", lambda: running.is_over_within(0.2) or world.n_stored() == 3, 120)
    if running.status is not None:
        assert running.status == 4
        assert "Traceback" not in running.log
    else:
        assert running.kill(signal.SIGTERM) == 0
    world.finish(3)


@pytest.mark.slow
def test_nothing_is_missed_that_was_created_while_the_process_was_stopped(tmp_path: Path) -> None:
    root = tmp_path / "run"
    root.mkdir()
    save(root, 1)
    with DaemonProcess(tmp_path / "state", root) as daemon:
        n_files = 20_000
        os.kill(daemon.pid, signal.SIGSTOP)
        try:
            content = (root / "step-000001.npz").read_bytes()
            for n in range(n_files):
                (root / f"d{n % 100}").mkdir(exist_ok=True)
                (root / f"d{n % 100}" / f"note-{n}.txt").write_bytes(b"x")
            for step in range(2, 12):
                (root / f"d{step}" / f"step-{step:06d}.npz").write_bytes(content)
        finally:
            os.kill(daemon.pid, signal.SIGCONT)

        def n_stored() -> int:
            with closing(sqlite3.connect(f"file:{daemon.database}?mode=ro", uri=True)) as connection:
                return int(connection.execute("SELECT count(DISTINCT path) FROM snapshots").fetchone()[0])

        wait_for("all eleven", lambda: n_stored() == 11, 180)
        assert daemon.metric("ckptwatch_supervisor_errors_total") == 0
        assert daemon.terminate() == 0


def test_a_daemon_whose_output_nobody_reads_any_more_works_on_and_stops_in_order(tmp_path: Path) -> None:
    root = tmp_path / "run"
    root.mkdir()
    daemon = DaemonProcess(tmp_path / "state", root)
    notify = tmp_path / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(notify))
        manager.settimeout(100)
        read, write = os.pipe()
        with subprocess.Popen(
            [sys.executable, "-m", "monitor.cli", "run", "--config", str(daemon.config_file)],
            env=clean_environment(NOTIFY_SOCKET=str(notify)),
            stdout=write,
            stderr=write,
        ) as process:
            os.close(write)
            try:
                assert manager.recv(1000) == b"READY=1"
                os.close(read)  # from here on every line of the log fails with EPIPE
                assert manager.recv(1000) == b"WATCHDOG=1"
                (root / "step-1.npz").write_bytes(b"PK\x01\x02" * 50)
                process.send_signal(signal.SIGHUP)
                assert manager.recv(1000).startswith(b"RELOADING=1\nMONOTONIC_USEC=")
                assert manager.recv(1000) == b"READY=1"
                process.send_signal(signal.SIGTERM)
                began = time.monotonic()
                assert process.wait(60) == 0
                assert time.monotonic() - began < STOP_SECONDS_MAX
            finally:
                process.kill()


@pytest.mark.slow
def test_a_daemon_under_load_stops_within_ten_seconds_and_the_next_one_does_the_rest(
    tmp_path: Path, launcher: Launcher
) -> None:
    root = tmp_path / "run"
    world = World(tmp_path / "state", root, launcher)
    for step in range(1, 41):
        save(root, step)
    running = world.start()
    wait_for("some snapshots", lambda: world.n_stored() >= 3, 120)
    began = time.monotonic()
    assert running.kill(signal.SIGTERM) == 0
    assert time.monotonic() - began < STOP_SECONDS_MAX
    assert not world.database.with_name("ckptwatch.db-wal").exists(), "the log was merged"
    assert world.n_stored() < 40
    world.finish(40)
    assert difference(state(world.database), calm_state(tmp_path, root, launcher, 40)) == []


@pytest.mark.slow
def test_a_scan_opens_nothing_below_a_watched_directory_for_writing_and_locks_nothing(tmp_path: Path) -> None:
    strace = shutil.which("strace")
    if strace is None:
        pytest.skip("strace is not installed")
    root = tmp_path / "run"
    root.mkdir()
    save(root, 1)
    trace = tmp_path / "trace"
    command = [strace, "-f", "-qq", "-e", "trace=open,openat,creat,unlink,rename,mkdir,flock,socket", "-o", str(trace)]
    ended = subprocess.run(
        [*command, sys.executable, "-m", "monitor.cli", "scan", str(root), "--db", str(tmp_path / "state" / "x.db")],
        env=clean_environment(),
        cwd=REPOSITORY,
        capture_output=True,
        timeout=200,
        check=False,
    )
    if not trace.exists() or not trace.read_text().strip():
        pytest.skip("this machine does not let processes be traced")
    assert ended.returncode == 0, ended.stderr
    touched = [line for line in trace.read_text().splitlines() if f'"{root}' in line]
    assert touched, "nothing was read, so this test has shown nothing"
    for line in touched:
        assert "O_WRONLY" not in line
        assert "O_RDWR" not in line
        assert "O_CREAT" not in line
        assert not any(call in line for call in (" unlink(", " rename(", " mkdir(", " flock(")), line
