"""A directory in which a trainer saves all the time, daemons that are ended again and again, a receiver of alerts."""

from __future__ import annotations

import os
import signal
import sqlite3
import threading
from contextlib import closing
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import yaml

from tests.faults.launcher import Launcher, Running
from tests.support.daemons import wait_for
from tests.support.receivers import HttpReceiver

BAD_EVERY = 4  # every fourth save holds a NaN, the next one does not: an alert that fires and one that is over
BROKEN_EVERY = 6  # and some are no checkpoint at all
SECONDS_MAX = 120.0
SECONDS_A_SAVE_MAX = 5.0  # on a machine that is busy with much else


def save(root: Path, step: int) -> None:
    """Write one checkpoint as trainers do: under another name first."""
    name = root / f"step-{step:06d}.npz"
    temporary = root / f"step-{step:06d}.npz.tmp"
    first, later = np.random.default_rng(0), np.random.default_rng(step)
    weight = (first.normal(size=(30, 20)) + 0.001 * later.normal(size=(30, 20))).astype(np.float32)
    if step % BAD_EVERY == 0:
        weight[3, 4] = np.nan
    with temporary.open("wb") as stream:
        np.savez(stream, weight=weight, bias=(first.normal(size=20) + 0.001 * later.normal(size=20)).astype(np.float32))
    if step % BROKEN_EVERY == 0:
        temporary.write_bytes(temporary.read_bytes().replace(b"PK\x01\x02", b"PK\x01\xff"))
    os.replace(temporary, name)


class Trainer:
    """Saves in a thread, one checkpoint after `seconds`, as many as it was granted."""

    def __init__(self, root: Path, seconds: float = 0.15) -> None:
        self.root = root
        self.n_saved = 0
        self.seconds = seconds
        self._n_granted = 0
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._save, daemon=True)

    def __enter__(self) -> Self:
        self.root.mkdir(parents=True, exist_ok=True)
        self._thread.start()
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stopping.set()
        self._thread.join()

    def grant(self, n_saves: int) -> None:
        """Let it go on saving."""
        self._n_granted += n_saves

    def finish(self) -> int:
        """Wait until all that was granted is saved, and return how much that is."""
        return wait_for("the saves", lambda: self.n_saved if self.n_saved >= self._n_granted else None)

    def _save(self) -> None:
        while not self._stopping.wait(self.seconds):
            if self.n_saved < self._n_granted:
                save(self.root, self.n_saved + 1)
                self.n_saved += 1


class World:
    """One database and its configuration; `start` gives a daemon that uses them."""

    def __init__(self, directory: Path, root: Path, launcher: Launcher, receiver: HttpReceiver | None = None) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        root.mkdir(parents=True, exist_ok=True)
        self.directory = directory
        self.database = directory / "ckptwatch.db"
        self.log = directory / "daemon.log"
        self.root = root
        self._launcher = launcher
        self._config = directory / "config.yaml"
        self.settings: dict[str, Any] = {
            "watch": {
                "roots": [str(root)],
                "settle_seconds": 0.1,
                "scan_interval_seconds": 1,
                "incomplete_timeout_seconds": 1,
            },
            "storage": {"url": f"sqlite:///{self.database}", "sketches_recent": 8},
            "serve": {"enabled": False},
            "rules": {"stalled_run": {"enabled": False}},  # it judges the time between saves
        }
        if receiver is not None:
            (directory / "webhook").write_text(receiver.url)
            self.settings["notify"] = {
                "notifiers": [{"kind": "webhook", "url": f"file:{directory / 'webhook'}"}],
                "group_wait_seconds": 0,
            }

    def start(self, failpoints: str = "", **facts: Any) -> Running:
        self._config.write_text(yaml.safe_dump(self.settings))
        return self._launcher.start(self._config, self.log, failpoints=failpoints, **facts)

    def ask(self, statement: str) -> list[Any]:
        """Ask the database; nothing where it is not there or not ready."""
        if not self.database.exists():
            return []
        try:
            with closing(sqlite3.connect(f"file:{self.database}?mode=ro", uri=True, timeout=5)) as connection:
                return connection.execute(statement).fetchall()
        except sqlite3.DatabaseError:
            return []

    def n_stored(self) -> int:
        rows = self.ask("SELECT count(*) FROM snapshots")
        return int(rows[0][0]) if rows else 0

    def finish(self, n_saved: int) -> None:
        """Let a daemon without faults do what is left, deliver, look once more at everything, and stop in order."""
        n_starts = self._n_starts()
        running = self.start()
        try:
            wait_for("the start", lambda: self._n_starts() > n_starts or running.is_over_within(0), SECONDS_MAX)
            patience = SECONDS_MAX + n_saved * SECONDS_A_SAVE_MAX
            wait_for(f"{n_saved} snapshots", lambda: self._is_over(running, n_saved), patience)
        finally:
            status = running.kill(signal.SIGTERM)
        assert status == 0, running.log[-3000:]
        self.start("retention.done=kill").wait(SECONDS_MAX)  # old sketches are thinned after the start

    def _n_starts(self) -> int:
        return self.log.read_text(errors="replace").count("watching ") if self.log.exists() else 0

    def _is_over(self, running: Running, n_saved: int) -> bool:
        assert running.status is None, running.log[-3000:]
        return self.n_stored() >= n_saved and not self.ask("SELECT 1 FROM outbox WHERE state = 'pending'")

    def _wait_for_log(self, running: Running, text: str) -> None:
        n = running.log.count(text)
        wait_for(text, lambda: running.log.count(text) >= max(n, 1))
