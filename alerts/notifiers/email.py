"""The notifier `email`: one message by SMTP, as HTML and as plain text.

Messages of one episode of an alert hang together as a thread. Texts are printable before they come here, and only the
email package writes headers. It decodes what looks like an encoded word ("=?utf-8?q?=0d=0aBcc:...?=") on the way, line
breaks included, so the beginning of such a word is taken apart: no name of a run or tensor can add a header.
"""

from __future__ import annotations

import contextlib
import io
import ipaddress
import logging
import re
import smtplib
import socket
import ssl
import time
from collections.abc import Iterator
from email.headerregistry import Address
from email.message import EmailMessage
from email.policy import SMTP as SMTP_POLICY
from enum import StrEnum
from functools import cache
from html import escape
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, SecretStr, model_validator

from alerts.notifier import SEND_SECONDS_MAX, DeliveryError, Message, printable
from storage.records import Notification

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

PORTS = {"starttls": 587, "ssl": 465, "none": 25}
COLOURS = {"critical": "#b42318", "warning": "#b54708", "info": "#175cd3", "resolved": "#067647"}
LABEL_COLUMN_MAX = 30
PICTURE = "The statistic over the steps"
LINK = "Open the page of the run"
RECIPIENTS_MAX = 50
ATOM = r"[A-Za-z0-9!#$%&'*+/=^_`{|}~-]+"
ADDRESS = re.compile(rf"{ATOM}(\.{ATOM})*@[A-Za-z0-9-]+(\.[A-Za-z0-9-]+)*")
ADDRESS_CHARACTERS_MAX = 254  # RFC 5321 4.5.3.1.3, less the angle brackets
REPLY_BYTES_MAX = 64 * 1024  # of everything a server says in one session
SESSION_SECONDS_MAX = 30.0  # a whole session has about ten round trips, each with its own limit
SHOWN_CHARACTERS_MAX = 200

logger = logging.getLogger(__name__)


class Security(StrEnum):
    """How the connection is protected: upgraded (the default), TLS from the start, or not at all."""

    STARTTLS = "starttls"
    SSL = "ssl"
    NONE = "none"


def _check_address(value: str) -> str:
    address = value.strip()
    if ADDRESS.fullmatch(address) is None or len(address) > ADDRESS_CHARACTERS_MAX:
        raise ValueError("must be a mail address such as name@example.org")
    return address


MailAddress = Annotated[str, AfterValidator(_check_address)]


class EmailNotifier:
    """Send one mail to all recipients for each transition of an alert."""

    kind: ClassVar[str] = "email"
    shows_pictures: ClassVar[bool] = True

    class Config(BaseModel):
        """`host`, `from` and `to` are required.

        `security` is starttls (port 587), ssl (port 465) or none (port 25). `ca_file` names a certificate authority of
        your own. A password needs a protected connection, unless the server is this machine.
        """

        model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)

        host: str = Field(min_length=1, max_length=253)
        port: int | None = Field(default=None, ge=1, le=65535)
        security: Security = Security.STARTTLS
        username: str | None = Field(default=None, min_length=1)
        password: SecretStr | None = None
        sender: MailAddress = Field(alias="from")
        to: Annotated[list[MailAddress], Field(min_length=1, max_length=RECIPIENTS_MAX)]
        ca_file: str | None = None
        timeout_seconds: float = Field(default=SEND_SECONDS_MAX, gt=0, le=SEND_SECONDS_MAX)

        @model_validator(mode="after")
        def _check_login(self) -> Self:
            if (self.username is None) != (self.password is None):
                raise ValueError("username and password must be given together")
            if self.password is not None and self.security is Security.NONE and not _is_loopback(self.host):
                raise ValueError("a password is only sent over a protected connection; set security to starttls or ssl")
            return self

    def __init__(self, config: Config) -> None:
        self._config = config

    def send(self, notification: Notification, content: Message) -> None:
        """Send the mail; raise DeliveryError unless the server took it for at least one recipient."""
        config = self._config
        mail = build_mail(content, notification.deduplication_key, sender=config.sender, to=config.to)
        try:
            with _session(config) as server:
                if config.username is not None and config.password is not None:
                    server.login(config.username, config.password.get_secret_value())
                refused = server.send_message(mail, config.sender, config.to)
        except smtplib.SMTPRecipientsRefused as error:
            codes = [code for code, _ in error.recipients.values()]
            raise DeliveryError(
                f"the mail server refused all recipients ({_codes(codes)})", permanent=all(c >= 500 for c in codes)
            ) from None
        except smtplib.SMTPAuthenticationError as error:
            # Not permanent: a directory that is down gives the same answer as a wrong password.
            raise DeliveryError(f"the mail server refused the login ({error.smtp_code})") from None
        except (smtplib.SMTPConnectError, smtplib.SMTPHeloError) as error:
            raise DeliveryError(_answer(error)) from None
        except smtplib.SMTPResponseException as error:
            raise DeliveryError(_answer(error), permanent=error.smtp_code >= 500) from None
        except smtplib.SMTPNotSupportedError:
            raise DeliveryError(
                f"the mail server does not offer what security: {config.security} or the login needs", permanent=True
            ) from None
        except ssl.SSLCertVerificationError as error:
            raise DeliveryError(f"the mail server's certificate is not trusted: {error.verify_message}") from None
        except (OSError, smtplib.SMTPException) as error:
            raise DeliveryError(f"cannot reach the mail server: {_reason(error)}") from None
        if refused:
            codes = [code for code, _ in refused.values()]
            logger.warning(
                "the mail server refused %d of %d recipients (%s)", len(refused), len(config.to), _codes(codes)
            )


def build_mail(content: Message, deduplication_key: str, *, sender: str, to: list[str]) -> EmailMessage:
    """Return the mail: equal for every try of the same message, its identity included."""
    domain = sender.rpartition("@")[2]
    thread = f"<{content.thread}@{domain}>"
    mail = EmailMessage(policy=SMTP_POLICY)
    mail["Subject"] = f"[ckptwatch] {content.title.replace('=?', '= ?')}"  # see the module's docstring
    mail["From"] = Address(display_name="ckptwatch", addr_spec=sender)
    mail["To"] = ", ".join(to)
    mail["Message-ID"] = f"<{deduplication_key}@{domain}>"
    mail["In-Reply-To"] = thread  # no mail has this identity: it is what the mails of one episode have in common
    mail["References"] = " ".join([thread, *(f"<{related}@{domain}>" for related in content.related)])
    mail["Auto-Submitted"] = "auto-generated"  # RFC 3834: keeps holiday replies away
    mail["X-Ckptwatch-Severity"] = content.severity
    mail.set_content(_plain(content))
    picture_id = f"{deduplication_key}.picture@{domain}"
    mail.add_alternative(_html(content, None if content.picture is None else picture_id), subtype="html")
    if content.picture is not None:
        html = mail.get_payload()[-1]  # type: ignore[index]
        assert isinstance(html, EmailMessage)
        html.add_related(
            content.picture, "image", "png", cid=f"<{picture_id}>", filename="statistic.png", disposition="inline"
        )
    return mail


def _plain(content: Message) -> str:
    width = max((len(label) for label, _ in content.facts if len(label) <= LABEL_COLUMN_MAX), default=0) + 2
    lines = [content.title, "", content.text, ""]
    lines += (f"{label + ':':<{width}}{text}" for label, text in content.facts)
    if content.link is not None:
        lines += ["", content.link]
    return "\n".join(lines) + "\n"


def _html(content: Message, picture_id: str | None) -> str:
    colour = COLOURS["resolved"] if content.reason == "resolved" else COLOURS.get(content.severity, COLOURS["info"])
    rows = "\n".join(
        f'<tr><td style="padding:4px 16px 4px 0;color:#57606a;vertical-align:top">{escape(label)}</td>'
        f'<td style="padding:4px 0;font-family:monospace;word-break:break-all">{escape(text)}</td></tr>'
        for label, text in content.facts
    )
    picture = "" if picture_id is None else f'<p><img src="cid:{escape(picture_id)}" alt="{PICTURE}" width="640"></p>'
    link = "" if content.link is None else f'<p style="margin:16px 0 0"><a href="{escape(content.link)}">{LINK}</a></p>'
    return f"""\
<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>{escape(content.title)}</title></head>
<body style="margin:0;padding:24px;font-family:sans-serif;font-size:14px;color:#1f2328;background:#ffffff">
<div style="max-width:680px;border-left:4px solid {colour};padding-left:16px">
<h1 style="margin:0 0 8px;font-size:18px">{escape(content.title)}</h1>
<p style="margin:0 0 16px">{escape(content.text)}</p>
<table style="border-collapse:collapse;font-size:13px">
{rows}
</table>
{picture}
{link}
</div>
</body></html>
"""


@contextlib.contextmanager
def _session(config: EmailNotifier.Config) -> Iterator[smtplib.SMTP]:
    """Open a session, protected as configured, and end it when the block is done."""
    context = ssl.create_default_context(cafile=config.ca_file)
    port = config.port or PORTS[config.security]
    server: smtplib.SMTP
    if config.security is Security.SSL:
        server = _BoundedSmtpSsl(config.host, port, _local_name(), timeout=config.timeout_seconds, context=context)
    else:
        server = _BoundedSmtp(config.host, port, _local_name(), timeout=config.timeout_seconds)
    try:
        if config.security is Security.STARTTLS:
            server.starttls(context=context)
        yield server
        with contextlib.suppress(OSError, smtplib.SMTPException):
            server.quit()  # the mail is taken; what the server says to the goodbye does not matter
    finally:
        server.close()


class _Replies(io.RawIOBase):
    """What a server says in one session: at most REPLY_BYTES_MAX bytes in at most SESSION_SECONDS_MAX."""

    def __init__(self, connected: socket.socket, ends_at: float, timeout: float) -> None:
        super().__init__()
        self._socket = connected
        self._ends_at = ends_at
        self._timeout = timeout
        self._n_left = REPLY_BYTES_MAX

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer) -> int:
        left = self._ends_at - time.monotonic()
        if left <= 0:
            raise TimeoutError("the session took too long")
        self._socket.settimeout(min(left, self._timeout))
        n = self._socket.recv_into(buffer)
        self._n_left -= n
        if self._n_left < 0:
            raise OSError("the server said too much")
        return n


class _Bounded:
    """Makes smtplib read through _Replies, since its own limits begin anew with every byte and every line."""

    sock: socket.socket | None
    file: Any
    timeout: float

    def getreply(self) -> tuple[int, bytes]:
        if self.file is None and self.sock is not None:
            self._ends_at = getattr(self, "_ends_at", time.monotonic() + SESSION_SECONDS_MAX)
            self.file = io.BufferedReader(_Replies(self.sock, self._ends_at, self.timeout))
        return super().getreply()  # type: ignore[misc, no-any-return]


class _BoundedSmtp(_Bounded, smtplib.SMTP):
    pass


class _BoundedSmtpSsl(_Bounded, smtplib.SMTP_SSL):
    pass


@cache
def _local_name() -> str:
    """Return the name for the greeting; looked up once, since a name server that is down takes seconds to say so."""
    name = socket.getfqdn()
    return name if "." in name else "[127.0.0.1]"


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _codes(codes: list[int]) -> str:
    return ", ".join(str(code) for code in sorted(set(codes)))


def _answer(error: smtplib.SMTPResponseException) -> str:
    said = error.smtp_error.decode("utf-8", "replace") if isinstance(error.smtp_error, bytes) else error.smtp_error
    return f"the mail server answered {error.smtp_code}: {printable(said, SHOWN_CHARACTERS_MAX)}"


def _reason(error: OSError | smtplib.SMTPException) -> str:
    if isinstance(error, TimeoutError):
        return "it did not answer in time"
    if isinstance(error, smtplib.SMTPException):
        return f"it broke off or does not speak SMTP ({type(error).__name__})"
    return printable(error.strerror or str(error) or type(error).__name__, SHOWN_CHARACTERS_MAX)
