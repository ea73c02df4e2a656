"""Kill a real daemon, let the next one go on, and compare what is stored with a daemon that nothing happened to."""

from __future__ import annotations

import json
import random
import signal
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from storage import failpoints
from tests.faults.launcher import Launcher
from tests.faults.stored_state import difference, problems_of, state
from tests.faults.world import SECONDS_MAX, Trainer, World
from tests.support.receivers import HttpReceiver

# Reached only when the schema is behind, or the file is damaged: tests of their own.
ELSEWHERE = frozenset(n for n in failpoints.NAMES if n.startswith(("migrate.", "aside.", "close.")))
EVERYDAY = tuple(n for n in failpoints.NAMES if n not in ELSEWHERE)
SAVES_A_KILL = 2
USUAL_SECONDS_MAX = 4.0
SAVES_MORE_MAX = 6  # after so many, something bad, broken and good came by


@dataclass
class Outcome:
    """What came of one chain of kills; everything in `wrong` breaks a promise."""

    n_kills: Counter[str] = field(default_factory=Counter)
    n_saved: int = 0
    n_rows: int = 0
    n_messages: int = 0
    n_messages_twice: int = 0
    wrong: list[str] = field(default_factory=list)


def chain(directory: Path, launcher: Launcher, *, places: Iterable[str], n_random: int, seed: int) -> Outcome:
    """Kill one daemon after the other at each of `places` and at `n_random` moments, in one world with a live trainer.

    Then let a daemon finish in peace, and compare with another that sees the same directory for the first time.
    """
    outcome = Outcome()
    chooser = random.Random(seed)
    root = directory / "run"
    with HttpReceiver() as receiver, Trainer(root) as trainer:
        world = World(directory / "faulty", root, launcher, receiver)
        order: list[str | None] = [*places, *([None] * n_random)]
        first = [p for p in order if p is not None and p.startswith("create.")]  # else the database is there already
        rest = [p for p in order if p not in first]
        chooser.shuffle(rest)
        usual_seconds = 2.0
        for place in (*first, *rest):
            trainer.grant(SAVES_A_KILL)
            if place is None:
                running = world.start()
                running.is_over_within(chooser.uniform(0.0, 2.0 * usual_seconds))
                running.kill()
                outcome.n_kills["random"] += 1
                continue
            started = time.monotonic()
            running = world.start(f"{place}=kill")
            n_more = 0
            while not running.is_over_within(1.0):
                if n_more < SAVES_MORE_MAX:
                    trainer.grant(1)
                    n_more += 1
                assert time.monotonic() - started < SECONDS_MAX, f"{place} was not reached:\n{running.log[-3000:]}"
            usual_seconds = min(0.7 * usual_seconds + 0.3 * (time.monotonic() - started), USUAL_SECONDS_MAX)
            assert running.status == -signal.SIGKILL, f"{place}: {running.status}\n{running.log[-3000:]}"
            outcome.n_kills[place] += 1
        outcome.n_saved = trainer.finish()
        world.finish(outcome.n_saved)
        messages = [json.loads(request.body)["deduplication_key"] for request in receiver.received]
    with HttpReceiver() as other:
        calm = World(directory / "calm", root, launcher, other)
        calm.finish(outcome.n_saved)
    outcome.n_messages = len(set(messages))
    outcome.n_messages_twice = len(messages) - len(set(messages))
    _judge(outcome, world, calm, set(messages))
    return outcome


def _judge(outcome: Outcome, world: World, calm: World, messages: set[str]) -> None:
    stored, expected = state(world.database), state(calm.database)
    outcome.n_rows = sum(len(rows) for rows in expected.values())
    outcome.wrong += problems_of(world.database)
    outcome.wrong += difference(stored, expected)
    if len(expected["snapshots"]) != outcome.n_saved:
        outcome.wrong.append(f"{outcome.n_saved} were saved, {len(expected['snapshots'])} are stored without faults")
    keys = {key for (key,) in world.ask("SELECT deduplication_key FROM outbox WHERE state = 'sent'")}
    if not keys or keys != messages:
        outcome.wrong.append(f"sent by the database's word: {len(keys)}; received: {len(messages)}")
    if outcome.n_messages_twice > outcome.n_kills.total():
        outcome.wrong.append(f"{outcome.n_messages_twice} messages came twice after {outcome.n_kills.total()} kills")
