"""A flaky receiver, and a daemon that is killed again and again while a run goes wrong and heals and goes wrong.

No alert is lost; what arrives twice does so for a kill between sending and recording, under the same key.
"""

from __future__ import annotations

import random
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from storage import queries
from storage.database import open_database
from tests.support.daemons import DaemonProcess, wait_for
from tests.support.receivers import Answer, HttpReceiver, free_port

pytestmark = pytest.mark.timeout(600)  # waits have their own, shorter limits

RUN = "gpt"
FLAWS = (
    Answer(status=500),
    Answer(status=429, headers={"Retry-After": "0"}),
    Answer(status=503, headers={"Retry-After": "1"}),
    Answer(hang=True),
    Answer(drip=True),
    Answer(reset=True),
    Answer(status=200, reset=True),
)


@dataclass
class Receiver:
    """One port with now a flaky receiver and now nobody behind it; `taken` counts what was answered 2xx, by key."""

    chance: random.Random
    port: int = field(default_factory=free_port)
    taken: Counter[str] = field(default_factory=Counter)

    def plan(self, n: int, share_flawed: float) -> list[Answer]:
        flawed = (self.chance.random() < share_flawed for _ in range(n))
        return [self.chance.choice(FLAWS) if is_flawed else Answer() for is_flawed in flawed] + [Answer()]

    def count(self, receiver: HttpReceiver, plan: list[Answer]) -> None:
        for index, request in enumerate(receiver.received):
            answer = plan[min(index, len(plan) - 1)]
            if 200 <= answer.status < 300 and not answer.hang and not answer.drip:
                assert request.headers["Idempotency-Key"] == request.document["deduplication_key"]
                self.taken[request.document["deduplication_key"]] += 1


@dataclass
class Run:
    """A run whose checkpoints are by turns broken and whole; every change of that is to be told once."""

    root: Path
    n_saves: int = 0

    def save(self) -> None:
        self.n_saves += 1
        value = np.nan if self.n_saves % 2 == 0 else 1.0
        unfinished = self.root / ".unfinished"
        with unfinished.open("wb") as file:
            np.savez(file, weight=np.full((4, 4), value, np.float32), bias=np.arange(3, dtype=np.float32))
        unfinished.rename(self.root / f"step-{self.n_saves}.npz")

    @property
    def n_messages(self) -> int:
        return self.n_saves - 1  # the first checkpoint is whole, and every later one turns the tables


def kill_again_and_again(directory: Path, n_kills: int, n_flawed: int) -> None:
    chance = random.Random(n_kills)
    receiver = Receiver(chance)
    (directory / RUN).mkdir()
    run = Run(directory / RUN)
    notifier = {"kind": "webhook", "url": "env:HOOK", "timeout_seconds": 0.5}
    daemon = DaemonProcess(
        directory / "state",
        run.root,
        watch={"settle_seconds": 0.1},
        notify={"notifiers": [notifier], "group_wait_seconds": 0},
        # Every checkpoint is by turns broken and whole: other rules have nothing to say about that.
        rules={name: {"enabled": False} for name in ("layout_change", "duplicate_checkpoint", "unchanged_tensor")},
    )
    daemon.environment["HOOK"] = f"http://127.0.0.1:{receiver.port}/hook"

    def kill_some(n: int) -> None:
        for _ in range(n):
            daemon.start()
            for _ in range(2):
                run.save()
                time.sleep(chance.uniform(0.1, 0.9))
            daemon.kill()

    n_killed = 0
    while n_killed < n_kills:
        plan = receiver.plan(n_flawed, 0.6)
        n = min(5, n_kills - n_killed)
        with HttpReceiver(receiver.port) as flaky:
            flaky.answers = list(plan)
            kill_some(max(n - 1, 1))
        receiver.count(flaky, plan)
        if n > 1:
            kill_some(1)  # nobody listens
        n_killed += n
    with HttpReceiver(receiver.port) as sound, daemon:
        wait_for("everything to be stored", lambda: len(daemon.snapshots(RUN)) == run.n_saves)
        sound_database = open_database(str(daemon.database))

        def states() -> dict[str, int]:
            with sound_database.read() as session:
                return {state: n for (_, state), n in queries.outbox_counts(session).items()}

        wait_for("everything to be sent", lambda: states() == {"sent": run.n_messages}, seconds=120)
        sound_database.close()
    receiver.count(sound, [Answer()])
    told = receiver.taken
    assert len(told) == run.n_messages  # one for each beginning and each end, whatever happened
    assert sum(told.values()) - len(told) <= n_killed


def test_three_kills_before_a_flaky_receiver_lose_no_alert(tmp_path: Path) -> None:
    kill_again_and_again(tmp_path, n_kills=3, n_flawed=5)


@pytest.mark.slow
def test_twenty_kills_before_a_flaky_receiver_lose_no_alert_and_double_no_more_than_the_kills(tmp_path: Path) -> None:
    kill_again_and_again(tmp_path, n_kills=20, n_flawed=60)
