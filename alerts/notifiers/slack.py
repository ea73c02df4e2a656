"""The notifier `slack`: Block Kit messages through an incoming webhook (Slack, or a receiver that speaks the same).

Names from checkpoints are shown as code, with Slack's own signs escaped, so that no tensor can call a channel or
write a link. Limits: https://docs.slack.dev/reference/block-kit/blocks
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field, SecretStr, model_validator

from alerts.notifier import SEND_SECONDS_MAX, Message
from alerts.transport import PostLimits, check_url, post_or_raise
from storage.records import Notification

HEADER_CHARACTERS_MAX = 150
SECTION_CHARACTERS_MAX = 3000
FIELD_CHARACTERS_MAX = 2000
FIELDS_MAX = 10
BLOCKS_MAX = 50
WIDE_CHARACTERS_MIN = 60  # a longer fact gets a line of its own, since a field is only half as wide
FOOTER_CHARACTERS_MAX = 300


class SlackNotifier:
    """Post one message for each transition of an alert."""

    kind: ClassVar[str] = "slack"

    class Config(BaseModel):
        """`url` is the webhook's address and its password at once.

        `allow_http` accepts plain http beyond this machine; `allow_private` lets the host name stand for an address in
        a private network (a chat server of your own).
        """

        model_config = ConfigDict(extra="forbid", frozen=True)

        url: SecretStr
        allow_http: bool = False
        allow_private: bool = False
        timeout_seconds: float = Field(default=SEND_SECONDS_MAX, gt=0, le=SEND_SECONDS_MAX)

        @model_validator(mode="after")
        def _check_url(self) -> SlackNotifier.Config:
            reason = check_url(self.url.get_secret_value(), allow_http=self.allow_http)
            if reason is not None:
                raise ValueError(f"url {reason}")
            return self

    def __init__(self, config: Config) -> None:
        self._url = config.url
        self._limits = PostLimits(seconds_max=config.timeout_seconds, allow_private=config.allow_private)

    def send(self, notification: Notification, content: Message) -> None:
        """Post the message; raise DeliveryError unless the receiver answers 2xx."""
        body = json.dumps(payload(content, notification.deduplication_key)).encode("ascii")
        post_or_raise(self._url.get_secret_value(), body, content_type="application/json", limits=self._limits)


def payload(content: Message, deduplication_key: str) -> dict[str, Any]:
    """Return the JSON document of one message: a header, the text, the facts and a footer."""
    blocks: list[dict[str, Any]] = [
        {
            "type": "header",
            "text": {"type": "plain_text", "text": _heading(content.title), "emoji": False},
        },
        {"type": "section", "text": {"type": "mrkdwn", "text": _cut_escaped(content.text, SECTION_CHARACTERS_MAX)}},
        *_fact_blocks(content.facts),
    ]
    if content.link is not None:
        link = {"type": "mrkdwn", "text": f"<{escape(content.link)}|Open the page of the run>"}
        blocks = [*blocks[: BLOCKS_MAX - 2], {"type": "section", "text": link}]
    footer = f"ckptwatch · {content.severity} · {deduplication_key[:12]}"
    context = {
        "type": "context",
        "elements": [{"type": "mrkdwn", "text": _cut_escaped(footer, FOOTER_CHARACTERS_MAX)}],
    }
    return {
        "text": _cut_escaped(f"{content.title}: {content.text}", SECTION_CHARACTERS_MAX),
        "blocks": [*blocks[: BLOCKS_MAX - 1], context],
        "unfurl_links": False,
        "unfurl_media": False,
    }


def _fact_blocks(facts: Sequence[tuple[str, str]]) -> list[dict[str, Any]]:
    """Put short facts side by side, at most ten a section, and long ones (paths) on lines of their own, in order."""
    blocks: list[dict[str, Any]] = []
    fields: list[dict[str, str]] = []
    for label, value in facts:
        wide = len(value) > WIDE_CHARACTERS_MIN
        text = {"type": "mrkdwn", "text": _fact(label, value, SECTION_CHARACTERS_MAX if wide else FIELD_CHARACTERS_MAX)}
        if fields and (wide or len(fields) == FIELDS_MAX):
            blocks.append({"type": "section", "fields": fields})
            fields = []
        if wide:
            blocks.append({"type": "section", "text": text})
        else:
            fields.append(text)
    if fields:
        blocks.append({"type": "section", "fields": fields})
    return blocks


def _fact(label: str, value: str, characters_max: int) -> str:
    head = f"*{escape(label.replace('*', '∗'))}*\n"
    return f"{head}`{_cut_escaped(value.replace('`', 'ˋ') or ' ', characters_max - len(head) - 2)}`"


def escape(text: str) -> str:
    """Escape the three signs that mean something to Slack; https://docs.slack.dev/messaging/formatting-message-text."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _heading(text: str) -> str:
    """Cut a heading to its limit. Escapes are not documented for plain text, so the signs themselves are replaced."""
    plain = text.replace("<", "‹").replace(">", "›")
    return plain if len(plain) <= HEADER_CHARACTERS_MAX else plain[: HEADER_CHARACTERS_MAX - 1] + "…"


def _cut_escaped(text: str, characters_max: int) -> str:
    """Escape a text and cut it to the limit without cutting through an escape."""
    escaped = escape(text)
    if len(escaped) <= characters_max:
        return escaped
    size, kept = 0, []
    for character in text:
        piece = escape(character)
        size += len(piece)
        if size > characters_max - 1:
            break
        kept.append(piece)
    return "".join(kept) + "…"
