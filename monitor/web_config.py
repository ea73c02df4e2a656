"""The web configuration file of Prometheus' exporters: TLS and basic authentication in one YAML file.

The same file as for node_exporter and the others, so that one file does for all of a machine:
https://github.com/prometheus/exporter-toolkit/blob/master/docs/web-configuration.md. What cannot be honoured is refused
with a reason, never ignored. It serves nothing and checks no password.
"""

from __future__ import annotations

import logging
import os
import re
import ssl
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

FILE_BYTES_MAX = 1_000_000
USERS_MAX = 1000
BCRYPT_COST_MAX = 16  # one check takes about a second then, and doubles with every step
BCRYPT = re.compile(r"\$2[aby]\$(\d\d)\$[./A-Za-z0-9]{53}")
HEADERS = (
    "Content-Security-Policy",
    "Strict-Transport-Security",
    "X-Content-Type-Options",
    "X-Frame-Options",
    "X-XSS-Protection",
)
VERSIONS = {"TLS12": ssl.TLSVersion.TLSv1_2, "TLS13": ssl.TLSVersion.TLSv1_3}
CLIENT_AUTH = {
    "NoClientCert": ssl.CERT_NONE,
    "VerifyClientCertIfGiven": ssl.CERT_OPTIONAL,
    "RequireAndVerifyClientCert": ssl.CERT_REQUIRED,
}

logger = logging.getLogger(__name__)


class WebConfigError(Exception):
    """The file cannot be used; `problems` are (key's path within the file, "" for the file itself; what to do)."""

    def __init__(self, problems: Sequence[tuple[str, str]]) -> None:
        super().__init__("; ".join(f"{path}: {message}" if path else message for path, message in problems))
        self.problems = tuple(problems)


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class TlsServerConfig(_Section):
    """`tls_server_config`: paths are relative to the file; without a `client_ca_file` no client is asked for one."""

    cert_file: str = Field(min_length=1)
    key_file: str = Field(min_length=1)
    client_auth_type: str = "NoClientCert"
    client_ca_file: str = ""
    min_version: str = "TLS12"
    max_version: str = "TLS13"

    @field_validator("client_auth_type")
    @classmethod
    def _check_client_auth(cls, value: str) -> str:
        if value not in CLIENT_AUTH:
            raise ValueError(
                f"must be one of {', '.join(CLIENT_AUTH)}; a certificate that nobody verifies protects nothing"
            )
        return value

    @field_validator("min_version", "max_version")
    @classmethod
    def _check_version(cls, value: str) -> str:
        if value not in VERSIONS:
            raise ValueError("must be TLS12 or TLS13; older versions are broken")
        return value

    @model_validator(mode="after")
    def _check(self) -> TlsServerConfig:
        if VERSIONS[self.min_version] > VERSIONS[self.max_version]:
            raise ValueError("min_version must not be above max_version")
        if (self.client_auth_type == "NoClientCert") != (self.client_ca_file == ""):
            raise ValueError("client_ca_file and a client_auth_type that verifies belong together")
        return self


class HttpServerConfig(_Section):
    """`http_server_config`: `http2` is accepted and without effect, since HTTP/1.1 is spoken; `headers` are sent."""

    http2: bool = True
    headers: Mapping[str, str] = {}

    @field_validator("headers")
    @classmethod
    def _check_headers(cls, value: Mapping[str, str]) -> Mapping[str, str]:
        for name, text in value.items():
            if name not in HEADERS:
                raise ValueError(f"{name[:60]!r} cannot be set; there are {', '.join(HEADERS)}")
            if not text.isascii() or not text.isprintable():
                raise ValueError(f"{name} must be printable ASCII")
        return value


class WebConfig(_Section):
    """The whole file; `basic_auth_users` are user names with the bcrypt hash of their password."""

    tls_server_config: TlsServerConfig | None = None
    http_server_config: HttpServerConfig = HttpServerConfig()
    basic_auth_users: Mapping[str, str] = Field(default={}, max_length=USERS_MAX, repr=False)

    @field_validator("basic_auth_users")
    @classmethod
    def _check_users(cls, value: Mapping[str, str]) -> Mapping[str, str]:
        for user, hashed in value.items():
            if not user or ":" in user:
                raise ValueError("a user's name must not be empty and must not hold a colon")
            found = BCRYPT.fullmatch(hashed)
            if found is None:
                raise ValueError(f"the value of {user!r} is no bcrypt hash; make one with: htpasswd -nBC 10 {user}")
            if not 4 <= int(found[1]) <= BCRYPT_COST_MAX:
                raise ValueError(f"the cost of the hash of {user!r} must be from 4 to {BCRYPT_COST_MAX}")
        return value

    @property
    def is_protected(self) -> bool:
        """Say whether a client has to prove who it is."""
        tls = self.tls_server_config
        return bool(self.basic_auth_users) or (tls is not None and tls.client_auth_type == "RequireAndVerifyClientCert")


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedWebConfig:
    """A file as it was read: its contents, the context made of its certificates (None without TLS), its `stamp`."""

    config: WebConfig
    context: ssl.SSLContext | None = field(repr=False)
    stamp: tuple[tuple[int, ...], ...]


class WebConfigFile:
    """A web configuration file that is read again when it, a certificate or a key has changed.

    A change that cannot be used is logged once and the last good state stays: half a file must neither open the door
    nor shut everybody out. Safe to use from any thread.
    """

    def __init__(self, path: str) -> None:
        """Read the file; raises WebConfigError."""
        self._path = Path(path)
        self._lock = threading.Lock()
        self._loaded = load(self._path)
        self._refused: tuple[tuple[int, ...], ...] | None = None

    @property
    def has_tls(self) -> bool:
        """Say whether the file asks for TLS; that cannot change while the port is open."""
        return self._loaded.context is not None

    def current(self) -> LoadedWebConfig:
        """Return what the file says now."""
        with self._lock:
            stamp = _stamp(self._path, self._loaded.config)
            if stamp not in (self._loaded.stamp, self._refused):
                try:
                    self._take(load(self._path))
                except WebConfigError as error:
                    self._refused = stamp
                    # No traceback: what is wrong is in the file, and the message says it.
                    logger.error("%s was changed and cannot be used, the old one stays: %s", self._path, error)  # noqa: TRY400
            return self._loaded

    def _take(self, fresh: LoadedWebConfig) -> None:
        if (fresh.context is None) != (self._loaded.context is None):
            raise WebConfigError([("tls_server_config", "TLS can only be switched on or off by a restart")])
        if self._loaded.config.is_protected and not fresh.config.is_protected:
            raise WebConfigError([("", "the last protection can only be taken away by a restart")])
        self._loaded = fresh
        self._refused = None
        logger.info("%s was read again", self._path)


def check_web_config(path: str | None) -> tuple[WebConfig, tuple[str, ...]]:
    """Return what a file says and everything that is wrong with it; None for a path means no file."""
    if path is None:
        return WebConfig(), ()
    try:
        return load(Path(path)).config, ()
    except WebConfigError as error:
        return WebConfig(), tuple(f"{key}: {text}" if key else text for key, text in error.problems)


def load(path: Path) -> LoadedWebConfig:
    """Read a file and its certificates; raise WebConfigError with every reason. No secret is repeated."""
    config = _parse(path)
    stamp = _stamp(path, config)
    tls = config.tls_server_config
    return LoadedWebConfig(config=config, context=None if tls is None else _context(tls, path.parent), stamp=stamp)


def _parse(path: Path) -> WebConfig:
    try:
        with path.open("rb") as stream:
            text = stream.read(FILE_BYTES_MAX + 1)
        document = yaml.safe_load(text.decode()) if len(text) <= FILE_BYTES_MAX else None
    except OSError as error:
        raise WebConfigError([("", f"cannot read {path}: {error.strerror}")]) from None
    except (yaml.YAMLError, UnicodeDecodeError):
        raise WebConfigError([("", f"{path} is not valid YAML")]) from None
    if document is not None and not isinstance(document, dict):
        raise WebConfigError([("", f"{path} must hold sections such as `tls_server_config:`")])
    if len(text) > FILE_BYTES_MAX:
        raise WebConfigError([("", f"{path} is larger than {FILE_BYTES_MAX} bytes")])
    known = {key: value for key, value in (document or {}).items() if value is not None}
    try:
        return WebConfig.model_validate(known)
    except ValidationError as error:
        found = error.errors(include_input=False, include_url=False, include_context=False)
        raise WebConfigError([_problem(item) for item in found]) from None


def _problem(item: Any) -> tuple[str, str]:
    path = ".".join(str(part) for part in item["loc"])
    if item["type"] == "extra_forbidden":
        return path, "is not supported here; leave it out"
    message = item["msg"].removeprefix("Value error, ")
    return path, message[:1].lower() + message[1:]


def _context(tls: TlsServerConfig, directory: Path) -> ssl.SSLContext:
    problems = []
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = VERSIONS[tls.min_version]
    context.maximum_version = VERSIONS[tls.max_version]
    try:
        # A key with a pass phrase would make the library ask for it on the terminal.
        context.load_cert_chain(directory / tls.cert_file, directory / tls.key_file, password=lambda: "")
    except (OSError, ValueError) as error:
        files = f"{directory / tls.cert_file} and {directory / tls.key_file}"
        problems.append(("tls_server_config.cert_file", f"{files} are no certificate with its key: {_reason(error)}"))
    if tls.client_ca_file:
        try:
            context.load_verify_locations(directory / tls.client_ca_file)
        except (OSError, ValueError) as error:
            problems.append(("tls_server_config.client_ca_file", f"{directory / tls.client_ca_file}: {_reason(error)}"))
    if problems:
        raise WebConfigError(problems)
    context.verify_mode = CLIENT_AUTH[tls.client_auth_type]
    return context


def _reason(error: OSError | ValueError) -> str:
    if isinstance(error, ssl.SSLError):
        return f"it cannot be used ({error.reason or 'not in PEM format'})".lower().replace("_", " ")
    return getattr(error, "strerror", None) or str(error)


def _stamp(path: Path, config: WebConfig) -> tuple[tuple[int, ...], ...]:
    """Return what changes when one of the files does; a file that is not there counts as well."""
    tls = config.tls_server_config
    others = () if tls is None else (tls.cert_file, tls.key_file, tls.client_ca_file)
    stamps: list[tuple[int, ...]] = []
    for file in (path, *(path.parent / name for name in others if name)):
        try:
            status = os.stat(file)
        except OSError:
            stamps.append((0,))
        else:
            stamps.append((status.st_ino, status.st_size, status.st_mtime_ns))
    return tuple(stamps)
