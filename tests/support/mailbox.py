"""An SMTP server on loopback that keeps every message it was given."""

from __future__ import annotations

import threading
from email import message_from_bytes, policy
from email.message import EmailMessage
from typing import Any, Self

from aiosmtpd.controller import Controller
from aiosmtpd.smtp import Envelope

from tests.support.receivers import free_port


class Mailbox:
    """A real SMTP server; `messages` are what arrived, in order."""

    def __init__(self) -> None:
        self.messages: list[EmailMessage] = []
        self.recipients: list[list[str]] = []
        self._arrived = threading.Condition()
        self.port = free_port()
        self._controller = Controller(self, hostname="127.0.0.1", port=self.port)

    async def handle_DATA(self, server: Any, session: Any, envelope: Envelope) -> str:  # noqa: N802 (aiosmtpd's name)
        del server, session
        content = envelope.content
        assert isinstance(content, bytes)
        with self._arrived:
            self.messages.append(message_from_bytes(content, policy=policy.default))
            self.recipients.append(list(envelope.rcpt_tos))
            self._arrived.notify_all()
        return "250 OK"

    def wait_for(self, n: int, seconds: float = 60.0) -> list[EmailMessage]:
        """Wait until n messages have arrived and return all."""
        with self._arrived:
            assert self._arrived.wait_for(lambda: len(self.messages) >= n, seconds), f"got {len(self.messages)} of {n}"
            return list(self.messages)

    def __enter__(self) -> Self:
        self._controller.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._controller.stop()
