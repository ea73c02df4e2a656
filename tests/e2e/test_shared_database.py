"""Several daemons on one directory and one PostgreSQL: every checkpoint once, also when they are killed at random."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from storage import queries
from storage.database import Database, open_database
from storage.records import SnapshotStatus
from tests.support.daemons import DaemonProcess, wait_for
from tests.support.postgresql import PostgresqlServer, needs_postgresql, running_server
from tests.support.receivers import HttpReceiver

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800), needs_postgresql]  # waits have their own, shorter limits

N_DAEMONS = 4
LEASE_SECONDS = 20  # a loaded machine may hold a daemon up for a while
TWICE = "measured for nothing"


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresqlServer]:
    yield from running_server()


@pytest.fixture
def database(server: PostgresqlServer) -> Iterator[Database]:
    opened = open_database(server.create())
    yield opened
    opened.close()


def save(root: Path, run: str, step: int, value: float | None = None) -> None:
    directory = root / run
    directory.mkdir(parents=True, exist_ok=True)
    unfinished = directory / ".unfinished"
    with unfinished.open("wb") as file:
        np.savez(file, weight=np.full((8, 8), step if value is None else value, np.float32) + len(run))
    unfinished.rename(directory / f"step-{step}.npz")


def daemons(directory: Path, database: Database, root: Path, **settings: object) -> list[DaemonProcess]:
    url = database._engine.url.render_as_string(hide_password=False)
    made = []
    for n in range(N_DAEMONS):
        storage = {"url": url, "lease_seconds": LEASE_SECONDS}
        made.append(DaemonProcess(directory / f"daemon-{n}", root, storage=storage, **settings))  # type: ignore[arg-type]
    return made


def steps(database: Database, run: str) -> list[int | None]:
    """Return the steps of a run's measured snapshots in the order in which they were stored."""
    with database.read() as session:
        found = queries.history(session, run, limit=100_000)
    assert {snapshot.status for snapshot in found} <= {SnapshotStatus.COMPLETE}
    return [snapshot.step for snapshot in sorted(found, key=lambda snapshot: snapshot.id)]


def n_stored(database: Database) -> int:
    with database.read() as session:
        return sum(run.n_snapshots for run in queries.runs(session))


def test_four_daemons_share_the_work_and_measure_every_checkpoint_once_and_in_order(
    tmp_path: Path, database: Database
) -> None:
    root, n_runs, n_steps = tmp_path / "runs", 6, 6
    for run in range(n_runs):
        for step in range(1, n_steps + 1):
            save(root, f"run-{run}", step)
    started = daemons(tmp_path, database, root)
    try:
        for daemon in started:
            daemon.start()
        wait_for("all to be stored", lambda: n_stored(database) == n_runs * n_steps, seconds=120)
        done = [daemon.metric("ckptwatch_snapshots_total") for daemon in started]
        assert sum(done) == n_runs * n_steps
        assert sum(n > 0 for n in done) > 1  # it was shared
        for run in range(n_runs):
            assert steps(database, f"runs/run-{run}") == list(range(1, n_steps + 1))
        wait_for("all to know", lambda: all(d.metric("ckptwatch_oldest_unprocessed_seconds") == 0 for d in started))
        assert [daemon.terminate() for daemon in started] == [0] * N_DAEMONS
        assert not any(TWICE in daemon.log for daemon in started)
    finally:
        for daemon in started:
            daemon.__exit__()


def test_an_alert_is_told_once_whichever_daemon_found_it(tmp_path: Path, database: Database) -> None:
    root, n_runs = tmp_path / "runs", 6
    with HttpReceiver() as hook:
        notify = {"notifiers": [{"kind": "webhook", "url": "env:HOOK"}], "group_wait_seconds": 0}
        started = daemons(tmp_path, database, root, notify=notify)
        root.mkdir()
        try:
            for daemon in started:
                daemon.environment["HOOK"] = hook.url
                daemon.start()
            for step in (1, 2):
                for run in range(n_runs):
                    save(root, f"run-{run}", step, 1.0 if step == 1 else np.nan)
                wait_for("all to be stored", lambda n=step: n_stored(database) == n_runs * n, seconds=120)  # type: ignore[misc]
            wait_for("all to be told", lambda: len(hook.received) >= n_runs)
            time.sleep(5)  # twice the time after which another one looks
            told = Counter(request.document["alert"]["run"] for request in hook.received)
            assert told == {f"runs/run-{run}": 1 for run in range(n_runs)}
        finally:
            for daemon in started:
                daemon.__exit__()


def kill_at_random(tmp_path: Path, database: Database, *, n_runs: int, n_steps: int, n_kills: int) -> None:
    """Let daemons be killed while runs grow, and hold what is stored to once and in order."""
    root = tmp_path / "runs"
    chance = random.Random(7)
    started = daemons(tmp_path, database, root)
    n_saved = 0

    def save_until(step: int) -> None:
        nonlocal n_saved
        for n in range(n_saved + 1, step + 1):
            for run in range(n_runs):
                save(root, f"run-{run}", n)
        n_saved = max(n_saved, step)

    save_until(n_steps // 2)
    try:
        for daemon in started:
            daemon.start()
        for kill in range(1, n_kills + 1):
            save_until(n_steps // 2 + kill * (n_steps - n_steps // 2) // n_kills)
            time.sleep(chance.uniform(0.5, 4.0))
            victim = chance.choice(started)
            victim.kill()
            victim.start()
        wait_for("all to be stored", lambda: n_stored(database) >= n_runs * n_steps, seconds=1200)
        for run in range(n_runs):
            assert steps(database, f"runs/run-{run}") == list(range(1, n_steps + 1))
        # A daemon that is killed between reading and storing has read for nothing; no other has.
        assert sum(daemon.log.count(TWICE) for daemon in started) == 0
    finally:
        for daemon in started:
            daemon.__exit__()


def test_two_hundred_checkpoints_are_measured_once_though_daemons_are_killed_at_random(
    tmp_path: Path, database: Database
) -> None:
    kill_at_random(tmp_path, database, n_runs=10, n_steps=20, n_kills=4)


def test_two_thousand_checkpoints_are_measured_once_though_daemons_are_killed_at_random(
    tmp_path: Path, database: Database
) -> None:
    kill_at_random(tmp_path, database, n_runs=40, n_steps=50, n_kills=12)
