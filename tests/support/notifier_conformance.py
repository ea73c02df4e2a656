"""What every notifier that posts to a web address must do; a test class subclasses it in three lines."""

from __future__ import annotations

import time
from typing import Any, ClassVar

import pytest

from alerts.message import compose
from alerts.notifier import DeliveryError, Notifier
from storage.records import Notification
from tests.support.alert_series import START
from tests.support.receivers import HttpReceiver, free_port
from tests.support.stored import make_alert

SECRETS = ("T0SECRET", "B0SECRET", "XYZSECRETTOKEN")
RETRIED = {408, 425, 429, *range(500, 600)}
STATUSES = [200, 201, 202, 204, 300, 301, 302, 303, 307, 308, *range(400, 452), 500, 501, 502, 503, 504, 507, 599]


def make_notification(**changes: Any) -> Notification:
    facts: dict[str, Any] = {
        "id": 1,
        "notifier": "x",
        "reason": "firing",
        "alert": make_alert("0123456789abcdef"),
        "deduplication_key": "feedface" * 4,
        "last_good_step": 6,
        "last_good_path": "/data/gpt/checkpoint-6.pt",
        "created_at": START,
        "due_at": START,
        "n_attempts": 0,
        "last_error": None,
    }
    return Notification(**{**facts, **changes})


class NotifierConformance:
    """Subclass it, name it Test..., and say how to make the notifier for an address."""

    method: ClassVar[str] = "POST"

    def make(self, url: str, timeout_seconds: float) -> Notifier:
        raise NotImplementedError

    def send(self, url: str, timeout_seconds: float = 5.0, **changes: Any) -> DeliveryError | None:
        notification = make_notification(**changes)
        try:
            self.make(url, timeout_seconds).send(notification, compose(notification))
        except DeliveryError as error:
            assert_silent(error)
            return error
        return None

    def test_a_message_arrives_once(self, receiver: HttpReceiver) -> None:
        assert self.send(receiver.url) is None
        assert len(receiver.received) == 1
        body = receiver.received[0].body.decode()
        for part in ("gpt", "a.weight", "3 elements are NaN", "/data/gpt/checkpoint-6.pt"):
            assert part in body

    @pytest.mark.parametrize("status", STATUSES)
    def test_every_status_means_sent_or_again_or_never(self, receiver: HttpReceiver, status: int) -> None:
        location = {"Location": receiver.url} if 300 <= status < 400 else {}
        receiver.answer(status, headers=location, body=b"" if status == 204 else b"because")
        error = self.send(receiver.url)
        assert len(receiver.received) == 1
        if 200 <= status < 300:
            assert error is None
        else:
            assert error is not None
            assert str(status) in str(error)
            assert error.permanent == (status not in RETRIED)

    @pytest.mark.parametrize(("value", "seconds"), [("17", 17.0), ("999999999", 3600.0), ("soon", None), ("-5", None)])
    def test_a_pause_that_the_receiver_asks_for_is_passed_on(
        self, receiver: HttpReceiver, value: str, seconds: float | None
    ) -> None:
        receiver.answer(429, headers={"Retry-After": value})
        error = self.send(receiver.url)
        assert error is not None
        assert error.retry_after_seconds == seconds

    def test_a_redirect_is_not_followed(self, receiver: HttpReceiver) -> None:
        with HttpReceiver() as elsewhere:
            receiver.answer(302, headers={"Location": elsewhere.url})
            error = self.send(receiver.url)
            assert error is not None
            assert error.permanent
            assert elsewhere.received == []

    @pytest.mark.parametrize("how", ["hang", "drip"])
    def test_a_receiver_that_does_not_finish_its_answer_costs_no_more_than_the_time_limit(
        self, receiver: HttpReceiver, how: str
    ) -> None:
        receiver.answer(200, **{how: True})
        began = time.monotonic()
        error = self.send(receiver.url, timeout_seconds=0.3)
        assert time.monotonic() - began < 5.0
        assert error is not None
        assert not error.permanent

    def test_an_answer_without_an_end_is_not_read_to_its_end(self, receiver: HttpReceiver) -> None:
        receiver.answer(200, endless=True)
        assert self.send(receiver.url) is None
        assert receiver.n_bytes_sent < 64 * 2**20

    def test_an_error_page_without_an_end_is_an_error_of_one_line(self, receiver: HttpReceiver) -> None:
        receiver.answer(500, endless=True, body=b"<html>\r\n\x1b[31m")
        error = self.send(receiver.url)
        assert error is not None
        assert len(str(error)) < 500
        assert str(error).isprintable()

    def test_an_answer_that_repeats_the_address_does_not_give_it_away(self, receiver: HttpReceiver) -> None:
        receiver.answer(400, body=f"no such hook: {receiver.url} {' '.join(SECRETS)}".encode())
        error = self.send(receiver.url)
        assert error is not None
        assert "no such hook" in str(error)

    def test_a_receiver_that_is_not_there_is_tried_again(self) -> None:
        url = f"http://127.0.0.1:{free_port()}/services/T0SECRET/B0SECRET/XYZSECRETTOKEN"
        error = self.send(url)
        assert error is not None
        assert not error.permanent

    def test_a_host_that_does_not_exist_is_tried_again(self) -> None:
        error = self.send("https://no-such-host.invalid/services/T0SECRET/B0SECRET/XYZSECRETTOKEN")
        assert error is not None
        assert not error.permanent

    def test_hostile_names_do_no_harm(self, receiver: HttpReceiver) -> None:
        name = "<!channel> & <https://evil.example|click>\r\nX-Evil: 1\u202e`*_~\x00\ud800" + "x" * 9000
        alert = make_alert(run=name, subject=name, summary=name, details=((name, name),) * 20)
        assert self.send(receiver.url, alert=alert, last_good_path="/" + name) is None
        request = receiver.received[0]
        assert "X-Evil" not in request.headers
        assert len(request.body) < 100_000
        assert "<!channel>" not in request.body.decode()


def assert_silent(error: BaseException) -> None:
    """Assert that neither the text of an error nor what led to it shows the address."""
    seen: BaseException | None = error
    while seen is not None:
        for secret in SECRETS:
            assert secret not in str(seen)
            assert secret not in repr(seen)
        seen = seen.__cause__ or (None if seen.__suppress_context__ else seen.__context__)
