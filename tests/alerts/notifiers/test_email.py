"""Mail against a real server: protection, login, refusals, threads, and hostile names."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from email.message import EmailMessage
from html.parser import HTMLParser
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import ValidationError

from alerts.message import compose
from alerts.notifier import DeliveryError
from alerts.notifiers import email as email_notifier
from alerts.notifiers.email import EmailNotifier, build_mail
from tests.support.notifier_conformance import make_notification
from tests.support.receivers import free_port
from tests.support.smtp import MailServer, loopback_authority_file
from tests.support.stored import make_alert

PASSWORD = "hunter2-secret"

# The test server asks for a login without STARTTLS in two cases, and aiosmtpd rightly dislikes that.
pytestmark = pytest.mark.filterwarnings("ignore:Requiring AUTH while not requiring TLS")


def make(port: int, **changes: Any) -> EmailNotifier:
    facts: dict[str, Any] = {
        "host": "127.0.0.1",
        "port": port,
        "security": "none",
        "from": "ckptwatch@example.org",
        "to": ["a@example.org", "b@example.org"],
        "timeout_seconds": 5,
        "ca_file": str(loopback_authority_file()),
        **changes,
    }
    return EmailNotifier(EmailNotifier.Config.model_validate(facts))


def send(notifier: EmailNotifier, **changes: Any) -> DeliveryError | None:
    notification = make_notification(**changes)
    failed = None
    try:
        notifier.send(notification, compose(notification))
    except DeliveryError as error:
        failed = error
    assert PASSWORD not in str(failed)
    assert str(failed).isprintable()
    return failed


@pytest.fixture
def server() -> Iterator[MailServer]:
    with MailServer() as running:
        yield running


def test_a_mail_arrives_for_all_recipients_as_text_and_html(server: MailServer) -> None:
    assert send(make(server.port)) is None
    assert len(server.received) == 1
    got = server.received[0]
    assert (got.sender, got.to) == ("ckptwatch@example.org", ["a@example.org", "b@example.org"])
    assert got.mail["Subject"] == "[ckptwatch] Critical: nonfinite in gpt at step 7"
    assert got.mail["From"] == "ckptwatch <ckptwatch@example.org>"
    assert got.mail["To"] == "a@example.org, b@example.org"
    assert got.mail["Auto-Submitted"] == "auto-generated"
    for kind in ("plain", "html"):
        body = got.mail.get_body((kind,))
        assert body is not None
        text = body.get_content()
        for part in ("3 elements are NaN", "a.weight", "/data/gpt/checkpoint-6.pt", "step 6"):
            assert part in text


@pytest.mark.parametrize("security", ["starttls", "ssl"])
def test_a_mail_goes_over_a_protected_connection_with_a_login(security: str) -> None:
    with MailServer(security=security, login=("me", PASSWORD)) as server:
        assert send(make(server.port, security=security, username="me", password=PASSWORD)) is None
        assert server.logins == [("me", PASSWORD)]
        assert len(server.received) == 1


@pytest.mark.parametrize("security", ["starttls", "ssl"])
def test_a_certificate_that_is_not_trusted_is_refused_before_anything_is_said(security: str) -> None:
    with MailServer(security=security, login=("me", PASSWORD)) as server:
        error = send(make(server.port, security=security, username="me", password=PASSWORD, ca_file=None))
        assert error is not None
        assert "certificate is not trusted" in str(error)
        assert server.logins == []


def test_a_server_without_starttls_gets_neither_the_login_nor_the_mail(server: MailServer) -> None:
    error = send(make(server.port, security="starttls", username="me", password=PASSWORD))
    assert error is not None
    assert error.permanent
    assert "starttls" in str(error)
    assert server.received == []


def test_a_refused_login_is_tried_again() -> None:
    with MailServer(login=("me", PASSWORD)) as server:
        error = send(make(server.port, username="me", password="wrong"))
        assert error is not None
        assert not error.permanent
        assert "535" in str(error)


@pytest.mark.parametrize(
    ("answer", "permanent"),
    [("451 try later", False), ("452 too many", False), ("552 too big", True), ("554 spam", True)],
)
def test_a_refused_mail_is_tried_again_or_given_up(server: MailServer, answer: str, permanent: bool) -> None:
    server.answer = answer
    error = send(make(server.port))
    assert error is not None
    assert error.permanent is permanent
    assert answer[:3] in str(error)


@pytest.mark.parametrize(("answers", "permanent"), [(("550 no", "550 no"), True), (("450 later", "550 no"), False)])
def test_when_all_recipients_are_refused_the_mail_is_not_sent(
    server: MailServer, answers: tuple[str, str], permanent: bool
) -> None:
    server.refused = dict(zip(("a@example.org", "b@example.org"), answers, strict=True))
    error = send(make(server.port))
    assert error is not None
    assert error.permanent is permanent


def test_when_one_recipient_is_refused_the_others_get_the_mail_and_it_is_not_sent_again(
    server: MailServer, caplog: pytest.LogCaptureFixture
) -> None:
    server.refused = {"b@example.org": "550 no such user"}
    assert send(make(server.port)) is None
    assert server.received[0].to == ["a@example.org"]
    assert "refused 1 of 2 recipients (550)" in caplog.text


def test_a_server_that_is_not_there_is_tried_again() -> None:
    error = send(make(free_port()))
    assert error is not None
    assert not error.permanent


@contextmanager
def raw_server(*pieces: bytes, pause_seconds: float = 0.0, endless: bytes = b"") -> Iterator[int]:
    """Run a server that says what it is told to whoever connects, and perhaps never ends."""
    closing = threading.Event()

    def talk() -> None:
        try:
            with listening, listening.accept()[0] as peer:
                for piece in pieces:
                    peer.sendall(piece)
                    closing.wait(pause_seconds)
                while not closing.is_set():
                    if endless:
                        peer.sendall(endless)
                    closing.wait(pause_seconds or 0.01 * (not endless))
        except OSError:
            pass  # the client hung up, as it should

    listening = socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=talk, daemon=True)
    thread.start()
    try:
        yield listening.getsockname()[1]
    finally:
        closing.set()
        thread.join(10)


def test_a_server_that_says_nothing_costs_no_more_than_the_time_limit() -> None:
    with raw_server() as port:
        began = time.monotonic()
        error = send(make(port, timeout_seconds=0.3))
        assert time.monotonic() - began < 5.0
        assert error is not None
        assert not error.permanent


def test_a_server_that_talks_slowly_for_ever_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(email_notifier, "SESSION_SECONDS_MAX", 0.3)
    with raw_server(pause_seconds=0.02, endless=b"2") as port:
        error = send(make(port))
        assert error is not None
        assert not error.permanent


def test_a_server_that_talks_without_end_is_left() -> None:
    with raw_server(endless=b"220-" + b"x" * 1000 + b"\r\n") as port:
        error = send(make(port))
        assert error is not None
        assert not error.permanent


def test_a_server_that_is_no_mail_server_is_an_error() -> None:
    with raw_server(b"HTTP/1.1 400 Bad Request\r\n\r\n") as port:
        assert send(make(port)) is not None


def test_every_try_of_a_mail_has_the_same_identity_and_an_episode_is_one_thread() -> None:
    def headers(**changes: Any) -> EmailMessage:
        notification = make_notification(**changes)
        return build_mail(
            compose(notification), notification.deduplication_key, sender="c@example.org", to=["a@example.org"]
        )

    first, again = headers(n_attempts=0), headers(n_attempts=5)
    resolved = headers(reason="resolved", deduplication_key="other")
    later = headers(alert=make_alert("0123456789abcdef", episode=2), deduplication_key="third")
    assert first["Message-ID"] == again["Message-ID"] == f"<{'feedface' * 4}@example.org>"
    assert resolved["Message-ID"] != first["Message-ID"]
    assert first["References"] == first["In-Reply-To"] == resolved["References"] == "<0123456789abcdef.1@example.org>"
    assert later["References"] != first["References"]


class Elements(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append(tag)

    def handle_data(self, data: str) -> None:
        self.text += data


hostile = st.text(st.characters(codec=None), max_size=80) | st.sampled_from(
    ["\r\nBcc: victim@example.org", "<script>alert(1)</script>", "=?utf-8?q?=0d=0aBcc:_x?=", "\u202e", "\n.\n", "&lt;"]
)


@example(run="=?utf-8?q?=0d=0aBcc:_victim=40example.org?=", subject="", summary="", path="", label="")
@given(run=hostile, subject=hostile, summary=hostile, path=hostile, label=hostile)
def test_no_name_adds_a_header_or_an_element(run: str, subject: str, summary: str, path: str, label: str) -> None:
    alert = make_alert(run=run, subject=subject, summary=summary, details=((label, summary),))
    content = compose(make_notification(alert=alert, last_good_path=path))
    mail = build_mail(content, "key", sender="c@example.org", to=["a@example.org"])
    lines = mail.as_bytes().split(b"\r\n\r\n")[0].split(b"\r\n")
    names = {line.split(b":")[0].lower() for line in lines if not line.startswith((b" ", b"\t"))}
    assert names == {
        b"subject", b"from", b"to", b"message-id", b"in-reply-to", b"references", b"auto-submitted",
        b"x-ckptwatch-severity", b"mime-version", b"content-type",
    }  # fmt: skip
    body = mail.get_body(("html",))
    assert body is not None
    seen = Elements()
    seen.feed(body.get_content())
    assert set(seen.tags) <= {"html", "head", "meta", "title", "body", "div", "h1", "p", "table", "tr", "td"}
    assert seen.tags.count("td") == 2 * len(content.facts)


def test_a_mail_with_hostile_names_arrives_whole(server: MailServer) -> None:
    name = "<b>\r\nBcc: victim@example.org\r\n.\r\n\u202eä\ud800" + "x" * 3000
    assert send(make(server.port), alert=make_alert(run=name, summary=name)) is None
    assert server.received[0].mail["Bcc"] is None
    assert server.received[0].to == ["a@example.org", "b@example.org"]


@pytest.mark.parametrize(
    "changes",
    [
        {"username": "me"},
        {"password": "x"},
        {"username": "me", "password": "x", "host": "mail.example.org"},
        {"to": []},
        {"to": ["a@example.org\r\nBcc: b@example.org"]},
        {"to": ["a@example.org, b@example.org"]},
        {"from": "ckptwatch"},
        {"from": "a b@example.org"},
        {"from": "ä@example.org"},
        {"security": "sometimes"},
        {"timeout_seconds": 60},
        {"recipients": ["a@example.org"]},
    ],
)
def test_a_configuration_that_cannot_work_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        make(25, **changes)


def test_the_port_follows_from_the_security() -> None:
    assert email_notifier.PORTS == {"starttls": 587, "ssl": 465, "none": 25}
    assert set(email_notifier.PORTS) == set(email_notifier.Security)


def test_the_configuration_does_not_show_the_password() -> None:
    config = EmailNotifier.Config.model_validate(
        {"host": "h", "from": "a@b.c", "to": ["a@b.c"], "username": "me", "password": PASSWORD}
    )
    assert PASSWORD not in repr(config)
    assert PASSWORD not in config.model_dump_json()


def test_the_picture_is_inline_in_the_html_and_the_plain_text_stays_first(server: MailServer) -> None:
    notification = make_notification()
    content = replace(compose(notification), picture=b"\x89PNG\r\n\x1a\n picture", link="https://example.org/runs/a&b")
    make(server.port).send(notification, content)
    mail = server.received[0].mail
    assert [part.get_content_type() for part in mail.walk()] == [
        *("multipart/alternative", "text/plain", "multipart/related", "text/html", "image/png"),
    ]
    picture = next(part for part in mail.walk() if part.get_content_type() == "image/png")
    assert picture.get_payload(decode=True) == content.picture
    assert picture.get_content_disposition() == "inline"
    bodies = {kind: mail.get_body((kind,)) for kind in ("html", "plain")}
    html, plain = (body.get_content() for body in bodies.values() if body is not None)
    assert f'src="cid:{picture["Content-ID"][1:-1]}"' in html
    assert 'href="https://example.org/runs/a&amp;b"' in html
    assert "https://example.org/runs/a&b" in plain


def test_a_message_about_several_alerts_belongs_to_the_conversation_of_each() -> None:
    content = replace(compose(make_notification()), related=("b.1", "c.2"))
    mail = build_mail(content, "k", sender="ckptwatch@example.org", to=["a@example.org"])
    assert mail["References"] == "<0123456789abcdef.1@example.org> <b.1@example.org> <c.2@example.org>"
    assert mail["In-Reply-To"] == "<0123456789abcdef.1@example.org>"
