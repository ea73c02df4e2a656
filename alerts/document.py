"""One message as a JSON document for programs: what `webhook` posts and `command` gets on standard input. Pure.

The document is a promise (docs/notifiers/webhook.schema.json): under the same `version` keys are added, never renamed
or removed. Names are passed on as they are; showing them safely is the receiver's work.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from alerts.notifier import Message
from storage.records import Alert, Gathering, Notification

VERSION = 1
TEXT_CHARACTERS_MAX = 4096


def document(notification: Notification, content: Message) -> dict[str, Any]:
    """Return the document of one message; times are RFC 3339 in UTC, unknown values null."""
    alert = notification.alert
    return {
        "version": VERSION,
        "reason": notification.reason,
        "deduplication_key": notification.deduplication_key,
        "title": content.title,
        "text": content.text,
        "link": content.link,
        "alert": _alert(alert),
        "incident": None if notification.gathering is None else _incident(notification.gathering),
        "last_good": None
        if notification.last_good_path is None
        else {"step": notification.last_good_step, "path": _cut(notification.last_good_path)},
    }


def _alert(alert: Alert) -> dict[str, Any]:
    return {
        "fingerprint": alert.fingerprint,
        "episode": alert.episode,
        "run": _cut(alert.run),
        "rule": alert.rule,
        "severity": alert.severity.label,
        "state": alert.state.value,
        "subject": _cut(alert.subject),
        "step": alert.step,
        "value": alert.value,
        "threshold": alert.threshold,
        "unit": alert.unit,
        "summary": _cut(alert.summary),
        "details": [{"label": _cut(label), "text": _cut(text)} for label, text in alert.details],
        "opened_at": _time(alert.opened_at),
        "fired_at": _time(alert.fired_at),
        "resolved_at": _time(alert.resolved_at),
    }


def _incident(gathering: Gathering) -> dict[str, Any]:
    incident = gathering.incident
    return {
        "id": incident.id,
        "conversation": incident.opened_by,
        "state": incident.state.value,
        "severity": incident.severity.label,
        "rule": incident.rule,
        "step": incident.step,
        "tensor": _cut(incident.tensor),
        "summary": _cut(incident.summary),
        "opened_at": _time(incident.opened_at),
        "resolved_at": _time(incident.resolved_at),
        "n_alerts": 1 + gathering.n_others,
        "others": [
            {
                "fingerprint": alert.fingerprint,
                "episode": alert.episode,
                "rule": alert.rule,
                "severity": alert.severity.label,
                "state": alert.state.value,
                "subject": _cut(alert.subject),
                "step": alert.step,
                "summary": _cut(alert.summary),
            }
            for alert in gathering.others
        ],
    }


def _cut(text: str) -> str:
    """Cut a text that a file may have made long, and replace what no decoder of UTF-8 would accept."""
    return text[:TEXT_CHARACTERS_MAX].encode("utf-8", "backslashreplace").decode("utf-8")


def _time(at: float | None) -> str | None:
    if at is None:
        return None
    try:
        return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    except (OverflowError, ValueError, OSError):
        return None
