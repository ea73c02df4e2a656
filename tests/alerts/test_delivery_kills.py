"""A flaky receiver and twenty kills: nothing is lost, and what arrives twice does so for a kill, under the same key."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from storage import queries, writer
from storage.database import Database
from storage.records import Notification
from tests.support.daemons import REPOSITORY, clean_environment, wait_for
from tests.support.receivers import Answer, HttpReceiver, free_port
from tests.support.stored import make_alert, make_snapshot

N_KILLS = 20
N_ALERTS = 60
pytestmark = pytest.mark.timeout(300)  # waits have their own, shorter limits

DELIVER = """
import sys, time
from alerts.delivery import Delivery, DeliveryPolicy
from alerts.notifiers.webhook import WebhookNotifier
from storage.database import open_database
config = WebhookNotifier.Config.model_validate({"url": sys.argv[2], "timeout_seconds": 0.3})
policy = DeliveryPolicy(backoff_seconds_min=0.01, backoff_seconds_max=0.05, idle_seconds_max=0.05)
delivery = Delivery(open_database(sys.argv[1]), {"hook": WebhookNotifier(config)}, policy=policy)
delivery.start()
print("started", flush=True)
time.sleep(300)
"""


def flaky(chance: random.Random) -> list[Answer]:
    """Return what the receiver answers, request by request; the last answer stays."""
    kinds = [
        Answer(status=200),
        Answer(status=200),
        Answer(status=500),
        Answer(status=429, headers={"Retry-After": "0"}),
        Answer(hang=True),
        Answer(status=204, body=b""),
        Answer(status=503),
        Answer(drip=True),
    ]
    return [chance.choice(kinds) for _ in range(5000)] + [Answer()]


def enqueue(database: Database, n: int) -> str:
    key = f"key-{n}"
    with database.write() as session:
        alert = make_alert(f"{n:016x}")
        writer.save_alert(session, alert)
        message = Notification(
            notifier="hook",
            reason="firing",
            alert=alert,
            deduplication_key=key,
            last_good_step=None,
            last_good_path=None,
            created_at=time.time(),
            due_at=0.0,
        )
        assert writer.enqueue(session, message)
    return key


@pytest.mark.slow  # the short tier kills whole daemons
def test_twenty_kills_before_a_flaky_receiver_lose_nothing_and_double_no_more_than_the_kills(
    database: Database, tmp_path: Path
) -> None:
    chance = random.Random(11)
    port = free_port()
    with database.write() as session:
        writer.add_snapshot(session, make_snapshot(1))
    taken: Counter[str] = Counter()
    keys: list[str] = []
    arguments = [sys.executable, "-c", DELIVER, str(tmp_path / "ckptwatch.db"), f"http://127.0.0.1:{port}/hook"]

    def deliver() -> subprocess.Popen[str]:
        return subprocess.Popen(
            arguments,
            cwd=REPOSITORY,
            env=clean_environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def kill_some(n: int) -> None:
        for _ in range(n):
            with deliver() as process:
                assert process.stdout is not None
                assert process.stdout.readline() == "started\n"
                for _ in range(N_ALERTS // N_KILLS):
                    keys.append(enqueue(database, len(keys)))
                    time.sleep(chance.uniform(0.0, 0.08))
                process.kill()

    def count(receiver: HttpReceiver, answers: list[Answer]) -> None:
        """Count the messages that were answered as taken, by key."""
        for request, answer in zip(receiver.received, answers, strict=False):
            if 200 <= answer.status < 300 and not answer.hang and not answer.drip:
                taken[request.document["deduplication_key"]] += 1

    for _ in range(2):
        plan = flaky(chance)
        with HttpReceiver(port) as receiver:
            receiver.answers = list(plan)
            kill_some(N_KILLS // 2 - 1)
        count(receiver, plan)
        kill_some(1)  # nobody listens
    with HttpReceiver(port) as receiver, deliver() as process:
        wait_for("all to be sent", lambda: counts(database) == {"sent": N_ALERTS})
        process.kill()
    count(receiver, [Answer()] * len(receiver.received))
    assert len(keys) == N_ALERTS
    assert taken.keys() == set(keys)
    assert sum(taken.values()) - N_ALERTS <= N_KILLS


def counts(database: Database) -> dict[str, int]:
    with database.read() as session:
        return {state: n for (_, state), n in queries.outbox_counts(session).items()}
