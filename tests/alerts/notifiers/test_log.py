"""The log notifier writes one line at a fitting level."""

from __future__ import annotations

import logging

import pytest

from alerts.message import compose
from alerts.notifiers.log import LogNotifier
from storage.records import Severity
from tests.support.notifier_conformance import make_notification
from tests.support.stored import make_alert


@pytest.mark.parametrize(
    ("severity", "reason", "level"),
    [
        (Severity.CRITICAL, "firing", logging.CRITICAL),
        (Severity.WARNING, "repeat", logging.WARNING),
        (Severity.INFO, "firing", logging.INFO),
        (Severity.CRITICAL, "resolved", logging.INFO),
    ],
)
def test_a_message_is_one_line(caplog: pytest.LogCaptureFixture, severity: Severity, reason: str, level: int) -> None:
    alert = make_alert(severity=severity, subject="a\nb", summary="one\r\ntwo")
    notification = make_notification(alert=alert, reason=reason)
    with caplog.at_level(logging.INFO, logger="alerts.notifiers.log"):
        LogNotifier(LogNotifier.Config()).send(notification, compose(notification))
    assert [record.levelno for record in caplog.records] == [level]
    line = caplog.records[0].getMessage()
    assert line.isprintable()
    assert "one two" in line
    assert "/data/gpt/checkpoint-6.pt" in line
