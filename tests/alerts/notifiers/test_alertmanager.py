"""Alertmanager's API: identity in labels, values in annotations, and everything that a web receiver can do."""

from __future__ import annotations

import base64
from dataclasses import replace
from typing import Any

import pytest

from alerts.message import compose
from alerts.notifier import Notifier, Resending
from alerts.notifiers.alertmanager import BATCH_ALERTS_MAX, AlertmanagerNotifier, posted
from alerts.registry import OptionsError, notifier_config
from storage.records import AlertState, ToldAlert
from tests.support.alert_series import START
from tests.support.golden import check_golden
from tests.support.notifier_conformance import NotifierConformance, make_notification
from tests.support.receivers import HttpReceiver
from tests.support.stored import make_alert

FIRING = make_alert("0123456789abcdef", opened_at=START, fired_at=START)
OVER = replace(FIRING, state=AlertState.RESOLVED, resolved_at=START + 60.25)


def alertmanager(url: str, **options: Any) -> AlertmanagerNotifier:
    return AlertmanagerNotifier(AlertmanagerNotifier.Config.model_validate({"url": url, **options}))


class TestAlertmanagerConforms(NotifierConformance):
    def make(self, url: str, timeout_seconds: float) -> Notifier:
        return alertmanager(url, timeout_seconds=timeout_seconds, bearer_token="B0SECRET")

    # Templates of Alertmanager escape for each of its receivers; our part is that names stay printable and short.
    def test_hostile_names_do_no_harm(self, receiver: HttpReceiver) -> None:
        name = "<!channel>\r\nX-Evil: 1\u202e\x00\ud800" + "x" * 9000
        alert = make_alert(run=name, subject=name, summary=name, details=((name, name),) * 20)
        assert self.send(receiver.url, alert=alert, last_good_path="/" + name) is None
        request = receiver.received[0]
        assert "X-Evil" not in request.headers
        assert len(request.body) < 100_000
        (sent,) = request.document
        assert sent["labels"]["run"].startswith("<!channel> X-Evil: 1\\u202e\\u0000\\ud800xxx")
        assert len(sent["labels"]["run"]) == 200
        texts = {**sent["labels"], **sent["annotations"]}
        assert all(line.isprintable() for text in texts.values() for line in text.split("\n"))


def test_the_golden_documents() -> None:
    labels = {"team": "nlp"}
    link = "https://ckptwatch.example.org/runs/gpt"
    check_golden("alertmanager_firing.json", [posted(FIRING, labels=labels, link=link)])
    check_golden("alertmanager_resolved.json", [posted(OVER, labels=labels)])


def test_what_is_sent_again_equals_what_was_sent_first(receiver: HttpReceiver) -> None:
    notifier = alertmanager(receiver.url)
    notification = make_notification(alert=FIRING)
    notifier.send(notification, compose(notification))
    path = notification.last_good_path
    notifier.resend([ToldAlert(alert=FIRING, last_good_step=6, last_good_path=path)], {})
    first, second = (request.document for request in receiver.received)
    assert first == second


def test_labels_stay_equal_while_everything_else_changes() -> None:
    later = replace(OVER, value=99.0, threshold=1.0, step=8, summary="other", subject="b", details=(), n_seen=9)
    assert posted(FIRING, labels={})["labels"] == posted(later, labels={})["labels"]


def test_two_alerts_of_one_rule_in_one_run_are_two() -> None:
    other = replace(FIRING, fingerprint="fedcba9876543210")
    assert posted(FIRING, labels={})["labels"] != posted(other, labels={})["labels"]


def test_what_fires_has_no_end_and_what_is_over_has_one() -> None:
    assert "endsAt" not in posted(FIRING, labels={})
    assert posted(OVER, labels={})["endsAt"] == "2023-11-14T22:14:20.250Z"


@pytest.mark.parametrize("path", ["", "/", "/alerts/", "/api/v2/alerts"])
def test_the_api_is_found_below_the_address(receiver: HttpReceiver, path: str) -> None:
    alertmanager(f"http://127.0.0.1:{receiver.port}{path}").send(make_notification(), compose(make_notification()))
    assert receiver.received[0].path in {"/api/v2/alerts", "/alerts/api/v2/alerts"}


def test_many_alerts_are_sent_again_in_batches_with_the_pages_of_their_runs(receiver: HttpReceiver) -> None:
    notifier = alertmanager(receiver.url)
    assert isinstance(notifier, Resending)
    alerts = [replace(FIRING, fingerprint=f"{n:016x}") for n in range(BATCH_ALERTS_MAX + 3)]
    told = [ToldAlert(alert=alert, last_good_step=6, last_good_path="/data/c-6.pt") for alert in alerts]
    notifier.resend(told, {"gpt": "https://example.org/runs/gpt"})
    documents = [request.document for request in receiver.received]
    assert [len(document) for document in documents] == [BATCH_ALERTS_MAX, 3]
    assert {posted["labels"]["fingerprint"] for batch in documents for posted in batch} == {
        alert.fingerprint for alert in alerts
    }
    assert documents[1][2]["annotations"]["last_good_checkpoint"] == "/data/c-6.pt"
    assert documents[0][0]["generatorURL"] == "https://example.org/runs/gpt"


def test_a_login_is_sent_as_basic_auth(receiver: HttpReceiver) -> None:
    notifier = alertmanager(receiver.url, username="ckptwatch", password="pässword")
    notifier.send(make_notification(), compose(make_notification()))
    scheme, _, login = receiver.received[0].headers["Authorization"].partition(" ")
    assert (scheme, base64.b64decode(login).decode()) == ("Basic", "ckptwatch:pässword")


@pytest.mark.parametrize(
    "options",
    [
        {"labels": {"tensor.name": "x"}},
        {"labels": {"run": "mine"}},
        {"labels": {"": "x"}},
        {"username": "me"},
        {"username": "me", "password": "B0SECRET", "bearer_token": "B0SECRET"},
        {"bearer_token": "B0SECRET\r\nX-Evil: 1"},
        {"url": "http://alertmanager.example.org:9093"},
        {"url": "https://alertmanager.example.org/?token=B0SECRET"},
    ],
)
def test_a_configuration_that_cannot_work_is_refused_and_shows_no_secret(options: dict[str, Any]) -> None:
    with pytest.raises(OptionsError) as caught:
        notifier_config("alertmanager", {"url": "http://127.0.0.1:9093", **options})
    assert "B0SECRET" not in str(caught.value)
