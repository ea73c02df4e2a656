"""The notifier `alertmanager`: alerts to Prometheus Alertmanager by its API v2, which groups, inhibits and routes them.

Labels hold the identity of an alert and nothing that changes while it lasts; values, steps and paths are annotations.
Alertmanager forgets what it is not told again, so delivery re-sends what fires every `resend_seconds` and what is over
for five minutes, from the database. https://github.com/prometheus/alertmanager/blob/main/api/v2/openapi.yaml
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, ClassVar
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_validator, model_validator

from alerts.message import time_text
from alerts.notifier import SEND_SECONDS_MAX, Message, printable, printable_path
from alerts.transport import PostLimits, check_token, check_url, post_or_raise
from storage.records import Alert, AlertState, Notification, ToldAlert

PATH = "/api/v2/alerts"
LABEL_CHARACTERS_MAX = 200
ANNOTATION_CHARACTERS_MAX = 1000
BATCH_ALERTS_MAX = 64  # as many as Prometheus puts into one request by default
LABEL_NAME = "[a-zA-Z_][a-zA-Z0-9_]*"
OWN_LABELS = frozenset({"alertname", "run", "rule", "severity", "fingerprint"})


class AlertmanagerNotifier:
    """Post alerts; safe to repeat, since Alertmanager knows an alert by its labels."""

    kind: ClassVar[str] = "alertmanager"
    joins: ClassVar[bool] = False

    class Config(BaseModel):
        """`url` is the address of Alertmanager without the path of the API, for example http://127.0.0.1:9093.

        `labels` are added to every alert, for routes.
        """

        model_config = ConfigDict(extra="forbid", frozen=True)

        url: str
        username: str | None = Field(default=None, min_length=1)
        password: SecretStr | None = None
        bearer_token: SecretStr | None = None
        labels: Mapping[str, str] = Field(default_factory=dict, max_length=20)
        resend_seconds: float = Field(default=60.0, ge=1, le=240)
        allow_http: bool = False
        allow_private: bool = False
        timeout_seconds: float = Field(default=SEND_SECONDS_MAX, gt=0, le=SEND_SECONDS_MAX)

        @field_validator("labels")
        @classmethod
        def _check_labels(cls, value: Mapping[str, str]) -> Mapping[str, str]:
            for name in value:
                if re.fullmatch(LABEL_NAME, name) is None:
                    raise ValueError(f"label {name!r} must match {LABEL_NAME}")
                if name in OWN_LABELS:
                    raise ValueError(f"label {name} is set by ckptwatch itself")
            return value

        @model_validator(mode="after")
        def _check(self) -> AlertmanagerNotifier.Config:
            reason = check_url(self.url, allow_http=self.allow_http)
            if reason is not None:
                raise ValueError(f"url {reason}")
            if urlsplit(self.url).query or urlsplit(self.url).fragment:
                raise ValueError("url must have no query")
            if (self.username is None) != (self.password is None):
                raise ValueError("username and password must be given together")
            if self.password is not None and self.bearer_token is not None:
                raise ValueError("give either a password or a bearer_token")
            token_reason = None if self.bearer_token is None else check_token(self.bearer_token.get_secret_value())
            if token_reason is not None:
                raise ValueError(f"bearer_token {token_reason}")
            return self

    def __init__(self, config: Config) -> None:
        self._url = config.url.rstrip("/")
        if not self._url.endswith(PATH):
            self._url += PATH
        self._labels = dict(config.labels)
        self._limits = PostLimits(seconds_max=config.timeout_seconds, allow_private=config.allow_private)
        self._headers: dict[str, str] = {}
        if config.username is not None and config.password is not None:
            login = f"{config.username}:{config.password.get_secret_value()}"
            self._headers["Authorization"] = "Basic " + base64.b64encode(login.encode()).decode()
        elif config.bearer_token is not None:
            self._headers["Authorization"] = f"Bearer {config.bearer_token.get_secret_value()}"
        self.resend_seconds = config.resend_seconds

    def send(self, notification: Notification, content: Message) -> None:
        """Post one alert as it was when the message was queued; raise DeliveryError unless it was taken."""
        alert, good = notification.alert, notification.last_good_path
        self._post([posted(alert, labels=self._labels, link=content.link, last_good_path=good)])

    def resend(self, alerts: Sequence[ToldAlert], links: Mapping[str, str]) -> None:
        """Post the present state of alerts again, in batches; `links` are the addresses of runs' pages by run."""
        documents = [
            posted(told.alert, labels=self._labels, link=links.get(told.alert.run), last_good_path=told.last_good_path)
            for told in alerts
        ]
        for start in range(0, len(documents), BATCH_ALERTS_MAX):
            self._post(documents[start : start + BATCH_ALERTS_MAX])

    def _post(self, alerts: Sequence[Mapping[str, Any]]) -> None:
        body = json.dumps(alerts).encode("ascii")
        post_or_raise(self._url, body, content_type="application/json", limits=self._limits, headers=self._headers)


def posted(
    alert: Alert, *, labels: Mapping[str, str], link: str | None = None, last_good_path: str | None = None
) -> dict[str, Any]:
    """Return one alert as API v2 takes it.

    `endsAt` is given for what is over; for what fires it is left out, so that Alertmanager ends it by itself
    (`resolve_timeout`, 5 minutes) when nobody re-sends it.
    """
    annotations = {
        "summary": printable(alert.summary, ANNOTATION_CHARACTERS_MAX),
        "since": time_text(alert.opened_at),
    }
    if last_good_path is not None:
        annotations["last_good_checkpoint"] = printable_path(last_good_path)
    if alert.subject:
        annotations["subject"] = printable(alert.subject, ANNOTATION_CHARACTERS_MAX)
    for name, value in (("step", alert.step), ("value", alert.value), ("threshold", alert.threshold)):
        if value is not None:
            annotations[name] = f"{value:.6g}" if isinstance(value, float) else str(value)
    if alert.details:
        lines = (f"{label}: {text}" for label, text in alert.details)
        annotations["details"] = "\n".join(printable(line, ANNOTATION_CHARACTERS_MAX) for line in lines)
    document: dict[str, Any] = {
        "labels": {
            **labels,
            "alertname": "Ckptwatch" + "".join(part.capitalize() for part in alert.rule.split("_")),
            "run": printable(alert.run, LABEL_CHARACTERS_MAX),
            "rule": alert.rule,
            "severity": alert.severity.label,
            "fingerprint": alert.fingerprint,
        },
        "annotations": annotations,
        "startsAt": _time(alert.fired_at if alert.fired_at is not None else alert.opened_at),
    }
    if alert.state is AlertState.RESOLVED and alert.resolved_at is not None:
        document["endsAt"] = _time(alert.resolved_at)
    if link is not None:
        document["generatorURL"] = link
    return document


def _time(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
