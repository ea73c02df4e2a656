"""Slack: the payload's shape and limits, and everything that a web receiver can do."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alerts.message import compose
from alerts.notifier import DeliveryError, Message, Notifier
from alerts.notifiers.slack import SlackNotifier, payload
from alerts.registry import OptionsError, notifier_config
from storage.records import AlertState, Severity
from tests.support.alert_series import START
from tests.support.notifier_conformance import STATUSES, NotifierConformance, make_notification
from tests.support.receivers import Answer, HttpReceiver
from tests.support.stored import make_alert


class TestSlackConforms(NotifierConformance):
    def make(self, url: str, timeout_seconds: float) -> Notifier:
        return SlackNotifier(SlackNotifier.Config.model_validate({"url": url, "timeout_seconds": timeout_seconds}))


def test_the_payload_of_a_firing_alert() -> None:
    alert = make_alert(details=(("Hit", "1 parameter"),), opened_at=START)
    document = payload(compose(make_notification(alert=alert)), "feedface" * 4)
    assert document == {
        "text": "Critical: nonfinite in gpt at step 7: 3 elements are NaN",
        "blocks": [
            {
                "type": "header",
                "text": {"type": "plain_text", "text": "Critical: nonfinite in gpt at step 7", "emoji": False},
            },
            {"type": "section", "text": {"type": "mrkdwn", "text": "3 elements are NaN"}},
            {
                "type": "section",
                "fields": [
                    {"type": "mrkdwn", "text": "*Run*\n`gpt`"},
                    {"type": "mrkdwn", "text": "*Step*\n`7`"},
                    {"type": "mrkdwn", "text": "*Tensor*\n`a.weight`"},
                    {"type": "mrkdwn", "text": "*Last good checkpoint*\n`step 6`"},
                    {"type": "mrkdwn", "text": "*Resume from*\n`/data/gpt/checkpoint-6.pt`"},
                    {"type": "mrkdwn", "text": '*Resume with*\n`--resume "$(ckptwatch last-good gpt)"`'},
                    {"type": "mrkdwn", "text": "*Since*\n`2023-11-14 22:13:20 UTC`"},
                    {"type": "mrkdwn", "text": "*Hit*\n`1 parameter`"},
                ],
            },
            {"type": "context", "elements": [{"type": "mrkdwn", "text": "ckptwatch · critical · feedfacefeed"}]},
        ],
        "unfurl_links": False,
        "unfurl_media": False,
    }


def test_a_resolved_alert_says_so() -> None:
    alert = make_alert(state=AlertState.RESOLVED, resolved_at=START, severity=Severity.CRITICAL)
    document = payload(compose(make_notification(alert=alert, reason="resolved")), "k")
    assert document["text"].startswith("Resolved: nonfinite in gpt at step 7: This is over.")


def texts(document: dict[str, Any]) -> list[tuple[str, int]]:
    """Return every text of a payload with the limit that holds for it."""
    found: list[tuple[str, int]] = [(document["text"], 3000)]
    for block in document["blocks"]:
        if block["type"] == "header":
            found.append((block["text"]["text"], 150))
        elif "text" in block:
            found.append((block["text"]["text"], 3000))
        found += [(field["text"], 2000) for field in block.get("fields", ())]
        found += [(element["text"], 3000) for element in block.get("elements", ())]
    return found


anything = st.text(st.characters(codec=None), max_size=60) | st.text("<>&`*!@|", max_size=4000)


@given(
    run=anything,
    subject=anything,
    summary=anything,
    path=anything,
    details=st.lists(st.tuples(anything, anything), max_size=20).map(tuple),
)
def test_no_name_breaks_a_limit_or_speaks_to_slack(
    run: str, subject: str, summary: str, path: str, details: tuple[tuple[str, str], ...]
) -> None:
    alert = make_alert(run=run, subject=subject, summary=summary, details=details)
    document = payload(compose(make_notification(alert=alert, last_good_path=path)), "k")
    json.dumps(document).encode("ascii")
    assert len(document["blocks"]) <= 50
    for block in document["blocks"]:
        assert len(block.get("fields", [None])) <= 10
        assert block.get("fields", [None])
    for text, characters_max in texts(document):
        assert 0 < len(text) <= characters_max
    for text, _ in texts(document):
        assert "<" not in text
        assert ">" not in text
        assert "\x00" not in text


def test_many_facts_stay_within_fifty_blocks() -> None:
    facts = tuple((f"fact {n}", "x" * 200) for n in range(200))
    content = Message(title="t", text="x", facts=facts, severity="info", reason="firing", thread="t")
    document = payload(content, "key")
    assert len(document["blocks"]) == 50
    assert document["blocks"][-1]["type"] == "context"


def test_the_configuration_does_not_show_the_address() -> None:
    config = SlackNotifier.Config.model_validate({"url": "https://hooks.slack.com/services/T/B/SECRETTOKEN"})
    assert "SECRETTOKEN" not in repr(config)
    assert "SECRETTOKEN" not in config.model_dump_json()


@pytest.mark.parametrize("query", ["?token=abc", ""])
def test_the_path_and_the_query_of_the_address_are_kept(receiver: HttpReceiver, query: str) -> None:
    notifier = SlackNotifier(SlackNotifier.Config.model_validate({"url": receiver.url + query}))
    notification = make_notification()
    notifier.send(notification, compose(notification))
    assert receiver.received[0].path == "/services/T0SECRET/B0SECRET/XYZSECRETTOKEN" + query
    assert receiver.received[0].headers["Content-Type"] == "application/json"


class TestSlackByTokenConforms(NotifierConformance):
    """What the receiver of the suite answers is not what the API would say, so each message ends with that reason."""

    def make(self, url: str, timeout_seconds: float) -> Notifier:
        return by_token(url, timeout_seconds=timeout_seconds)

    @pytest.fixture(autouse=True)
    def _answer_as_the_api_does(self, receiver: HttpReceiver) -> None:
        plain = receiver.answer
        ok = json.dumps({"ok": True, "channel": "C1", "ts": "1.5"}).encode()
        plain(200, body=ok)

        def answer(status: int = 200, **facts: Any) -> None:
            if 200 <= status < 300 and status != 204 and "body" in facts:
                facts["body"] = ok
            plain(status, **facts)

        receiver.answer = answer  # type: ignore[method-assign]

    @pytest.mark.parametrize("status", [204])
    def test_an_empty_answer_is_not_taken_for_success(self, receiver: HttpReceiver, status: int) -> None:
        receiver.answer(status, body=b"")
        error = self.send(receiver.url)
        assert error is not None
        assert not error.permanent

    @pytest.mark.parametrize("status", [s for s in STATUSES if s != 204])
    def test_every_status_means_sent_or_again_or_never(self, receiver: HttpReceiver, status: int) -> None:
        super().test_every_status_means_sent_or_again_or_never(receiver, status)

    def test_an_answer_without_an_end_is_not_read_to_its_end(self, receiver: HttpReceiver) -> None:
        receiver.answer(200, endless=True)
        assert self.send(receiver.url) is not None
        assert receiver.n_bytes_sent < 64 * 2**20


def by_token(url: str, **options: Any) -> SlackNotifier:
    config = {"bot_token": "XYZSECRETTOKEN", "channel": "#training", "api_url": url, **options}
    return SlackNotifier(SlackNotifier.Config.model_validate(config))


def ok(**facts: Any) -> Answer:
    return Answer(body=json.dumps({"ok": True, **facts}).encode())


def methods(receiver: HttpReceiver) -> list[str]:
    return [request.path.rpartition("/")[2] for request in receiver.received]


def test_with_a_token_the_picture_is_a_reply_and_the_receipt_says_where_the_message_is(receiver: HttpReceiver) -> None:
    upload = receiver.url.rpartition("/services")[0] + "/upload/here"
    receiver.answers = [
        ok(channel="C1", ts="1700.5"),
        ok(upload_url=upload, file_id="F1"),
        Answer(),
        ok(files=[]),
        Answer(status=500),
    ]
    notification = make_notification()
    content = replace(compose(notification), picture=b"\x89PNG picture")
    assert by_token(receiver.url).send(notification, content) == "C1 1700.5 alone"
    assert methods(receiver) == [
        "chat.postMessage",
        "files.getUploadURLExternal",
        "here",
        "files.completeUploadExternal",
    ]
    posted, ticket, uploaded, done = receiver.received
    assert posted.document["channel"] == "#training"
    assert "thread_ts" not in posted.document
    assert ticket.body == b"filename=statistic.png&length=12"
    assert (uploaded.body, "Authorization" in uploaded.headers) == (b"\x89PNG picture", False)
    assert (done.document["channel_id"], done.document["thread_ts"]) == ("C1", "1700.5")
    assert done.document["files"][0]["id"] == "F1"
    assert {r.headers["Authorization"] for r in (posted, ticket, done)} == {"Bearer XYZSECRETTOKEN"}


def test_when_it_is_over_the_first_message_changes_and_its_thread_says_so(receiver: HttpReceiver) -> None:
    receiver.answers = [ok(), ok(channel="C1", ts="1800.1")]
    alert = make_alert(state=AlertState.RESOLVED, resolved_at=START)
    notification = make_notification(alert=alert, reason="resolved", first_receipt="C1 1700.5 alone")
    assert by_token(receiver.url).send(notification, compose(notification)) is None
    changed, reply = receiver.received
    assert methods(receiver) == ["chat.update", "chat.postMessage"]
    assert (changed.document["channel"], changed.document["ts"]) == ("C1", "1700.5")
    assert changed.document["text"].startswith("Resolved: ")
    assert (reply.document["channel"], reply.document["thread_ts"]) == ("C1", "1700.5")


def test_a_first_message_about_several_alerts_stays_as_it_is_when_one_is_over(receiver: HttpReceiver) -> None:
    receiver.answers = [ok(channel="C1", ts="1800.1")]
    notification = make_notification(reason="resolved", first_receipt="C1 1700.5 joined")
    by_token(receiver.url).send(notification, compose(notification))
    assert methods(receiver) == ["chat.postMessage"]


def test_a_picture_that_cannot_be_uploaded_costs_no_message(
    receiver: HttpReceiver, caplog: pytest.LogCaptureFixture
) -> None:
    receiver.answers = [ok(channel="C1", ts="1.5"), Answer(status=500, body=b"XYZSECRETTOKEN")]
    notification = make_notification()
    assert by_token(receiver.url).send(notification, replace(compose(notification), picture=b"p")) == "C1 1.5 alone"
    assert "a picture was not added" in caplog.text


@pytest.mark.parametrize(
    ("error", "permanent"),
    [("ratelimited", False), ("invalid_auth", False), ("channel_not_found", False), ("invalid_blocks", True)],
)
def test_what_the_api_refuses_is_said_in_its_words(receiver: HttpReceiver, error: str, permanent: bool) -> None:
    receiver.answers = [Answer(body=json.dumps({"ok": False, "error": error}).encode())]
    with pytest.raises(DeliveryError, match=f"refused chat.postMessage: {error}") as caught:
        by_token(receiver.url).send(make_notification(), compose(make_notification()))
    assert caught.value.permanent == permanent


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"url": "https://hooks.example.org/XYZSECRETTOKEN", "bot_token": "B0SECRET", "channel": "C"},
        {"bot_token": "B0SECRET"},
        {"channel": "C"},
        {"bot_token": "B0 SECRET", "channel": "C"},
        {"bot_token": "B0SECRET", "channel": "C", "api_url": "http://slack.example.org/api"},
    ],
)
def test_a_configuration_without_one_clear_way_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(OptionsError) as caught:
        notifier_config("slack", options)
    assert "SECRET" not in str(caught.value)
