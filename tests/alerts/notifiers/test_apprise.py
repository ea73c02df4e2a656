"""Apprise: a real service of it (`json://`) on loopback; what it does not tell apart, we cannot either."""

from __future__ import annotations

import base64
import time
from dataclasses import replace
from typing import Any

import pytest

from alerts.message import compose
from alerts.notifier import DeliveryError, shows_pictures
from alerts.notifiers.apprise import AppriseNotifier
from alerts.registry import OptionsError, notifier_config
from tests.support.golden import check_golden
from tests.support.notifier_conformance import SECRETS, assert_silent, make_notification
from tests.support.receivers import HttpReceiver, free_port
from tests.support.stored import make_alert


def service(url: str, **options: Any) -> AppriseNotifier:
    config = {"url": url.replace("http://", "json://"), **options}
    return AppriseNotifier(AppriseNotifier.Config.model_validate(config))


def send(url: str, timeout_seconds: float = 5.0, **changes: Any) -> DeliveryError | None:
    notification = make_notification(**changes)
    try:
        service(url, timeout_seconds=timeout_seconds).send(notification, compose(notification))
    except DeliveryError as error:
        assert_silent(error)
        return error
    return None


def test_the_golden_message_arrives_once(receiver: HttpReceiver) -> None:
    assert send(receiver.url) is None
    assert len(receiver.received) == 1
    check_golden("apprise_firing.json", receiver.received[0].document)


@pytest.mark.parametrize("status", [301, 302, 400, 403, 404, 429, 500, 503])
def test_every_failure_is_tried_again_and_no_redirect_is_followed(receiver: HttpReceiver, status: int) -> None:
    with HttpReceiver() as elsewhere:
        receiver.answer(status, headers={"Location": elsewhere.url}, body=" ".join(SECRETS).encode())
        error = send(receiver.url)
        assert error is not None
        assert not error.permanent
        assert len(receiver.received) == 1
        assert elsewhere.received == []


def test_a_receiver_that_hangs_costs_no_more_than_the_time_limit(receiver: HttpReceiver) -> None:
    receiver.answer(200, hang=True)
    began = time.monotonic()
    assert send(receiver.url, timeout_seconds=0.5) is not None
    assert time.monotonic() - began < 10


def test_a_receiver_that_is_not_there_is_tried_again(caplog: pytest.LogCaptureFixture) -> None:
    assert send(f"http://127.0.0.1:{free_port()}/T0SECRET") is not None
    assert not any(secret in caplog.text for secret in SECRETS)


def test_hostile_names_are_only_text(receiver: HttpReceiver) -> None:
    name = "\\n{{ app_id }} <b>\r\nX-Evil: 1\u202e\x00\ud800" + "x" * 9000
    assert send(receiver.url, alert=make_alert(run=name, subject=name, summary=name)) is None
    assert "X-Evil" not in receiver.received[0].headers
    assert "\\n{{ app_id }} <b>" in receiver.received[0].document["message"]


def test_the_picture_is_attached_where_that_was_asked_for(receiver: HttpReceiver) -> None:
    notifier = service(receiver.url, attach_picture=True)
    assert shows_pictures(notifier)
    notification = make_notification()
    notifier.send(notification, replace(compose(notification), picture=b"\x89PNG picture"))
    attached = receiver.received[0].document["attachments"]
    assert [base64.b64decode(item["base64"]) for item in attached] == [b"\x89PNG picture"]
    assert not shows_pictures(service(receiver.url))


@pytest.mark.parametrize("url", ["carrier-pigeon://T0SECRET", "T0SECRET", "json://"])
def test_an_address_that_apprise_does_not_know_is_refused_without_being_shown(url: str) -> None:
    with pytest.raises(OptionsError) as caught:
        notifier_config("apprise", {"url": url})
    assert "T0SECRET" not in str(caught.value)
