"""The notifier `webhook`: one JSON document a message, by POST, with a signature that proves where it comes from.

The signature is over the very bytes of the body, so a receiver has to check it before it parses them.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from typing import ClassVar

from pydantic import BaseModel, ConfigDict, Field, SecretStr, model_validator

from alerts.document import document
from alerts.notifier import SEND_SECONDS_MAX, Message
from alerts.transport import PostLimits, check_token, check_url, post_or_raise
from storage.records import Notification

SIGNATURE_HEADER = "X-Ckptwatch-Signature"
KEY_HEADER = "Idempotency-Key"


class WebhookNotifier:
    """Post one document for each transition of an alert; documents are never joined into a digest."""

    kind: ClassVar[str] = "webhook"
    joins: ClassVar[bool] = False

    class Config(BaseModel):
        """`url` may hold a token; `secret` signs the body; `bearer_token` is sent as an Authorization header."""

        model_config = ConfigDict(extra="forbid", frozen=True)

        url: SecretStr
        secret: SecretStr | None = None
        bearer_token: SecretStr | None = None
        allow_http: bool = False
        allow_private: bool = False
        timeout_seconds: float = Field(default=SEND_SECONDS_MAX, gt=0, le=SEND_SECONDS_MAX)

        @model_validator(mode="after")
        def _check(self) -> WebhookNotifier.Config:
            reason = check_url(self.url.get_secret_value(), allow_http=self.allow_http)
            if reason is not None:
                raise ValueError(f"url {reason}")
            token_reason = None if self.bearer_token is None else check_token(self.bearer_token.get_secret_value())
            if token_reason is not None:
                raise ValueError(f"bearer_token {token_reason}")
            return self

    def __init__(self, config: Config) -> None:
        self._config = config
        self._limits = PostLimits(seconds_max=config.timeout_seconds, allow_private=config.allow_private)

    def send(self, notification: Notification, content: Message) -> None:
        """Post the document; raise DeliveryError unless the receiver answers 2xx."""
        config = self._config
        body = json.dumps(document(notification, content), allow_nan=False).encode("ascii")
        headers = {KEY_HEADER: notification.deduplication_key}
        if config.secret is not None:
            headers[SIGNATURE_HEADER] = signature(body, config.secret.get_secret_value())
        if config.bearer_token is not None:
            headers["Authorization"] = f"Bearer {config.bearer_token.get_secret_value()}"
        post_or_raise(
            config.url.get_secret_value(), body, content_type="application/json", limits=self._limits, headers=headers
        )


def signature(body: bytes, secret: str) -> str:
    """Return "sha256=" and the HMAC-SHA256 of the body (RFC 2104) in hexadecimal."""
    return "sha256=" + hmac.new(secret.encode(), body, hashlib.sha256).hexdigest()
