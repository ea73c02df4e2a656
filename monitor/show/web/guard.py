"""Who may ask, and how: the ASGI layer around every route, errors and static files included.

A page on the local machine is reachable from any web site the user visits (DNS rebinding), so the Host header is
checked everywhere. Nothing here knows a route, reads a body or writes to the database.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import ipaddress
import ssl
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from monitor.show.web.logins import Logins
from monitor.web_config import WebConfigFile

REQUEST_BYTES_MAX = 8 * 1024  # the whole head of a request
AUTHORIZATION_CHARACTERS_MAX = 4096
PROBE_PATHS = frozenset({"/livez", "/readyz"})  # orchestrators cannot log in; these answer with one word

SECURITY_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'self'; object-src 'none'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class WebSettings:
    """How the page is served.

    `listen_host` is the address bound; `allowed_hosts` are further names under which it may be asked, without port
    ("*" turns the check off). `token` or (`username`, `password`) protect every route but the probes; None is open.
    `refresh_seconds` is how often the page asks again, 0 never. `web_config` adds TLS, users and headers.
    """

    listen_host: str = "127.0.0.1"
    allowed_hosts: tuple[str, ...] = ()
    token: str | None = field(default=None, repr=False)
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    refresh_seconds: int = 5
    web_config: WebConfigFile | None = None

    @property
    def is_protected(self) -> bool:
        """Say whether a request needs a token, a password or a client's certificate."""
        if self.web_config is not None and self.web_config.current().config.is_protected:
            return True
        return self.has_credentials

    @property
    def tls(self) -> Callable[[], ssl.SSLContext] | None:
        """Return what gives the context of a new connection, None where plain HTTP is spoken."""
        file = self.web_config
        if file is None or not file.has_tls:
            return None

        def newest() -> ssl.SSLContext:
            context = file.current().context
            assert context is not None
            return context

        return newest

    @property
    def has_credentials(self) -> bool:
        """Say whether there is a token or a password of our own."""
        return self.token is not None or self.password is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """Why a request is not answered: a status, one line that says what to do, further headers."""

    status: int
    reason: str
    headers: tuple[tuple[str, str], ...] = ()


LOGIN_WANTED = Refusal(
    status=401,
    reason="log in with the configured user and password, or send the token as a Bearer token",
    headers=(("www-authenticate", 'Basic realm="ckptwatch", charset="UTF-8"'),),
)


class Guard:
    """Wrap an ASGI app: refuse what is not a permitted read, and add the security headers to every answer."""

    def __init__(self, app: ASGIApp, settings: WebSettings) -> None:
        self._app = app
        self._settings = settings
        self._logins = Logins()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request; websockets and lifespan events are not used and ignored."""
        if scope["type"] != "http":
            return

        configured = None if self._settings.web_config is None else self._settings.web_config.current().config

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers.update(SECURITY_HEADERS)
                if configured is not None:
                    headers.update(configured.http_server_config.headers)
                headers.setdefault("Cache-Control", "no-store")
            await send(message)

        refusal = refuse(scope["method"], scope["path"], scope["headers"], self._settings)
        if configured is not None and configured.basic_auth_users:
            refusal = await self._refuse_strangers(refusal, scope, configured.basic_auth_users)
        if refusal is None:
            await self._app(scope, receive, send_with_headers)
            return
        body = b"" if scope["method"] == "HEAD" else f"{refusal.reason}\n".encode()
        headers = [("content-type", "text/plain; charset=utf-8"), ("content-length", str(len(body))), *refusal.headers]
        await send_with_headers(
            {
                "type": "http.response.start",
                "status": refusal.status,
                "headers": [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers],
            }
        )
        await send_with_headers({"type": "http.response.body", "body": body})

    async def _refuse_strangers(
        self, refusal: Refusal | None, scope: Scope, users: Mapping[str, str]
    ) -> Refusal | None:
        """Judge a request anew where users are known: one of them is as good as the token, and nobody else passes."""
        has_passed = refusal is None and (self._settings.has_credentials or scope["path"] in PROBE_PATHS)
        if has_passed or (refusal is not None and refusal.status != 401):
            return refusal
        given = [value.decode("latin-1") for name, value in scope["headers"] if name == b"authorization"]
        return None if len(given) == 1 and await self._logins.fit(given[0], users) else LOGIN_WANTED


def refuse(method: str, path: str, headers: Sequence[tuple[bytes, bytes]], settings: WebSettings) -> Refusal | None:
    """Return why a request must not be answered, None when it may; header names are lower case."""
    # The server's own limit only holds for a head that comes in pieces.
    if sum(len(name) + len(value) for name, value in headers) > REQUEST_BYTES_MAX:
        return Refusal(status=431, reason="the headers are too large")
    hosts = [value.decode("latin-1") for name, value in headers if name == b"host"]
    if len(hosts) != 1:
        return Refusal(status=400, reason="send exactly one Host header")
    if not host_is_allowed(hosts[0], settings):
        return Refusal(status=403, reason="this Host is not served here; add it to serve.allowed_hosts")
    if method not in {"GET", "HEAD"}:
        return Refusal(status=405, reason="only GET and HEAD are answered", headers=(("allow", "GET, HEAD"),))
    if settings.has_credentials and path not in PROBE_PATHS:
        given = [value.decode("latin-1") for name, value in headers if name == b"authorization"]
        if len(given) != 1 or not credentials_match(given[0], settings):
            return LOGIN_WANTED
    return None


def host_is_allowed(header: str, settings: WebSettings) -> bool:
    """Say whether a Host header names this server.

    Loopback names and addresses always do, as do the address listened on and `allowed_hosts`. When every address is
    listened on, any address written in digits does: a rebinding attacker needs a name. Port, case, one trailing dot
    and the brackets of IPv6 do not matter; anything that is no host at all is refused.
    """
    if "*" in settings.allowed_hosts:
        return True
    name = _host_name(header)
    if name is None:
        return False
    if name in {"localhost", _canonical(settings.listen_host), *map(_canonical, settings.allowed_hosts)}:
        return True
    address = _address(name)
    if address is None:
        return False
    listened = _address(_canonical(settings.listen_host))
    return address.is_loopback or (listened is not None and listened.is_unspecified)


def _host_name(header: str) -> str | None:
    """Return the canonical host of a Host header, None where it is malformed."""
    if header.startswith("["):
        host, bracket, port = header[1:].partition("]")
        if not bracket or _address(host) is None or (port and not _is_port(port)):
            return None
    else:
        host, colon, port = header.partition(":")
        if colon and not _is_port(f":{port}"):
            return None
    if not host or any(c in host for c in " /\\@?#%,;\t\"'<>"):
        return None
    return _canonical(host)


def _is_port(text: str) -> bool:
    return text[:1] == ":" and text[1:].isascii() and text[1:].isdecimal() and len(text) <= 6


def _canonical(host: str) -> str:
    name = host.removeprefix("[").removesuffix("]").removesuffix(".").lower()
    address = _address(name)
    return name if address is None else str(address)


def _address(name: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(name)
    except ValueError:
        return None


def credentials_match(authorization: str, settings: WebSettings) -> bool:
    """Say, in constant time, whether an Authorization header fits.

    A token is taken as Bearer or, since browsers only ask for a user and a password, as the password of any user.
    """
    if len(authorization) > AUTHORIZATION_CHARACTERS_MAX:
        return False
    scheme, _, value = authorization.partition(" ")
    if scheme.lower() == "bearer":
        return settings.token is not None and _equal(value.strip(), settings.token)
    if scheme.lower() != "basic":
        return False
    try:
        username, _, password = base64.b64decode(value.strip(), validate=True).decode().partition(":")
    except (binascii.Error, UnicodeDecodeError, ValueError):
        return False
    token_fits = settings.token is not None and _equal(password, settings.token)
    login_fits = (
        settings.username is not None
        and settings.password is not None
        and _equal(username, settings.username) & _equal(password, settings.password)
    )
    return token_fits or login_fits


def _equal(given: str, secret: str) -> bool:
    """Compare digests, so that neither content nor length shows in the time taken."""
    return hmac.compare_digest(_digest(given), _digest(secret))


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
