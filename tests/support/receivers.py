"""Receivers on loopback that answer as a test tells them to: HTTP in threads, SMTP by aiosmtpd."""

from __future__ import annotations

import contextlib
import json
import socket
import struct
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self


@dataclass
class Received:
    """One request as it arrived."""

    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def document(self) -> Any:
        return json.loads(self.body)


@dataclass
class Answer:
    """What the receiver answers: a status, headers, a body, or `hang` until it is closed."""

    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b"ok"
    hang: bool = False
    endless: bool = False  # a body without an end
    drip: bool = False  # a byte of the status line now and then, for ever
    reset: bool = False  # the connection is reset after the head, before the body is there


class HttpReceiver:
    """A web server on 127.0.0.1 that keeps what it was sent. Answers are used up in order; the last one stays."""

    def __init__(self, port: int = 0) -> None:
        self.received: list[Received] = []
        self.answers: list[Answer] = [Answer()]
        self.arrived = threading.Condition()
        self.closing = threading.Event()
        self.n_bytes_sent = 0
        self._server = _Server(("127.0.0.1", port), _Handler)
        self._server.receiver = self
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)

    @property
    def port(self) -> int:
        return int(self._server.server_address[1])

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/services/T0SECRET/B0SECRET/XYZSECRETTOKEN"

    def answer(self, status: int = 200, **facts: Any) -> None:
        self.answers = [Answer(status=status, **facts)]

    def wait_for(self, n: int, timeout: float = 20.0) -> list[Received]:
        """Wait until n requests have arrived and return them; fail after `timeout` seconds."""
        with self.arrived:
            assert self.arrived.wait_for(lambda: len(self.received) >= n, timeout), f"got {len(self.received)} of {n}"
            return list(self.received)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.closing.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = True
    receiver: HttpReceiver

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # a client that hangs up early is what many tests are about


class _Handler(BaseHTTPRequestHandler):
    server: _Server

    def do_POST(self) -> None:
        receiver = self.server.receiver
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        with receiver.arrived:
            receiver.received.append(Received(self.path, dict(self.headers.items()), body))
            answer = receiver.answers.pop(0) if len(receiver.answers) > 1 else receiver.answers[0]
            receiver.arrived.notify_all()
        if answer.hang:
            receiver.closing.wait(30)
            return
        if answer.drip:
            self._drip()
            return
        self.send_response(answer.status)
        for name, value in answer.headers.items():
            self.send_header(name, value)
        if not answer.endless:
            self.send_header("Content-Length", str(len(answer.body)))
        self.end_headers()
        if answer.reset:
            self.wfile.flush()
            # With nothing to linger for, closing sends a reset.
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
            return
        self.wfile.write(answer.body)
        while answer.endless and not receiver.closing.is_set():
            self.wfile.write(b"x" * 65536)
            receiver.n_bytes_sent += 65536

    def _drip(self) -> None:
        self.wfile.write(b"HTTP/1.1 ")
        while not self.server.receiver.closing.wait(0.05):
            self.wfile.write(b"0")
            self.wfile.flush()

    def log_message(self, format: str, *args: Any) -> None:
        pass


def free_port() -> int:
    """Return a port on which nobody listens at the moment."""
    with contextlib.closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
