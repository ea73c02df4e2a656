"""The notifier `log`: writes each message to the daemon's own log. It cannot fail and needs nothing."""

from __future__ import annotations

import logging
from typing import ClassVar

from pydantic import BaseModel, ConfigDict

from alerts.notifier import Message
from storage.records import Notification, Severity

LEVELS = {
    Severity.INFO.label: logging.INFO,
    Severity.WARNING.label: logging.WARNING,
    Severity.CRITICAL.label: logging.CRITICAL,
}

logger = logging.getLogger(__name__)


class LogNotifier:
    """Write messages to the log, at a level that matches the severity; a resolve is written as information."""

    kind: ClassVar[str] = "log"

    class Config(BaseModel):
        """Nothing to set."""

        model_config = ConfigDict(extra="forbid", frozen=True)

    def __init__(self, config: Config) -> None:
        self._config = config

    def send(self, notification: Notification, content: Message) -> None:
        """Write one line: title, text and facts."""
        level = logging.INFO if content.reason == "resolved" else LEVELS.get(content.severity, logging.WARNING)
        facts = "; ".join(f"{label}: {text}" for label, text in content.facts)
        logger.log(level, "%s. %s [%s] (%s)", content.title, content.text, facts, notification.deduplication_key)
