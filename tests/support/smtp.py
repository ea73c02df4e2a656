"""A real mail server on loopback (aiosmtpd) that keeps what it was sent and refuses what a test tells it to."""

from __future__ import annotations

import atexit
import email
import email.policy
import shutil
import ssl
import tempfile
from dataclasses import dataclass
from email.message import EmailMessage
from functools import cache
from pathlib import Path
from typing import Any, Self, cast

import trustme
from aiosmtpd.controller import Controller
from aiosmtpd.smtp import AuthResult, LoginPassword

from tests.support.receivers import free_port


@cache
def loopback_certificates() -> tuple[trustme.CA, trustme.LeafCert]:
    """Return an authority and a certificate of it for 127.0.0.1, made anew by each test process."""
    authority = trustme.CA()
    return authority, authority.issue_cert("127.0.0.1")


@cache
def loopback_authority_file() -> Path:
    """Return a file with the authority's certificate, for a client that is to trust it; gone when the process ends."""
    directory = tempfile.mkdtemp(prefix="ckptwatch-test-authority-")
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    path = Path(directory) / "authority.pem"
    loopback_certificates()[0].cert_pem.write_to_path(str(path))
    return path


@dataclass
class ReceivedMail:
    """One mail with its envelope."""

    sender: str
    to: list[str]
    mail: EmailMessage


class MailServer:
    """A mail server on 127.0.0.1; `security` as in the notifier, `login` a (user, password) that is then required."""

    def __init__(self, *, security: str = "none", login: tuple[str, str] | None = None) -> None:
        self.received: list[ReceivedMail] = []
        self.refused: dict[str, str] = {}  # recipient -> answer
        self.answer = "250 OK"
        self.logins: list[tuple[str, str]] = []
        self._login = login
        context = None
        if security != "none":
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            loopback_certificates()[1].configure_cert(context)
        options: dict[str, Any] = {"hostname": "127.0.0.1", "port": free_port(), "ready_timeout": 20.0}
        if security == "ssl":
            options["ssl_context"] = context
        elif security == "starttls":
            options |= {"tls_context": context, "require_starttls": True}
        if login is not None:
            options |= {
                "authenticator": self._authenticate,
                "auth_required": True,
                "auth_require_tls": security == "starttls",
            }
        self._controller = Controller(self, **options)

    @property
    def port(self) -> int:
        return int(self._controller.port)

    def _authenticate(self, server: Any, session: Any, envelope: Any, mechanism: str, data: Any) -> AuthResult:
        given = cast(LoginPassword, data)
        pair = (given.login.decode(), given.password.decode())
        self.logins.append(pair)
        return AuthResult(success=pair == self._login, handled=False)

    async def handle_RCPT(  # noqa: N802 - the name that aiosmtpd calls
        self, server: Any, session: Any, envelope: Any, address: str, options: Any
    ) -> str:
        if address in self.refused:
            return self.refused[address]
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:  # noqa: N802
        if self.answer.startswith("250"):
            mail = email.message_from_bytes(envelope.content, policy=email.policy.default)
            self.received.append(ReceivedMail(envelope.mail_from, list(envelope.rcpt_tos), mail))
        return self.answer

    def __enter__(self) -> Self:
        self._controller.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._controller.stop()
