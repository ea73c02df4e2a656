"""One POST: where it may go, and by which way."""

from __future__ import annotations

import base64
import socket
from datetime import UTC, datetime
from email.utils import format_datetime
from typing import Any

import pytest

from alerts import transport
from alerts.notifier import DeliveryError
from alerts.transport import PostLimits, check_url, parse_retry_after, post, redact
from tests.support.receivers import HttpReceiver

URL = "http://hooks.example.org/services/T0SECRET/B0SECRET"


def resolving_to(monkeypatch: pytest.MonkeyPatch, *addresses: str, port: int) -> None:
    """Let every host name stand for the given addresses."""

    def found(host: str, wanted: int, **kwargs: Any) -> list[Any]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in addresses]

    monkeypatch.setattr(socket, "getaddrinfo", found)
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    "address", ["127.0.0.1", "10.0.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1", "0.0.0.0"]
)
def test_a_host_name_that_stands_for_a_private_address_is_refused(
    monkeypatch: pytest.MonkeyPatch, receiver: HttpReceiver, address: str
) -> None:
    resolving_to(monkeypatch, address, port=receiver.port)
    with pytest.raises(DeliveryError, match="private address"):
        post(URL, b"{}", content_type="application/json")
    assert receiver.received == []


@pytest.mark.parametrize("address", ["::1", "fe80::1%eth0", "fd00::1", "::ffff:10.0.0.1"])
def test_private_addresses_of_the_new_kind_are_private_too(address: str) -> None:
    assert not transport._is_public(address)


@pytest.mark.parametrize("address", ["8.8.8.8", "2606:4700::1111", "::ffff:8.8.8.8"])
def test_public_addresses_are_public(address: str) -> None:
    assert transport._is_public(address)


def test_a_private_receiver_can_be_allowed(monkeypatch: pytest.MonkeyPatch, receiver: HttpReceiver) -> None:
    resolving_to(monkeypatch, "127.0.0.1", port=receiver.port)
    assert post(URL, b"{}", content_type="application/json", limits=PostLimits(allow_private=True)).status == 200
    assert receiver.received[0].headers["Host"] == "hooks.example.org"


def test_an_address_written_as_a_number_was_meant(receiver: HttpReceiver) -> None:
    assert post(receiver.url, b"{}", content_type="application/json").status == 200


def test_the_proxy_of_the_environment_is_used_with_its_login(
    monkeypatch: pytest.MonkeyPatch, receiver: HttpReceiver
) -> None:
    monkeypatch.setenv("http_proxy", f"http://user:pass%20word@127.0.0.1:{receiver.port}")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    assert post(URL, b"{}", content_type="application/json").status == 200
    request = receiver.received[0]
    assert request.path == URL
    assert request.headers["Proxy-Authorization"] == "Basic " + base64.b64encode(b"user:pass word").decode()


def test_this_machine_is_never_asked_for_through_a_proxy(
    monkeypatch: pytest.MonkeyPatch, receiver: HttpReceiver
) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    monkeypatch.delenv("no_proxy", raising=False)
    assert post(receiver.url, b"{}", content_type="application/json").status == 200


def test_https_goes_through_the_proxy_in_a_tunnel(monkeypatch: pytest.MonkeyPatch, receiver: HttpReceiver) -> None:
    """The proxy here knows no CONNECT, so its refusal is what can be seen of the tunnel."""
    monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{receiver.port}")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    with pytest.raises(DeliveryError, match="Tunnel connection failed: 501") as caught:
        post(URL.replace("http:", "https:"), b"{}", content_type="application/json")
    assert "T0SECRET" not in str(caught.value)


def test_a_server_that_does_not_speak_tls_is_an_error(receiver: HttpReceiver) -> None:
    with pytest.raises(DeliveryError, match="cannot reach the receiver"):
        post(receiver.url.replace("http:", "https:"), b"{}", content_type="application/json")


def test_a_pause_may_be_a_date() -> None:
    at = datetime(2026, 1, 1, tzinfo=UTC)
    assert parse_retry_after(format_datetime(at, usegmt=True), now=at.timestamp() - 30) == 30.0
    assert parse_retry_after(format_datetime(at, usegmt=True), now=at.timestamp() + 30) == 0.0
    assert parse_retry_after("Thu, 99 Foo 9999 99:99:99", now=0.0) is None
    assert parse_retry_after(None, now=0.0) is None
    assert parse_retry_after("9" * 200, now=0.0) is None


def test_every_part_of_the_address_is_cut_out_of_a_text() -> None:
    url = "https://hooks.example.org/services/T0SECRET/B0SECRET?key=K0SECRET"
    text = redact(f"{url} or /services/T0SECRET/B0SECRET or K0SECRET", url)
    assert "SECRET" not in text


def test_addresses_that_can_be_used() -> None:
    assert check_url("https://hooks.slack.com/services/T/B/X", allow_http=False) is None
    assert check_url("http://localhost:80/x", allow_http=False) is None
    assert check_url("http://[::1]:80/x", allow_http=False) is None
    assert check_url("http://chat.example.org/x", allow_http=False) is not None
    assert check_url("https://hooks.example.org:99999/x", allow_http=False) is not None
