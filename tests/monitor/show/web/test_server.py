from __future__ import annotations

import asyncio
import http.client
import logging
import signal
import socket
import threading
import time

import pytest
from starlette.types import Receive, Scope, Send

from monitor.show.web import server as server_module
from monitor.show.web.server import CONNECTIONS_MAX, ServeError, serve_in_thread


async def hello(scope: Scope, receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"5")]})
    await send({"type": "http.response.body", "body": b"hello"})


def get(port: int, path: str = "/") -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def test_a_free_port_is_found_served_and_given_back() -> None:
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    running = serve_in_thread(hello, "127.0.0.1", 0)
    try:
        assert running.port > 0
        assert running.url == f"http://127.0.0.1:{running.port}"
        assert get(running.port) == (200, b"hello")
        assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers
    finally:
        running.stop()
    running.stop()
    with pytest.raises(ConnectionRefusedError):
        get(running.port)
    again = serve_in_thread(hello, "127.0.0.1", running.port)
    again.stop()
    assert not [thread for thread in threading.enumerate() if thread.name == "ckptwatch-web"]


def test_a_port_in_use_is_an_error_at_the_start_that_says_what_to_do() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ServeError, match=f"port {port}: another program.*choose another port") as caught:
            serve_in_thread(hello, "127.0.0.1", port)
    assert caught.value.kind == "port_in_use"


@pytest.mark.parametrize("host", ["203.0.113.1", "no-such-host.invalid", "x" * 300, "host\x00name"])
def test_an_address_that_is_not_ours_is_refused(host: str) -> None:
    with pytest.raises(ServeError) as caught:
        serve_in_thread(hello, host, 0)
    assert caught.value.kind == "no_such_address"


def test_a_port_that_is_no_port_is_refused() -> None:
    with pytest.raises(ServeError):
        serve_in_thread(hello, "127.0.0.1", 70_000)


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="this machine has no IPv6")
def test_ipv6_is_served_and_its_address_can_be_opened() -> None:
    running = serve_in_thread(hello, "::1", 0)
    try:
        assert running.url == f"http://[::1]:{running.port}"
        with socket.create_connection(("::1", running.port), timeout=10) as connection:
            connection.sendall(b"GET / HTTP/1.1\r\nHost: [::1]\r\nConnection: close\r\n\r\n")
            assert connection.recv(100).startswith(b"HTTP/1.1 200")
    finally:
        running.stop()


def test_listening_everywhere_is_shown_as_an_address_that_opens() -> None:
    running = serve_in_thread(hello, "0.0.0.0", 0)
    try:
        assert running.url == f"http://127.0.0.1:{running.port}"
    finally:
        running.stop()


def test_a_client_that_never_finishes_its_request_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "REQUEST_SECONDS_MAX", 0.3)
    running = serve_in_thread(hello, "127.0.0.1", 0)
    try:
        with socket.create_connection(("127.0.0.1", running.port), timeout=10) as slow:
            closed = False
            for _ in range(200):  # one byte at a time, each well before uvicorn's own limits
                try:
                    slow.sendall(b"G")
                    slow.settimeout(0.05)
                    closed = slow.recv(1) == b""
                except TimeoutError:
                    continue
                except (ConnectionResetError, BrokenPipeError):
                    closed = True
                if closed:
                    break
            assert closed
        assert get(running.port) == (200, b"hello")
    finally:
        running.stop()


def test_an_answer_may_take_longer_than_a_request(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "REQUEST_SECONDS_MAX", 0.1)
    entered = threading.Event()

    async def slow(scope: Scope, receive: Receive, send: Send) -> None:
        entered.set()
        await asyncio.sleep(0.4)
        await hello(scope, receive, send)

    running = serve_in_thread(slow, "127.0.0.1", 0)
    try:
        assert get(running.port) == (200, b"hello")
        assert entered.is_set()
    finally:
        running.stop()


def test_a_client_that_takes_no_answer_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "RESPONSE_SECONDS_MAX", 0.3)

    async def endless(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        while True:
            await send({"type": "http.response.body", "body": b"x" * 65536, "more_body": True})
            if (await receive())["type"] == "http.disconnect":
                return

    running = serve_in_thread(endless, "127.0.0.1", 0)
    try:
        with socket.create_connection(("127.0.0.1", running.port), timeout=10) as connection:
            connection.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
            deadline = time.monotonic() + 10
            ended = False
            while not ended and time.monotonic() < deadline:
                try:
                    ended = connection.recv(65536) == b""
                except ConnectionResetError:
                    ended = True
            assert ended
    finally:
        running.stop()


def test_too_many_connections_are_turned_away_and_the_log_stays_quiet(caplog: pytest.LogCaptureFixture) -> None:
    running = serve_in_thread(hello, "127.0.0.1", 0)
    idle = []
    try:
        with caplog.at_level(logging.DEBUG):
            for _ in range(CONNECTIONS_MAX):
                idle.append(socket.create_connection(("127.0.0.1", running.port), timeout=10))
            assert get(running.port)[0] == 503
            raw = socket.create_connection(("127.0.0.1", running.port), timeout=10)
            idle.append(raw)
            raw.sendall(b"not http\r\n\r\n")
            assert raw.recv(100).startswith(b"HTTP/1.1 400")
        assert not [record for record in caplog.records if record.name.startswith("uvicorn")]
    finally:
        for connection in idle:
            connection.close()
        running.stop()


def test_stopping_does_not_wait_for_idle_connections() -> None:
    running = serve_in_thread(hello, "127.0.0.1", 0)
    with socket.create_connection(("127.0.0.1", running.port), timeout=10) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert connection.recv(1000).startswith(b"HTTP/1.1 200")
        running.stop()
        assert not [thread for thread in threading.enumerate() if thread.name == "ckptwatch-web"]
