"""One HTTP POST to a receiver that the operator named: bounded in time and size, and silent about secrets.

The address of a webhook is its password, so it never appears in an error. Redirects are not followed. A host name that
resolves to a private address is refused unless that was allowed, so that a changed DNS entry cannot turn the daemon
against its own network; an address written as a number was meant. Trying again is delivery's work.
"""

from __future__ import annotations

import base64
import contextlib
import http.client
import ipaddress
import socket
import ssl
import threading
import time
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from urllib.parse import SplitResult, unquote, urlsplit

from alerts.notifier import SEND_SECONDS_MAX, DeliveryError, printable

REPLY_BYTES_MAX = 64 * 1024
REPLY_SHOWN_CHARACTERS_MAX = 200
SECRET_CHARACTERS_MIN = 6  # a shorter path segment is no secret, and cutting it out would garble the text
RETRY_AFTER_SECONDS_MAX = 3600.0
RETRIED_STATUSES = frozenset({408, 425, 429})  # and every 5xx


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """What the receiver answered: the status, at most REPLY_BYTES_MAX of the body, and its Retry-After header."""

    status: int
    body: bytes
    retry_after: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class PostLimits:
    """How long and how much one POST may take; `allow_private` lets a host name resolve to a private address."""

    seconds_max: float = SEND_SECONDS_MAX
    reply_bytes_max: int = REPLY_BYTES_MAX
    allow_private: bool = False


def check_url(url: str, *, allow_http: bool) -> str | None:
    """Return why the address cannot be used, None when it can. The text does not hold the address."""
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        return "is not a valid address"
    if parts.scheme not in ("http", "https"):
        return "must begin with https://"
    if not host:
        return "names no host"
    if any(c.isspace() or not c.isprintable() for c in url) or not url.isascii():
        return "holds white space or characters that do not belong in an address"
    if parts.username is not None or parts.password is not None:
        return "must not hold a user name or password"
    if parts.scheme == "http" and not allow_http and not _is_loopback(host):
        return "must begin with https:// (plain http is only accepted for this machine, or with allow_http: true)"
    return None


def check_token(token: str) -> str | None:
    """Return why a token cannot be sent in a header, None when it can. The text does not hold the token."""
    if not token or not token.isascii() or any(c.isspace() or not c.isprintable() for c in token):
        return "must be ASCII without white space"
    return None


def post(
    url: str,
    body: bytes,
    *,
    content_type: str,
    limits: PostLimits | None = None,
    headers: Mapping[str, str] | None = None,
) -> Reply:
    """Send one POST and return the reply, whatever its status; raise DeliveryError when there was no reply.

    `headers` are sent beside the usual ones; their values may be secrets, which no error shows.
    """
    limits = limits or PostLimits()
    parts = urlsplit(url)
    deadline = _Deadline(limits.seconds_max)
    try:
        with deadline:
            return _exchange(parts, body, {"Content-Type": content_type, **(headers or {})}, limits, deadline)
    except DeliveryError:
        raise
    except ssl.SSLCertVerificationError as error:
        raise DeliveryError(f"the receiver's certificate is not trusted: {error.verify_message}") from None
    except (OSError, http.client.HTTPException) as error:
        if deadline.passed:
            raise DeliveryError(f"the receiver did not answer within {limits.seconds_max:g} s") from None
        raise DeliveryError(f"cannot reach the receiver: {redact(_reason(error), url)}") from None


def post_or_raise(
    url: str,
    body: bytes,
    *,
    content_type: str,
    limits: PostLimits | None = None,
    headers: Mapping[str, str] | None = None,
) -> Reply:
    """Send one POST and return the reply when its status is 2xx; raise a DeliveryError that says what was answered."""
    reply = post(url, body, content_type=content_type, limits=limits, headers=headers)
    error = judge_reply(reply, url, now=time.time())
    if error is not None:
        raise error
    return reply


def judge_reply(reply: Reply, url: str, *, now: float) -> DeliveryError | None:
    """Map a status to None (2xx), try again (408, 425, 429, 5xx) or give up (everything else)."""
    if 200 <= reply.status < 300:
        return None
    text = redact(reply.body[: 8 * REPLY_SHOWN_CHARACTERS_MAX].decode("utf-8", "replace"), url)
    said = printable(text, REPLY_SHOWN_CHARACTERS_MAX)
    message = f"the receiver answered {reply.status}" + (f": {said}" if said else "")
    if reply.status in RETRIED_STATUSES or 500 <= reply.status < 600:
        return DeliveryError(message, retry_after_seconds=parse_retry_after(reply.retry_after, now=now))
    if 300 <= reply.status < 400:
        return DeliveryError(f"the receiver answered {reply.status}; redirects are not followed", permanent=True)
    return DeliveryError(message, permanent=True)


def parse_retry_after(value: str | None, *, now: float) -> float | None:
    """Return the seconds that a Retry-After header asks for (a number or an HTTP date), at most an hour; else None."""
    if value is None or len(value) > 100:
        return None
    text = value.strip()
    if text.isascii() and text.isdigit():
        return min(float(text), RETRY_AFTER_SECONDS_MAX)
    try:
        at = parsedate_to_datetime(text).timestamp()
    except (TypeError, ValueError, OverflowError):
        return None
    return min(max(at - now, 0.0), RETRY_AFTER_SECONDS_MAX)


def redact(text: str, url: str) -> str:
    """Cut the address, its path and every long part of it out of a text."""
    parts = urlsplit(url)
    secrets = {url, parts.path, parts.query, *parts.path.split("/"), *parts.query.replace("=", "&").split("&")}
    for secret in sorted((s for s in secrets if len(s) >= SECRET_CHARACTERS_MIN), key=len, reverse=True):
        text = text.replace(secret, "***")
    return text


class _Deadline:
    """Ends an exchange by shutting its socket down, since a socket's own timeout begins anew with every byte."""

    def __init__(self, seconds: float) -> None:
        self.passed = False
        self._seconds = seconds
        self._ends_at = time.monotonic() + seconds
        self._timer = threading.Timer(seconds, self._end)
        self._timer.daemon = True
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None

    @property
    def left_seconds(self) -> float:
        return max(self._ends_at - time.monotonic(), 0.001)

    def guard(self, connected: socket.socket) -> None:
        with self._lock:
            self._socket = connected
            if self.passed:
                raise TimeoutError

    def _end(self) -> None:
        with self._lock:
            self.passed = True
            if self._socket is not None:
                # Of the plain socket class on purpose: a TLS socket's own method would wait for the peer's goodbye.
                with contextlib.suppress(OSError):  # already closed: there is nothing left to end
                    socket.socket.shutdown(self._socket, socket.SHUT_RDWR)

    def __enter__(self) -> _Deadline:
        self._timer.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._timer.cancel()


def _exchange(
    parts: SplitResult, body: bytes, headers: Mapping[str, str], limits: PostLimits, deadline: _Deadline
) -> Reply:
    host = parts.hostname or ""
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    proxy = _proxy(parts.scheme, host)
    if proxy is None:
        connection = _direct(parts, host, limits, deadline)
    else:
        connection = _through_proxy(parts, host, proxy, deadline)
        if parts.scheme == "http":
            target = f"http://{parts.netloc}{target}"
    try:
        sent = {"Host": parts.netloc, "User-Agent": "ckptwatch", "Connection": "close", **headers}
        if parts.scheme == "http":
            sent |= _proxy_login(proxy)
        connection.request("POST", target, body=body, headers=sent)
        response = connection.getresponse()
        return Reply(
            status=response.status,
            body=_read_at_most(response, limits.reply_bytes_max),
            retry_after=response.getheader("Retry-After"),
        )
    finally:
        connection.close()


def _read_at_most(response: http.client.HTTPResponse, bytes_max: int) -> bytes:
    """Read the start of a body. The status has said all that counts, so a body that breaks off is no failure."""
    try:
        return response.read(bytes_max)
    except (OSError, http.client.HTTPException, ValueError):
        return b""


def _direct(parts: SplitResult, host: str, limits: PostLimits, deadline: _Deadline) -> http.client.HTTPConnection:
    """Connect to an address that was checked, so that no second look-up can give another one."""
    port = parts.port or (443 if parts.scheme == "https" else 80)
    connected = _connect(host, port, limits, deadline)
    try:
        deadline.guard(connected)
        if parts.scheme == "https":
            context = ssl.create_default_context()
            secured = context.wrap_socket(connected, server_hostname=host, do_handshake_on_connect=False)
            connected = secured
            deadline.guard(secured)
            secured.do_handshake()
    except BaseException:
        connected.close()
        raise
    connection = http.client.HTTPConnection(host, port)
    connection.sock = connected
    return connection


def _connect(host: str, port: int, limits: PostLimits, deadline: _Deadline) -> socket.socket:
    named = not _is_address(host) and not _is_loopback(host)
    last_error: OSError | None = None
    for family, kind, protocol, _, address in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM):
        if named and not limits.allow_private and not _is_public(str(address[0])):
            last_error = OSError("the host name stands for a private address, which is refused")
            continue
        connected = socket.socket(family, kind, protocol)
        try:
            connected.settimeout(deadline.left_seconds)
            connected.connect(address)
        except OSError as error:
            connected.close()
            last_error = error
        else:
            return connected
    raise last_error or OSError("the host name stands for no address")


def _through_proxy(
    parts: SplitResult, host: str, proxy: SplitResult, deadline: _Deadline
) -> http.client.HTTPConnection:
    """Connect by way of the proxy that the environment names (https_proxy, http_proxy, no_proxy)."""
    proxy_host, proxy_port = proxy.hostname or "", proxy.port or 80
    connection: http.client.HTTPConnection
    if parts.scheme == "https":
        connection = http.client.HTTPSConnection(
            proxy_host, proxy_port, timeout=deadline.left_seconds, context=ssl.create_default_context()
        )
        connection.set_tunnel(host, parts.port or 443, headers=_proxy_login(proxy))
    else:
        connection = http.client.HTTPConnection(proxy_host, proxy_port, timeout=deadline.left_seconds)
    connection.connect()
    deadline.guard(connection.sock)
    return connection


def _proxy(scheme: str, host: str) -> SplitResult | None:
    if _is_loopback(host) or urllib.request.proxy_bypass(host):
        return None
    address = urllib.request.getproxies().get(scheme)
    if not address:
        return None
    parts = urlsplit(address if "://" in address else f"http://{address}")
    if parts.scheme != "http":
        raise OSError("only http:// proxies are supported")
    return parts


def _proxy_login(proxy: SplitResult | None) -> dict[str, str]:
    if proxy is None or proxy.username is None:
        return {}
    login = f"{unquote(proxy.username)}:{unquote(proxy.password or '')}"
    return {"Proxy-Authorization": "Basic " + base64.b64encode(login.encode()).decode()}


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _is_loopback(host: str) -> bool:
    if host in ("localhost", "localhost."):
        return True
    return _is_address(host) and ipaddress.ip_address(host).is_loopback


def _is_public(address: str) -> bool:
    ip = ipaddress.ip_address(address.partition("%")[0])
    mapped = ip.ipv4_mapped if isinstance(ip, ipaddress.IPv6Address) else None
    return (mapped or ip).is_global


def _reason(error: OSError | http.client.HTTPException) -> str:
    if isinstance(error, TimeoutError):
        return "it did not answer in time"
    if isinstance(error, http.client.HTTPException):
        return f"it does not speak HTTP ({type(error).__name__})"
    return printable(error.strerror or str(error) or type(error).__name__, REPLY_SHOWN_CHARACTERS_MAX)
