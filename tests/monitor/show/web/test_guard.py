from __future__ import annotations

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from monitor.show.web.guard import WebSettings, credentials_match, host_is_allowed, refuse

LOOPBACK = WebSettings()
EVERYWHERE = WebSettings(listen_host="0.0.0.0", allowed_hosts=("gpu7.example.org", "[2001:db8::7]"))


@pytest.mark.parametrize(
    "host",
    [
        "localhost",
        "LocalHost:10470",
        "localhost.",
        "localhost.:10470",
        "127.0.0.1:10470",
        "127.0.0.53",
        "[::1]:10470",
        "[0:0:0:0:0:0:0:1]",
    ],
)
def test_loopback_is_always_served(host: str) -> None:
    assert host_is_allowed(host, LOOPBACK)
    assert host_is_allowed(host, EVERYWHERE)


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "localhost.evil.example",
        "evil.example:10470",
        "127.0.0.1.evil.example",
        "evil.example#localhost",
        "localhost@evil.example",
        "localhost/evil",
        "localhost evil.example",
        "localhost,evil.example",
        "localhost:80:80",
        "localhost:",
        "localhost:port",
        "localhost:1234567",
        "[::1",
        "[::1]evil",
        "[localhost]",
        "[]",
        ":10470",
        ".",
        "",
        "0x7f000001",
        "2130706433",
    ],
)
def test_what_is_not_this_machine_is_refused(host: str) -> None:
    assert not host_is_allowed(host, LOOPBACK)
    assert not host_is_allowed(host, EVERYWHERE)


def test_configured_names_and_the_address_listened_on_are_served() -> None:
    assert host_is_allowed("GPU7.example.org.:443", EVERYWHERE)
    assert host_is_allowed("[2001:0db8::0007]:10470", EVERYWHERE)
    assert not host_is_allowed("gpu7.example.org", LOOPBACK)
    one_address = WebSettings(listen_host="10.1.2.3")
    assert host_is_allowed("10.1.2.3:10470", one_address)
    assert not host_is_allowed("10.1.2.4:10470", one_address)


def test_any_address_in_digits_is_served_when_every_address_is_listened_on() -> None:
    for listen_host in ("0.0.0.0", "::"):
        settings = WebSettings(listen_host=listen_host)
        assert host_is_allowed("192.168.1.20:10470", settings)
        assert host_is_allowed("[fe80::1]:10470", settings)
        assert not host_is_allowed("rebound.example:10470", settings)
    assert not host_is_allowed("192.168.1.20:10470", LOOPBACK)


def test_a_star_turns_the_check_off() -> None:
    assert host_is_allowed("anything.example", WebSettings(allowed_hosts=("*",)))


@given(st.text(st.characters(max_codepoint=255), max_size=40))
def test_no_header_makes_the_check_fail(host: str) -> None:
    assert host_is_allowed(host, LOOPBACK) in {True, False}


def basic(username: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{username}:{password}".encode()).decode()


TOKEN = WebSettings(token="s3cret-töken")
LOGIN = WebSettings(username="ops", password="pass:word")


@pytest.mark.parametrize(
    ("settings", "authorization", "fits"),
    [
        (TOKEN, "Bearer s3cret-töken", True),
        (TOKEN, "bearer  s3cret-töken ", True),
        (TOKEN, basic("anyone", "s3cret-töken"), True),
        (TOKEN, "Bearer s3cret", False),
        (TOKEN, "Bearer ", False),
        (TOKEN, "s3cret-töken", False),
        (TOKEN, basic("s3cret-töken", ""), False),
        (LOGIN, basic("ops", "pass:word"), True),
        (LOGIN, basic("ops", "pass"), False),
        (LOGIN, basic("root", "pass:word"), False),
        (LOGIN, "Bearer pass:word", False),
        (LOGIN, "Basic !!!", False),
        (LOGIN, "Basic " + base64.b64encode(b"\xff\xfe:x").decode(), False),
        (LOGIN, "Digest abc", False),
        (LOGIN, "Basic " + "A" * 100_000, False),
    ],
)
def test_credentials(settings: WebSettings, authorization: str, fits: bool) -> None:
    assert credentials_match(authorization, settings) is fits


def headers(**values: str) -> list[tuple[bytes, bytes]]:
    return [(name.encode(), value.encode()) for name, value in values.items()]


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "get"])
def test_only_reading_is_possible(method: str) -> None:
    refusal = refuse(method, "/", headers(host="localhost"), LOOPBACK)
    assert refusal is not None
    assert refusal.status == 405
    assert dict(refusal.headers)["allow"] == "GET, HEAD"


def test_exactly_one_host_is_needed() -> None:
    assert refuse("GET", "/", headers(host="localhost"), LOOPBACK) is None
    for given_headers in ([], [(b"host", b"localhost"), (b"host", b"evil.example")]):
        refusal = refuse("GET", "/", given_headers, LOOPBACK)
        assert refusal is not None
        assert refusal.status == 400


def test_a_protected_server_asks_for_login_everywhere_but_at_the_probes() -> None:
    for path in ("/", "/metrics", "/api/v1/runs", "/static/x.css", "/nowhere", "/livez/"):
        refusal = refuse("GET", path, headers(host="localhost"), TOKEN)
        assert refusal is not None
        assert refusal.status == 401
        assert "www-authenticate" in dict(refusal.headers)
    for path in ("/livez", "/readyz"):
        assert refuse("GET", path, headers(host="localhost"), TOKEN) is None
        assert refuse("GET", path, headers(host="evil.example"), TOKEN) is not None


def test_two_authorizations_are_refused() -> None:
    token = WebSettings(token="t")
    good = [(b"host", b"localhost"), (b"authorization", b"Bearer t")]
    assert refuse("GET", "/", good, token) is None
    assert refuse("GET", "/", [*good, (b"authorization", b"Bearer x")], token) is not None


def test_secrets_are_not_printed() -> None:
    text = repr(WebSettings(token="s3cret", username="ops", password="hunter2"))
    assert "s3cret" not in text
    assert "hunter2" not in text
