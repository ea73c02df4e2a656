"""The contract of every notifier: one message to one receiver, or a reason why not.

A notifier knows its own receiver's protocol and limits. It must not retry, sleep, keep state between messages or look
into the database: trying again is delivery's work.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, runtime_checkable

from storage.records import Notification, ToldAlert

SEND_SECONDS_MAX = 10.0
PATH_CHARACTERS_MAX = 4096  # a path is copied and pasted, so it is not shortened below PATH_MAX


class DeliveryError(Exception):
    """A message did not reach its receiver.

    `permanent` says that trying again cannot help. `retry_after_seconds` is what the receiver asked us to wait, None
    where it asked nothing. The text holds no secret: neither an address with a token in it nor a password.
    """

    def __init__(self, message: str, *, permanent: bool = False, retry_after_seconds: float | None = None) -> None:
        super().__init__(message)
        self.permanent = permanent
        self.retry_after_seconds = retry_after_seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """What a notification says, before a receiver's own markup.

    Every text is printable: control and direction-changing characters are written out. `title` is one line; `text` is
    one or two sentences; `facts` are label -> text in order of importance. `thread` is equal for all messages of one
    episode of one alert; `related` are the threads of the other alerts that a message also speaks of. `link` is the
    address of the run's page, None where none is configured. `picture` is a PNG of the statistic over steps, None where
    there is none; a receiver that cannot show it leaves it out.
    """

    title: str
    text: str
    facts: tuple[tuple[str, str], ...]
    severity: str
    reason: str
    thread: str
    related: tuple[str, ...] = ()
    link: str | None = None
    picture: bytes | None = None


class Notifier(Protocol):
    """One kind of receiver. `Config` is a pydantic model whose secrets are SecretStr, already resolved."""

    kind: ClassVar[str]

    @property
    def Config(self) -> type[Any]:  # noqa: N802 - a class inside the notifier's own, which mypy sees as a property
        """Return the class of the notifier's configuration."""

    def __init__(self, config: Any) -> None: ...

    def send(self, notification: Notification, content: Message) -> str | None:
        """Hand over one message within SEND_SECONDS_MAX; raise DeliveryError when the receiver did not take it.

        Return what the receiver calls the message where it can be changed later, else None; later messages of the same
        episode bring the first one along as `notification.first_receipt`.
        """


@runtime_checkable
class Resending(Protocol):
    """A notifier whose receiver forgets: delivery tells it every `resend_seconds` what fires and what was just over."""

    resend_seconds: float

    def resend(self, alerts: Sequence[ToldAlert], links: Mapping[str, str]) -> None:
        """Post the present state of alerts; `links` are the addresses of the runs' pages. Raise DeliveryError."""


def joins(notifier: Notifier | type[Notifier]) -> bool:
    """Say whether several messages may be joined into one; yes, unless the class says `joins = False` (machines)."""
    return bool(getattr(notifier, "joins", True))


def shows_pictures(notifier: Notifier) -> bool:
    """Say whether it is worth drawing a picture; no, unless the notifier says `shows_pictures`."""
    return bool(getattr(notifier, "shows_pictures", False))


def printable(text: str, characters_max: int) -> str:
    """Return one line: unprintable characters as escapes, runs of white space as one space, cut to the limit."""
    spaced = " ".join(text[: 4 * characters_max].split())
    shown = "".join(c if c.isprintable() else _escape(c) for c in spaced)
    return shown if len(shown) <= characters_max else shown[: characters_max - 1] + "…"


def printable_path(path: str) -> str:
    """Return a path with unprintable characters as escapes; white space stays, since it is part of the name."""
    shown = "".join(c if c.isprintable() else _escape(c) for c in path[:PATH_CHARACTERS_MAX])
    return shown[:PATH_CHARACTERS_MAX]


def _escape(character: str) -> str:
    code = ord(character)
    return f"\\u{code:04x}" if code <= 0xFFFF else f"\\U{code:08x}"
