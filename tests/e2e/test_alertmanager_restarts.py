"""What Alertmanager tells when it is restarted: with its notification log nothing twice, without it once more."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.daemons import DaemonProcess, wait_for
from tests.support.prometheus import Alertmanager, needs_stack
from tests.support.receivers import HttpReceiver

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300), needs_stack]  # waits have their own, shorter limits

GOOD, BAD = 1.0, np.nan


class Scene:
    """One run, a daemon that watches it, an Alertmanager that it tells, and a webhook behind that."""

    def __init__(self, directory: Path, hook: HttpReceiver) -> None:
        self.root = directory / "gpt"
        self.root.mkdir()
        self.hook = hook
        self.n_saves = 0
        self.alertmanager = Alertmanager(directory / "alertmanager", hook.url)
        notifier = {"kind": "alertmanager", "url": self.alertmanager.url, "resend_seconds": 1}
        self.daemon = DaemonProcess(directory / "state", self.root, notify={"notifiers": [notifier]})

    def save(self, value: float) -> None:
        self.n_saves += 1
        np.savez(self.root / f"step-{self.n_saves}.npz", weight=np.full((4, 4), value + self.n_saves, np.float32))
        wait_for("it to be stored", lambda: len(self.daemon.snapshots()) == self.n_saves)

    def told(self) -> list[str]:
        documents: list[Any] = [request.document for request in list(self.hook.received)]
        return [d["status"] for d in documents if d["groupLabels"]["alertname"] == "CkptwatchNonfinite"]

    def wait_for_resends(self, n: int = 4) -> None:
        """Wait until Alertmanager was sent something anew: several times the waits of its groups."""

        def n_received() -> float:
            body = self.alertmanager.get("/metrics")[1]
            lines = [line for line in body.splitlines() if line.startswith("alertmanager_alerts_received_total")]
            return sum(float(line.rpartition(" ")[2]) for line in lines)

        before = n_received()
        wait_for("alerts to be sent again", lambda: n_received() >= before + n)

    def knows(self) -> list[str]:
        return [alert["labels"]["alertname"] for alert in self.alertmanager.alerts()]


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    with HttpReceiver() as hook:
        made = Scene(tmp_path, hook)
        with made.alertmanager, made.daemon:
            yield made


def test_a_restart_with_empty_memory_tells_nothing_twice_and_the_end_once(scene: Scene) -> None:
    scene.save(GOOD)
    scene.save(BAD)
    wait_for("the notification", lambda: scene.told() == ["firing"])
    scene.alertmanager.stop()
    scene.alertmanager.start()
    assert scene.knows() in ([], ["CkptwatchNonfinite"])  # alerts are kept in memory alone
    wait_for("it to know the alert again", lambda: "CkptwatchNonfinite" in scene.knows())
    scene.wait_for_resends()
    assert scene.told() == ["firing"]
    scene.save(GOOD)
    wait_for("the end", lambda: scene.told() == ["firing", "resolved"])
    scene.alertmanager.stop()
    scene.alertmanager.start()
    scene.wait_for_resends()
    assert scene.told() == ["firing", "resolved"]


def test_an_end_while_alertmanager_is_down_is_told_when_it_is_up_again(scene: Scene) -> None:
    scene.save(GOOD)
    scene.save(BAD)
    wait_for("the notification", lambda: scene.told() == ["firing"])
    scene.alertmanager.stop()
    scene.save(GOOD)
    scene.alertmanager.start()
    wait_for("the end", lambda: scene.told() == ["firing", "resolved"])
    scene.wait_for_resends()
    assert scene.told() == ["firing", "resolved"]


def test_one_that_lost_its_notification_log_tells_once_more_and_the_end_once(scene: Scene) -> None:
    scene.save(GOOD)
    scene.save(BAD)
    wait_for("the notification", lambda: scene.told() == ["firing"])
    scene.alertmanager.forget()
    scene.alertmanager.start()
    wait_for("the second life's notification", lambda: scene.told() == ["firing"] * 2)
    scene.wait_for_resends()
    assert scene.told() == ["firing"] * 2
    scene.save(GOOD)
    wait_for("the end", lambda: scene.told() == ["firing", "firing", "resolved"])
    scene.wait_for_resends()
    assert scene.told() == ["firing", "firing", "resolved"]


def test_without_its_log_and_with_nothing_firing_it_says_nothing(scene: Scene) -> None:
    scene.save(GOOD)
    scene.save(BAD)
    wait_for("the notification", lambda: scene.told() == ["firing"])
    scene.save(GOOD)
    wait_for("the end", lambda: scene.told() == ["firing", "resolved"])
    scene.alertmanager.forget()
    scene.alertmanager.start()
    scene.wait_for_resends()
    assert scene.told() == ["firing", "resolved"]
