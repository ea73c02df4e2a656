"""The webhook: its document, its signature, and everything that a web receiver can do."""

from __future__ import annotations

import hashlib
import hmac
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alerts.document import document
from alerts.message import compose
from alerts.notifier import DeliveryError, Notifier
from alerts.notifiers.webhook import WebhookNotifier
from alerts.registry import OptionsError, notifier_config
from storage.records import Alert, AlertState, Gathering, Incident
from storage.rows import decode_gathering, encode_gathering
from tests.support import json_schema
from tests.support.alert_series import START
from tests.support.golden import check_golden
from tests.support.notifier_conformance import NotifierConformance, make_notification
from tests.support.receivers import HttpReceiver
from tests.support.stored import alerts as any_alert
from tests.support.stored import make_alert

SCHEMA = json.loads((Path(__file__).parents[3] / "docs" / "notifiers" / "webhook.schema.json").read_text())


def webhook(url: str, **options: Any) -> WebhookNotifier:
    return WebhookNotifier(WebhookNotifier.Config.model_validate({"url": url, **options}))


class TestWebhookConforms(NotifierConformance):
    def make(self, url: str, timeout_seconds: float) -> Notifier:
        return webhook(url, timeout_seconds=timeout_seconds, secret="XYZSECRETTOKEN", bearer_token="B0SECRET")

    # A document for programs holds names as they are; JSON's own escapes keep them apart from its structure.
    def test_hostile_names_do_no_harm(self, receiver: HttpReceiver) -> None:
        name = "<!channel>\r\nX-Evil: 1\u202e\x00\ud800" + "x" * 9000
        alert = make_alert(run=name, subject=name, summary=name, details=((name, name),) * 20)
        assert self.send(receiver.url, alert=alert, last_good_path="/" + name) is None
        request = receiver.received[0]
        assert "X-Evil" not in request.headers
        assert len(request.body) < 400_000
        assert request.body.isascii()
        assert request.document["alert"]["run"].startswith("<!channel>\r\nX-Evil: 1\u202e\x00\\ud800xxx")


def test_the_golden_documents() -> None:
    alert = make_alert(opened_at=START, fired_at=START)
    over = make_alert(opened_at=START, fired_at=START, state=AlertState.RESOLVED, resolved_at=START + 60.5)
    for name, notification in (
        ("firing", make_notification(alert=alert)),
        ("resolved", make_notification(alert=over, reason="resolved", last_good_step=None, last_good_path=None)),
    ):
        check_golden(f"webhook_{name}.json", document(notification, compose(notification)))


@given(alert=any_alert, others=st.lists(any_alert, max_size=3))
def test_every_document_of_an_incident_is_as_the_schema_says(alert: Alert, others: list[Alert]) -> None:
    incident = Incident(
        id=1,
        run=alert.run,
        state=AlertState.FIRING,
        severity=alert.severity,
        told_severity=None,
        rule=alert.rule,
        step=alert.step,
        tensor=alert.subject,
        summary=alert.summary,
        opened_by=alert.key,
        opened_at=alert.opened_at,
        changed_at=alert.opened_at,
        resolved_at=None,
        n_alerts=1 + len(others),
    )
    about = Gathering(incident=incident, others=tuple(others), n_others=len(others))
    notification = make_notification(alert=alert, gathering=about)
    plain = replace(about, others=(), incident=replace(incident, tensor="", summary=""))  # texts are made printable
    assert decode_gathering(encode_gathering(plain)) == plain
    written = json.dumps(document(notification, compose(notification)), allow_nan=False)
    assert json_schema.errors(json.loads(written), SCHEMA) == []


@given(alert=any_alert, path=st.none() | st.text(st.characters(codec=None), max_size=50))
def test_every_document_is_as_the_schema_says(alert: Any, path: str | None) -> None:
    notification = make_notification(alert=alert, last_good_path=path)
    written = json.dumps(document(notification, compose(notification)), allow_nan=False)
    assert json_schema.errors(json.loads(written), SCHEMA) == []


def test_the_schema_names_every_key_and_refuses_others() -> None:
    good = document(make_notification(), compose(make_notification()))
    assert json_schema.errors(good, SCHEMA) == []
    assert json_schema.errors({**good, "more": 1}, SCHEMA)
    assert json_schema.errors({key: value for key, value in good.items() if key != "title"}, SCHEMA)
    assert json_schema.errors({**good, "version": "1"}, SCHEMA)


def test_the_signature_is_that_of_the_bytes_that_arrive(receiver: HttpReceiver) -> None:
    notification = make_notification()
    webhook(receiver.url, secret="a long secret", bearer_token="token").send(notification, compose(notification))
    request = receiver.received[0]
    expected = hmac.new(b"a long secret", request.body, hashlib.sha256).hexdigest()
    assert request.headers["X-Ckptwatch-Signature"] == f"sha256={expected}"
    assert request.headers["Authorization"] == "Bearer token"
    assert request.headers["Idempotency-Key"] == notification.deduplication_key
    assert request.headers["Content-Type"] == "application/json"


def test_without_a_secret_nothing_is_signed(receiver: HttpReceiver) -> None:
    notification = make_notification()
    webhook(receiver.url).send(notification, compose(notification))
    assert "X-Ckptwatch-Signature" not in receiver.received[0].headers


def test_a_token_that_would_break_the_header_is_refused_without_being_shown() -> None:
    with pytest.raises(OptionsError) as caught:
        notifier_config("webhook", {"url": "https://example.org/x", "bearer_token": "tökèn"})
    assert "tök" not in str(caught.value)


def test_a_token_with_a_line_break_never_leaves(receiver: HttpReceiver) -> None:
    with pytest.raises(OptionsError):
        notifier_config("webhook", {"url": receiver.url, "bearer_token": "a\r\nX-Evil: 1"})
    assert receiver.received == []
    with pytest.raises(DeliveryError):
        webhook("http://127.0.0.1:1/x").send(make_notification(), compose(make_notification()))
