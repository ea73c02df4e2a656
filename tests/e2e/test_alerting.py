"""NaN in a real run: one message to each receiver, one when it is over, and no second one after any restart."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.daemons import DaemonProcess, wait_for
from tests.support.mailbox import Mailbox
from tests.support.receivers import HttpReceiver, free_port
from tests.support.training import SAVE_EVERY, TrainingProcess

pytestmark = pytest.mark.timeout(300)  # waits have their own, shorter limits

POISON_AT = 6
HEAL_AT = 10
BAD_STEP = POISON_AT * SAVE_EVERY
GOOD_STEP = BAD_STEP - SAVE_EVERY


@pytest.fixture
def mailbox() -> Iterator[Mailbox]:
    with Mailbox() as running:
        yield running


def notifiers(directory: Path, slack_url: str, smtp_port: int) -> dict[str, Any]:
    """Return the `notify` section for both receivers; the webhook's address is a secret in a file."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "webhook").write_text(slack_url + "\n")
    mail = {"kind": "email", "host": "127.0.0.1", "port": smtp_port, "security": "none"}
    mail |= {"from": "ckptwatch@example.org", "to": ["team@example.org"]}
    return {"notifiers": [{"kind": "slack", "url": f"file:{directory / 'webhook'}"}, mail]}


def slack_text(document: dict[str, Any]) -> str:
    """Return every text of a Block Kit message in one string."""
    assert isinstance(document["blocks"], list)
    found: list[str] = [document["text"]]
    for block in document["blocks"]:
        parts = [block.get("text"), *block.get("fields", ()), *block.get("elements", ())]
        found += [part["text"] for part in parts if part]
    return "\n".join(found)


def save_and_measure(training: TrainingProcess, daemon: DaemonProcess) -> int:
    step = training.save()
    wait_for(f"step {step} in the database", lambda: [s for s in daemon.snapshots() if s["step"] == step])
    return step


def test_nan_gives_one_alert_at_each_receiver_and_one_end_and_no_restart_repeats_any(
    tmp_path: Path, mailbox: Mailbox
) -> None:
    root = tmp_path / "mlp"
    options = ("--saves", HEAL_AT + 4, "--keep", 100, "--poison-at", POISON_AT, "--heal-at", HEAL_AT)
    with HttpReceiver() as slack, TrainingProcess(root, tmp_path / "truth", "rotate", *options) as training:
        notify = notifiers(tmp_path / "secrets", slack.url, mailbox.port)
        with DaemonProcess(tmp_path / "state", root, notify=notify) as daemon:
            for _ in range(POISON_AT):
                save_and_measure(training, daemon)
            _check_firing(slack_text(slack.wait_for(1, 60.0)[0].document), root)
            mail = mailbox.wait_for(1)[0]
            _check_mail(mail, "critical", root)
            _wait_until_delivered(daemon, 1)

            daemon.kill()
            daemon.start()
            _check_nothing_is_read(daemon)
            save_and_measure(training, daemon)
            assert daemon.terminate() == 0
            save_behind_its_back = training.save()
            daemon.start()
            wait_for("the save made meanwhile", lambda: daemon.snapshots()[-1]["step"] == save_behind_its_back)
            assert daemon.metric("ckptwatch_snapshots_total") == 1
            assert daemon.metric("ckptwatch_notifications_total", notifier="slack") == 0

            while training.n_saves < HEAL_AT + 3:
                save_and_measure(training, daemon)
            resolved = slack_text(slack.wait_for(2, 60.0)[1].document)
            assert "Resolved" in resolved
            assert "mlp" in resolved
            assert "Resolved" in str(mailbox.wait_for(2)[1]["Subject"])
            _wait_until_delivered(daemon, 1)

            daemon.kill()
            daemon.start()
            _check_nothing_is_read(daemon)
            save_and_measure(training, daemon)
            steps = [s["step"] for s in daemon.snapshots()]
            assert steps == [SAVE_EVERY * n for n in range(1, training.n_saves + 1)]
            alerts = daemon.json("/api/v1/alerts")
            assert [(a["rule"], a["state"], a["severity"], a["subject"], a["step"]) for a in alerts] == [
                ("nonfinite", "resolved", "critical", "3.weight", BAD_STEP)
            ]
            assert daemon.terminate() == 0
        assert len(slack.received) == 2
        assert len(mailbox.messages) == 2


def _check_firing(text: str, root: Path) -> None:
    assert "Critical: nonfinite in mlp" in text
    assert f"*Run*\n`{root.name}`" in text
    assert f"*Step*\n`{BAD_STEP}`" in text
    assert "*Tensor*\n`3.weight`" in text
    assert f"*Last good checkpoint*\n`step {GOOD_STEP}`" in text
    assert str(root / f"ckpt-{GOOD_STEP:06d}.pt") in text


def _check_mail(mail: Any, word: str, root: Path) -> None:
    assert word in mail["Subject"].lower()
    assert mail["To"] == "team@example.org"
    plain, html = mail.get_body(("plain",)).get_content(), mail.get_body(("html",)).get_content()
    for text in (plain, html):
        for fact in ("mlp", str(BAD_STEP), "3.weight", str(root / f"ckpt-{GOOD_STEP:06d}.pt")):
            assert fact in text


def _wait_until_delivered(daemon: DaemonProcess, n: int) -> None:
    def all_noted() -> bool:
        return all(
            daemon.metric("ckptwatch_notifications_total", notifier=notifier) == n for notifier in ("slack", "email")
        )

    wait_for("both messages to be noted as delivered", all_noted)


def _check_nothing_is_read(daemon: DaemonProcess) -> None:
    assert daemon.metric("ckptwatch_oldest_unprocessed_seconds") == 0
    assert daemon.metric("ckptwatch_snapshots_total") == 0
    assert daemon.metric("ckptwatch_read_bytes_total") == 0


def test_an_alert_raised_while_the_receivers_are_down_survives_a_kill_and_arrives_once(
    tmp_path: Path, mailbox: Mailbox
) -> None:
    root = tmp_path / "mlp"
    slack_port = free_port()
    notify = notifiers(tmp_path / "secrets", f"http://127.0.0.1:{slack_port}/services/T/B/X", mailbox.port)
    options = ("--saves", 4, "--poison-at", 2, "--keep", 9)
    with TrainingProcess(root, tmp_path / "truth", "rotate", *options) as training:
        with DaemonProcess(tmp_path / "state", root, notify=notify) as daemon:
            save_and_measure(training, daemon)
            save_and_measure(training, daemon)
            mailbox.wait_for(1)
            wait_for("the mail noted", lambda: daemon.metric("ckptwatch_notifications_total", notifier="email") == 1)
            wait_for(
                "a failed try", lambda: daemon.metric("ckptwatch_notification_failures_total", notifier="slack") >= 1
            )
            daemon.kill()
            with HttpReceiver(slack_port) as slack:
                daemon.start()
                assert "3.weight" in slack_text(slack.wait_for(1, 60.0)[0].document)
                wait_for(
                    "the message noted", lambda: daemon.metric("ckptwatch_notifications_total", notifier="slack") == 1
                )
                save_and_measure(training, daemon)
                save_and_measure(training, daemon)
                assert daemon.terminate() == 0
                assert len(slack.received) == 1
        assert len(mailbox.messages) == 1
