"""The section `export` of the configuration: where metrics go when Prometheus cannot come for them.

Models and their checks only; secrets stay references (`env:NAME` or `file:PATH`) until the daemon is built.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from importlib.util import find_spec
from typing import Self
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from alerts.transport import check_url

LABELS_MAX = 30


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class RemoteWriteConfig(_Section):
    """A receiver of Prometheus remote write 1.0 (Prometheus, Mimir, Thanos, VictoriaMetrics ...)."""

    url: str
    username: str | None = None
    password: str | None = None
    bearer_token: str | None = None
    labels: dict[str, str] = Field(default_factory=dict, max_length=LABELS_MAX)
    allow_http: bool = False
    allow_private: bool = False

    @model_validator(mode="after")
    def _check(self) -> Self:
        reason = check_url(self.url, allow_http=self.allow_http)
        if reason is not None:
            raise ValueError(f"url {reason}")
        if (self.username is None) != (self.password is None):
            raise ValueError("username and password belong together")
        if self.password is not None and self.bearer_token is not None:
            raise ValueError("give either a password or a bearer_token")
        if find_spec("cramjam") is None:
            raise ValueError("remote write needs a library; install it with: pip install 'ckptwatch[push]'")
        return self


class OtlpConfig(_Section):
    """A receiver of OTLP over HTTP; `headers` are references to secrets by the header's name."""

    endpoint: str
    headers: dict[str, str] = Field(default_factory=dict, max_length=LABELS_MAX)
    attributes: dict[str, str] = Field(default_factory=dict, max_length=LABELS_MAX)

    @model_validator(mode="after")
    def _check(self) -> Self:
        parts = urlsplit(self.endpoint)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("endpoint must be an address such as https://otlp.example.org/v1/metrics")
        if find_spec("opentelemetry") is None or find_spec("opentelemetry.exporter") is None:
            raise ValueError("OTLP needs a library; install it with: pip install 'ckptwatch[otlp]'")
        return self


class ExportConfig(_Section):
    """Where metrics are sent beside `/metrics`, and how often."""

    interval_seconds: float = Field(default=15.0, ge=1, le=3600)
    textfile: str | None = None
    remote_write: RemoteWriteConfig | None = None
    otlp: OtlpConfig | None = None

    @field_validator("textfile")
    @classmethod
    def _check_textfile(cls, value: str | None) -> str | None:
        if value is not None and not (os.path.isabs(value) and value.endswith(".prom")):
            raise ValueError("must be an absolute path that ends in .prom, in node_exporter's textfile directory")
        return value

    @property
    def names(self) -> tuple[str, ...]:
        """Return the names of the ways that are configured, as metrics call them."""
        return tuple(name for name in ("textfile", "remote_write", "otlp") if getattr(self, name) is not None)

    def secrets(self) -> Mapping[str, str]:
        """Return every reference to a secret by the path of its key below `export`."""
        found: dict[str, str] = {}
        if self.remote_write is not None:
            for key in ("password", "bearer_token"):
                reference = getattr(self.remote_write, key)
                if reference is not None:
                    found[f"remote_write.{key}"] = reference
        if self.otlp is not None:
            found |= {f"otlp.headers.{name}": reference for name, reference in self.otlp.headers.items()}
        return found


def secret_problems(section: object, resolve: Callable[[str], object]) -> Iterator[tuple[str, str]]:
    """Yield (path, message) for each secret of the section that `resolve` refuses with a ValueError."""
    try:
        config = ExportConfig.model_validate(section or {})
    except ValueError:
        return  # reported with the whole document
    for path, reference in config.secrets().items():
        try:
            resolve(reference)
        except ValueError as error:
            yield f"export.{path}", str(error)
