"""The notifier `slack`: Block Kit messages, through an incoming webhook or through Slack's API with a bot's token.

With a token a message brings its picture along as a reply, and the first message of an episode changes when it is over.
Names from checkpoints are shown as code, with Slack's own signs escaped, so that no tensor can call a channel or write
a link. Limits: https://docs.slack.dev/reference/block-kit/blocks
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar
from urllib.parse import urlencode

from pydantic import BaseModel, ConfigDict, Field, SecretStr, model_validator

from alerts.notifier import SEND_SECONDS_MAX, DeliveryError, Message, printable
from alerts.transport import PostLimits, check_token, check_url, post_or_raise
from storage.records import Notification

HEADER_CHARACTERS_MAX = 150
SECTION_CHARACTERS_MAX = 3000
FIELD_CHARACTERS_MAX = 2000
FIELDS_MAX = 10
BLOCKS_MAX = 50
WIDE_CHARACTERS_MIN = 60  # a longer fact gets a line of its own, since a field is only half as wide
FOOTER_CHARACTERS_MAX = 300
ERROR_CHARACTERS_MAX = 100
PICTURE_NAME = "statistic.png"
PICTURE_TITLE = "The statistic over the steps"
# What no later try can mend. A token that is refused now may be put in order, so it is not among them.
FINAL_ERRORS = frozenset({"invalid_blocks", "msg_too_long", "no_text", "invalid_arguments", "message_not_found"})

logger = logging.getLogger(__name__)


class SlackNotifier:
    """Post one message for each transition of an alert."""

    kind: ClassVar[str] = "slack"

    class Config(BaseModel):
        """Either `url`, a webhook's address and its password at once, or `bot_token` and `channel` (its ID or #name).

        `allow_http` accepts plain http beyond this machine; `allow_private` lets the host name stand for an address in
        a private network (a chat server of your own). `api_url` is where the API is.
        """

        model_config = ConfigDict(extra="forbid", frozen=True)

        url: SecretStr | None = None
        bot_token: SecretStr | None = None
        channel: str | None = Field(default=None, min_length=1, max_length=100)
        api_url: str = "https://slack.com/api"
        allow_http: bool = False
        allow_private: bool = False
        timeout_seconds: float = Field(default=SEND_SECONDS_MAX, gt=0, le=SEND_SECONDS_MAX)

        @model_validator(mode="after")
        def _check(self) -> SlackNotifier.Config:
            if (self.url is None) == (self.bot_token is None):
                raise ValueError("give either url or bot_token")
            if (self.bot_token is None) != (self.channel is None):
                raise ValueError("bot_token and channel must be given together")
            name, address = ("api_url", self.api_url) if self.url is None else ("url", self.url.get_secret_value())
            reason = check_url(address, allow_http=self.allow_http)
            if reason is not None:
                raise ValueError(f"{name} {reason}")
            token_reason = None if self.bot_token is None else check_token(self.bot_token.get_secret_value())
            if token_reason is not None:
                raise ValueError(f"bot_token {token_reason}")
            return self

    def __init__(self, config: Config) -> None:
        self._config = config
        self._limits = PostLimits(seconds_max=config.timeout_seconds, allow_private=config.allow_private)
        self.shows_pictures = config.bot_token is not None

    def send(self, notification: Notification, content: Message) -> str | None:
        """Post the message and return its receipt where it can be changed; raise DeliveryError unless it was taken."""
        document = payload(content, notification.deduplication_key)
        if self._config.url is not None:
            body = json.dumps(document).encode("ascii")
            url = self._config.url.get_secret_value()
            post_or_raise(url, body, content_type="application/json", limits=self._limits)
            return None
        first = _Receipt.read(notification.first_receipt)
        document["channel"] = self._config.channel
        if first is not None:
            document |= {"channel": first.channel, "thread_ts": first.ts}
            if content.reason == "resolved" and first.is_alone:
                changed = {key: value for key, value in document.items() if key in ("channel", "text", "blocks")}
                self._call("chat.update", {**changed, "ts": first.ts})
        posted = self._call("chat.postMessage", document)
        receipt = _Receipt(channel=str(posted.get("channel")), ts=str(posted.get("ts")), is_alone=not content.related)
        if content.picture is not None:
            self._add_picture(content.picture, receipt if first is None else first)
        return receipt.write() if first is None else None

    def _add_picture(self, picture: bytes, place: _Receipt) -> None:
        """Reply with the picture. The message has arrived: a picture that has not is only logged."""
        try:
            asked = urlencode({"filename": PICTURE_NAME, "length": len(picture)}).encode()
            ticket = self._call("files.getUploadURLExternal", asked)
            address = str(ticket.get("upload_url"))
            if check_url(address, allow_http=self._config.allow_http) is not None:
                raise DeliveryError("the API gave no address to upload to")
            post_or_raise(address, picture, content_type="image/png", limits=self._limits)
            done = {"files": [{"id": ticket.get("file_id"), "title": PICTURE_TITLE}]}
            self._call("files.completeUploadExternal", {**done, "channel_id": place.channel, "thread_ts": place.ts})
        except DeliveryError as error:
            logger.warning("a picture was not added to a message: %s", error)

    def _call(self, method: str, arguments: Mapping[str, Any] | bytes) -> dict[str, Any]:
        """Call a method of the API and return its answer; raise DeliveryError unless it says ok."""
        token = self._config.bot_token
        assert token is not None
        is_form = isinstance(arguments, bytes)
        reply = post_or_raise(
            f"{self._config.api_url.rstrip('/')}/{method}",
            arguments if isinstance(arguments, bytes) else json.dumps(arguments).encode("ascii"),
            content_type="application/x-www-form-urlencoded" if is_form else "application/json; charset=utf-8",
            limits=self._limits,
            headers={"Authorization": f"Bearer {token.get_secret_value()}"},
        )
        try:
            answer = json.loads(reply.body)
        except ValueError:
            raise DeliveryError(f"the API's answer to {method} is not JSON") from None
        if isinstance(answer, dict) and answer.get("ok") is True:
            return answer
        said = printable(str(answer.get("error") if isinstance(answer, dict) else None), ERROR_CHARACTERS_MAX)
        shown = said.replace(token.get_secret_value(), "…")
        raise DeliveryError(f"the API refused {method}: {shown}", permanent=said in FINAL_ERRORS)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Receipt:
    """Where a message is; `is_alone` when it is about one alert only, so that it may change with it."""

    channel: str
    ts: str
    is_alone: bool

    def write(self) -> str:
        return f"{self.channel} {self.ts} {'alone' if self.is_alone else 'joined'}"

    @staticmethod
    def read(text: str | None) -> _Receipt | None:
        parts = (text or "").split(" ")
        return _Receipt(channel=parts[0], ts=parts[1], is_alone=parts[2] == "alone") if len(parts) == 3 else None


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
