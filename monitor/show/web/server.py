"""Serve the page from a thread of the daemon: uvicorn with tight limits, no signal handlers, no access log.

The socket is bound before the thread starts, so that a port in use is an error of the start, not a line in a log.
"""

from __future__ import annotations

import asyncio
import errno
import functools
import ipaddress
import logging
import socket
import ssl
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Self

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from monitor.show.web.guard import REQUEST_BYTES_MAX

if TYPE_CHECKING:
    from uvicorn.config import Config
    from uvicorn.server import ServerState

CONNECTIONS_MAX = 64
REQUEST_SECONDS_MAX = 10.0  # to send a whole request
RESPONSE_SECONDS_MAX = 60.0  # to work out an answer and take all of it
KEEP_ALIVE_SECONDS = 5
START_SECONDS_MAX = 10.0
STOP_SECONDS_MAX = 5.0

_REASONS = {
    errno.EADDRINUSE: "port_in_use",
    errno.EACCES: "permission",
    errno.EPERM: "permission",
    errno.EADDRNOTAVAIL: "no_such_address",
}


class ServeError(Exception):
    """The page cannot be served; `kind` is port_in_use, permission, no_such_address or failed."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


class ServerHandle:
    """A running server; `port` is the real one where 0 was asked for, `scheme` http or https."""

    def __init__(
        self, server: uvicorn.Server, thread: threading.Thread, host: str, port: int, scheme: str = "http"
    ) -> None:
        self._scheme = scheme
        self._server = server
        self._thread = thread
        self.host = host
        self.port = port

    @property
    def url(self) -> str:
        """Return the address to open in a browser, without a slash at the end."""
        address = _as_address(self.host)
        host = self.host
        if address is not None and address.is_unspecified:
            host = "127.0.0.1" if address.version == 4 else "::1"
        return f"{self._scheme}://[{host}]:{self.port}" if ":" in host else f"{self._scheme}://{host}:{self.port}"

    def stop(self) -> None:
        """Stop serving: let running answers end, close what is left after STOP_SECONDS_MAX. May be called twice."""
        self._server.should_exit = True
        self._thread.join(STOP_SECONDS_MAX)
        if self._thread.is_alive():
            self._server.force_exit = True
            self._thread.join(STOP_SECONDS_MAX)


def serve_in_thread(
    app: ASGIApp, host: str, port: int, *, tls: Callable[[], ssl.SSLContext] | None = None
) -> ServerHandle:
    """Bind `host`:`port` (0 takes a free port) and serve `app` until `stop`; raise ServeError when it cannot.

    With `tls` HTTPS is spoken; it is asked for the context of every new connection, so that certificates can change.
    """
    listener = _bind(host, port)
    logging.getLogger("uvicorn.error").addFilter(_is_worth_logging)
    config = uvicorn.Config(
        app,
        http=_TimedProtocol,
        ws="none",
        lifespan="off",
        loop="asyncio",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        limit_concurrency=CONNECTIONS_MAX,
        h11_max_incomplete_event_size=REQUEST_BYTES_MAX,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=int(STOP_SECONDS_MAX),
    )
    config.load()
    if tls is not None:
        config.ssl = _ChangingContext(tls)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=_run, args=(server, listener), name="ckptwatch-web", daemon=True)
    thread.start()
    deadline = time.monotonic() + START_SECONDS_MAX
    while not server.started:
        if not thread.is_alive() or time.monotonic() > deadline:
            server.should_exit = True
            listener.close()
            raise ServeError("failed", f"the web server did not start on {host} port {port}; see the log")
        time.sleep(0.005)
    scheme = "http" if tls is None else "https"
    return ServerHandle(server, thread, host, int(listener.getsockname()[1]), scheme)


def _run(server: uvicorn.Server, listener: socket.socket) -> None:
    asyncio.run(_serve(server, listener))


async def _serve(server: uvicorn.Server, listener: socket.socket) -> None:
    if server.config.ssl is not None:
        # uvicorn passes no limit on, and asyncio's own would let a silent client hold a descriptor for a minute.
        loop = asyncio.get_running_loop()
        limited = functools.partial(loop.create_server, ssl_handshake_timeout=REQUEST_SECONDS_MAX)
        loop.create_server = limited  # type: ignore[method-assign]
    await server.serve([listener])


class _ChangingContext(ssl.SSLContext):
    """A context that makes every connection from the newest one; its own settings are never used."""

    _newest: Callable[[], ssl.SSLContext]

    def __new__(cls, newest: Callable[[], ssl.SSLContext]) -> Self:
        made = super().__new__(cls, ssl.PROTOCOL_TLS_SERVER)
        made._newest = newest
        return made

    def wrap_bio(self, *arguments: Any, **named: Any) -> ssl.SSLObject:
        return self._newest().wrap_bio(*arguments, **named)


def _bind(host: str, port: int) -> socket.socket:
    if not 0 <= port <= 65535:  # the resolver would take it modulo 65536
        raise ServeError("failed", f"cannot listen on port {port}: ports go from 0 to 65535")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except (OSError, ValueError) as error:
        raise ServeError("no_such_address", f"cannot listen on {host!r}: no such address ({error})") from error
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(CONNECTIONS_MAX)
    except OSError as error:
        listener.close()
        raise _serve_error(error, host, port) from error
    return listener


def _serve_error(error: OSError, host: str, port: int) -> ServeError:
    kind = _REASONS.get(error.errno or 0, "failed")
    advice = {
        "port_in_use": "another program, perhaps another ckptwatch, listens there; stop it or choose another port",
        "permission": "this user may not listen there; choose a port above 1023",
        "no_such_address": "this machine has no such address; choose one of its own, or 127.0.0.1",
    }.get(kind, str(error))
    return ServeError(kind, f"cannot listen on {host} port {port}: {advice}")


def _is_worth_logging(record: logging.LogRecord) -> bool:
    """Keep the web server's errors; what a stranger can cause at will must not fill the log."""
    return record.levelno >= logging.ERROR


def _as_address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


class _TimedProtocol(H11Protocol):
    """HTTP/1.1 that gives up on a client that is slow to ask or slow to take the answer.

    uvicorn limits the time between requests only: one byte of a request a minute would hold a connection for ever.
    """

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._timer: asyncio.TimerHandle | None = None
        self._is_answering = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._arm(REQUEST_SECONDS_MAX)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if not self._is_answering and self._has_open_answer():
            self._is_answering = True
            self._arm(RESPONSE_SECONDS_MAX)

    def on_response_complete(self) -> None:
        super().on_response_complete()  # may have begun the next answer of a pipeline
        self._is_answering = self._has_open_answer()
        self._arm(RESPONSE_SECONDS_MAX if self._is_answering else REQUEST_SECONDS_MAX)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        super().connection_lost(exc)

    def _has_open_answer(self) -> bool:
        # The cycle is None until the first request, whatever its annotation says.
        return self.cycle is not None and not self.cycle.response_complete  # type: ignore[redundant-expr]

    def _arm(self, seconds: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self.loop.call_later(seconds, self.transport.abort)
