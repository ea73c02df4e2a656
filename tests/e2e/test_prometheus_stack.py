"""A real Prometheus and a real Alertmanager beside a live daemon that watches a real run going wrong."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.daemons import REPOSITORY, DaemonProcess, wait_for
from tests.support.dashboards import queries
from tests.support.prometheus import Alertmanager, Prometheus, needs_stack
from tests.support.receivers import HttpReceiver, Received
from tests.support.training import SAVE_EVERY, TrainingProcess

pytestmark = [pytest.mark.timeout(300), needs_stack]  # waits have their own, shorter limits

RULES = REPOSITORY / "deploy" / "prometheus" / "rules" / "ckptwatch.yml"
POISON_AT = 7
HEAL_AT = 9
BAD_STEP = POISON_AT * SAVE_EVERY


@pytest.fixture
def hook() -> Iterator[HttpReceiver]:
    with HttpReceiver() as running:
        yield running


@pytest.fixture
def training(tmp_path: Path) -> Iterator[TrainingProcess]:
    options = ("--saves", HEAL_AT + 4, "--keep", 100, "--poison-at", POISON_AT, "--heal-at", HEAL_AT)
    with TrainingProcess(tmp_path / "mlp", tmp_path / "truth", "rotate", *options) as running:
        yield running


def save(training: TrainingProcess, daemon: DaemonProcess, n: int) -> None:
    while training.n_saves < n:
        step = training.save()
        wait_for(
            f"step {step}",
            lambda: daemon.snapshots()[-1:] and daemon.snapshots()[-1]["step"] == training.n_saves * SAVE_EVERY,
        )


def told(received: list[Received], alertname: str) -> list[dict[str, Any]]:
    """Return what a webhook behind Alertmanager was told of one alert, oldest first."""
    documents = [request.document for request in received]
    return [document for document in documents if document["groupLabels"]["alertname"] == alertname]


def test_the_shipped_rules_fire_and_every_query_of_every_dashboard_has_data(
    tmp_path: Path, training: TrainingProcess, hook: HttpReceiver
) -> None:
    began = time.time()
    notify = {"notifiers": [{"kind": "log"}], "group_wait_seconds": 0}
    with (
        DaemonProcess(tmp_path / "state", training_root(training), notify=notify) as daemon,
        Alertmanager(tmp_path / "alertmanager", hook.url) as alertmanager,
        Prometheus(
            tmp_path / "prometheus",
            f"127.0.0.1:{daemon.port}",
            rules=[RULES],
            alertmanager=f"127.0.0.1:{alertmanager.port}",
        ) as prometheus,
    ):
        wait_for("the first scrape", lambda: prometheus.value('up{job="ckptwatch"}'))
        save(training, daemon, POISON_AT)
        wait_for("the alert in Prometheus", lambda: prometheus.rules()["CheckpointNonFinite"]["state"] == "firing")
        wait_for("the webhook", lambda: told(list(hook.received), "CheckpointNonFinite"))
        (first, *_) = told(list(hook.received), "CheckpointNonFinite")
        assert first["status"] == "firing"
        assert first["groupLabels"]["run"] == "mlp"
        assert "NaN or infinity in the newest checkpoint of mlp" in first["alerts"][0]["annotations"]["summary"]

        shipped = {r["alert"] for group in yaml.safe_load(RULES.read_text())["groups"] for r in group["rules"]}
        loaded = prometheus.rules()
        assert set(loaded) == shipped
        assert {name: rule["lastError"] for name, rule in loaded.items() if rule.get("lastError")} == {}

        asked = queries()
        assert len(asked) > 50

        def without_data() -> list[tuple[str, str, str]]:
            return [query for query in asked if prometheus.n_values(query[2], began) == 0]

        deadline = time.monotonic() + 30
        while (empty := without_data()) and time.monotonic() < deadline:
            time.sleep(1)  # a rate needs two scrapes
        assert empty == []


def test_one_notification_and_one_resolve_by_alertmanager_also_when_it_forgets_everything(
    tmp_path: Path, training: TrainingProcess, hook: HttpReceiver
) -> None:
    name = "CkptwatchNonfinite"
    with Alertmanager(tmp_path / "alertmanager", hook.url) as alertmanager:
        entry = {"kind": "alertmanager", "url": alertmanager.url, "resend_seconds": 1, "labels": {"team": "nlp"}}
        with DaemonProcess(tmp_path / "state", training_root(training), notify={"notifiers": [entry]}) as daemon:
            save(training, daemon, POISON_AT)
            wait_for("the first notification", lambda: told(list(hook.received), name))
            wait_for("it to be sent again", lambda: _n_received(alertmanager) >= 5)  # and nobody is told again
            (first,) = told(list(hook.received), name)
            (alert,) = first["alerts"]
            assert first["status"] == "firing"
            assert alert["labels"]["run"] == "mlp"
            assert alert["labels"]["team"] == "nlp"
            assert alert["annotations"]["step"] == str(BAD_STEP)
            assert alert["annotations"]["subject"] == "3.weight"
            assert alert["annotations"]["last_good_checkpoint"].endswith(f"ckpt-{BAD_STEP - SAVE_EVERY:06d}.pt")

            # A restart of the daemon sends the same again and changes nothing.
            daemon.kill()
            daemon.start()
            n_before = _n_received(alertmanager)
            wait_for("more", lambda: _n_received(alertmanager) >= n_before + 3)
            assert len(told(list(hook.received), name)) == 1

            # One that forgot what it told whom learns the alert again, tells once more, and then of the end.
            alertmanager.forget()
            alertmanager.start()
            wait_for("the second life's notification", lambda: len(told(list(hook.received), name)) == 2)
            save(training, daemon, HEAL_AT + 2)
            wait_for("the end", lambda: len(told(list(hook.received), name)) == 3)
            second, end = told(list(hook.received), name)[1:]
            assert (second["status"], end["status"]) == ("firing", "resolved")
            assert second["alerts"][0]["fingerprint"] == end["alerts"][0]["fingerprint"] == alert["fingerprint"]
            assert second["alerts"][0]["startsAt"] == alert["startsAt"]

            # What is over is sent again for a while; one that knows nothing of it says nothing of it.
            alertmanager.forget()
            alertmanager.start()
            wait_for("a second look", lambda: _n_received(alertmanager) >= 3)
            assert len(told(list(hook.received), name)) == 3


def _n_received(alertmanager: Alertmanager) -> float:
    """Return how many alerts Alertmanager was sent in this life of its own."""
    body = alertmanager.get("/metrics")[1]
    lines = [line for line in body.splitlines() if line.startswith("alertmanager_alerts_received_total")]
    return sum(float(line.rpartition(" ")[2]) for line in lines)


def training_root(training: TrainingProcess) -> Path:
    return training.truth_directory.parent / "mlp"
