"""A run that ends while nobody is to be told: what still fires in it is told when the silence is over."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from monitor.config import load
from monitor.daemon import Daemon, DaemonOptions
from storage import queries, writer
from storage.records import Alert

IDLE_SECONDS = 3600.0


class Later:
    """The real clock, moved forward at will."""

    seconds = 0.0

    def __call__(self) -> float:
        return time.time() + self.seconds


@pytest.fixture
def clock() -> Later:
    return Later()


@pytest.fixture
def daemon(tmp_path: Path, clock: Later) -> Iterator[Daemon]:
    root = tmp_path / "gpt"
    root.mkdir()
    np.savez(root / "step-1.npz", weight=np.full((4, 4), np.nan, np.float32))
    config = load(
        None,
        {
            "watch": {"roots": [str(root)], "settle_seconds": 0.1, "run_idle_seconds": IDLE_SECONDS},
            "storage": {"url": str(tmp_path / "x.db")},
            "notify": {"notifiers": [{"kind": "log"}], "group_wait_seconds": 0},
        },
    )
    daemon = Daemon(config, options=DaemonOptions(serves=False, hints=False), clock=clock)
    yield daemon
    daemon.close()


def queued(daemon: Daemon) -> list[tuple[str, str]]:
    with daemon.database.read() as session:
        due = queries.due_notifications(session, "log", now=1e12, limit=10)
    return [(n.alert.rule, n.reason) for n in due]


def firing(daemon: Daemon) -> list[Alert]:
    with daemon.database.read() as session:
        return queries.open_alerts(session)


def test_what_was_held_back_by_a_silence_is_told_after_the_run_has_ended_and_once(daemon: Daemon, clock: Later) -> None:
    now = clock()
    with daemon.database.write() as session:
        ends_at = now + 3 * IDLE_SECONDS
        writer.add_silence(session, runs="*", rules="*", now=now - 1, ends_at=ends_at)
    daemon.run(until_done=True)
    assert [alert.rule for alert in firing(daemon)] == ["nonfinite"]

    clock.seconds = 2 * IDLE_SECONDS
    daemon.run(until_done=True)
    assert not daemon.views.views()[0].run.active
    assert queued(daemon) == []

    clock.seconds = 4 * IDLE_SECONDS
    daemon.run(until_done=True)
    assert queued(daemon) == [("nonfinite", "firing")]
    clock.seconds = 40 * IDLE_SECONDS  # and a run that has ended is not repeated
    daemon.run(until_done=True)
    assert queued(daemon) == [("nonfinite", "firing")]
