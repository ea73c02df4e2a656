"""The notifier `apprise`: any of the services that the library Apprise knows, by its address (extra `apprise`).

Apprise logs and returns only that a message failed, so every failure is tried again; its own log may hold addresses
and is not passed on. The library is imported when the notifier is built.
"""

from __future__ import annotations

import logging
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field, SecretStr, model_validator

from alerts.notifier import SEND_SECONDS_MAX, DeliveryError, Message
from storage.records import Notification

KINDS = {"critical": "failure", "warning": "warning", "info": "info"}


class AppriseNotifier:
    """Hand one message for each transition of an alert to Apprise, for one service a notifier."""

    kind: ClassVar[str] = "apprise"

    class Config(BaseModel):
        """`url` is a service's address as Apprise writes it, for example ntfy://topic; it holds the password.

        `attach_picture` sends the picture as a file where the service takes files.
        """

        model_config = ConfigDict(extra="forbid", frozen=True)

        url: SecretStr
        attach_picture: bool = False
        timeout_seconds: float = Field(default=SEND_SECONDS_MAX, gt=0, le=SEND_SECONDS_MAX)

        @model_validator(mode="after")
        def _check_url(self) -> AppriseNotifier.Config:
            if find_spec("apprise") is None:
                raise ValueError("the library is missing; install it with: pip install 'ckptwatch[apprise]'")
            if _service(self.url.get_secret_value(), self.timeout_seconds) is None:
                raise ValueError("url is not an address that Apprise understands")
            return self

    def __init__(self, config: Config) -> None:
        self._service = _service(config.url.get_secret_value(), config.timeout_seconds)
        self.shows_pictures = config.attach_picture

    def send(self, notification: Notification, content: Message) -> None:
        """Hand the message over; raise DeliveryError unless Apprise says that it was taken."""
        assert self._service is not None  # the configuration was checked
        lines = [content.text, "", *(f"{label}: {text}" for label, text in content.facts)]
        if content.link is not None:
            lines.append(content.link)
        kind = "success" if content.reason == "resolved" else KINDS.get(content.severity, "info")
        message: dict[str, Any] = {"title": content.title, "body": "\n".join(lines), "notify_type": kind}
        with tempfile.TemporaryDirectory(prefix="ckptwatch-") as directory:
            if content.picture is not None and self.shows_pictures:
                picture = Path(directory) / "statistic.png"
                picture.write_bytes(content.picture)
                message["attach"] = str(picture)
            if not self._service.notify(**message):
                raise DeliveryError(
                    f"Apprise could not deliver message {notification.deduplication_key[:12]} to the service"
                )


def _service(url: str, timeout_seconds: float) -> Any | None:
    """Return an Apprise object with the one service, None when the address means nothing to it."""
    import apprise  # noqa: PLC0415 - an extra, and 20 MiB

    logging.getLogger("apprise").setLevel(logging.CRITICAL)  # its lines may hold addresses
    asset = apprise.AppriseAsset(
        app_id="ckptwatch",
        app_desc="ckptwatch",
        app_url="",
        async_mode=False,
        interpret_escapes=False,
        http_redirects=0,
        service_timeout=timeout_seconds,
    )
    service = apprise.Apprise(asset=asset)
    return service if service.add(url) and len(service) == 1 else None
