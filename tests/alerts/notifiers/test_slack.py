"""Slack: the payload's shape and limits, and everything that a web receiver can do."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alerts.message import compose
from alerts.notifier import Message, Notifier
from alerts.notifiers.slack import SlackNotifier, payload
from storage.records import AlertState, Severity
from tests.support.alert_series import START
from tests.support.notifier_conformance import NotifierConformance, make_notification
from tests.support.receivers import HttpReceiver
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
