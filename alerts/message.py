"""What a notification says, in plain words and before any receiver's markup. Pure.

Names of runs, tensors and paths come from files that anyone may have written: everything invisible or able to turn a
line around is written out here, once, so that no notifier has to think of it.
"""

from __future__ import annotations

import shlex
from datetime import UTC, datetime

from alerts.notifier import Message, printable, printable_path
from storage.records import Alert, AlertState, Notification, Severity

TITLE_CHARACTERS_MAX = 150  # Slack's limit for a header block, and a mail subject that a list still shows
TEXT_CHARACTERS_MAX = 1000
LABEL_CHARACTERS_MAX = 120
FACT_CHARACTERS_MAX = 500
FACTS_MAX = 30
OTHERS_SHOWN_MAX = 8

REASON_FIRING = "firing"
REASON_RESOLVED = "resolved"
REASON_REPEAT = "repeat"


def time_text(at: float) -> str:
    """Write a Unix time in UTC to the second, such as "2026-03-01 12:30:05 UTC"; "unknown" outside the calendar."""
    try:
        return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    except (OverflowError, ValueError, OSError):
        return "unknown"


def compose(notification: Notification, *, link: str | None = None, picture: bytes | None = None) -> Message:
    """Say what happened, in which run and at which step, what was hit, and from where training can go on.

    `link` is the address of the run's page and `picture` a PNG, None where there is none.
    """
    alert = notification.alert
    return Message(
        title=printable(_title(notification), TITLE_CHARACTERS_MAX),
        text=printable(_text(alert, notification.reason), TEXT_CHARACTERS_MAX),
        facts=tuple(_facts(notification)[:FACTS_MAX]),
        severity=alert.severity.label,
        reason=notification.reason,
        thread=notification.conversation,
        link=link,
        picture=picture,
    )


def _title(notification: Notification) -> str:
    alert, reason, about = notification.alert, notification.reason, notification.gathering
    label = alert.severity.label
    head = {REASON_RESOLVED: "Resolved", REASON_REPEAT: f"Still {label}"}.get(reason, label.capitalize())
    more = f" and {about.n_others} more" if about is not None and about.n_others else ""
    step = "" if alert.step is None else f" at step {alert.step}"
    return f"{head}: {alert.rule.replace('_', ' ')}{more} in {alert.run}{step}"


def _text(alert: Alert, reason: str) -> str:
    summary = alert.summary.strip() or "The rule gave no text."
    return f"This is over. It was: {summary}" if reason == REASON_RESOLVED else summary


def _facts(notification: Notification) -> list[tuple[str, str]]:
    alert = notification.alert
    facts = [("Run", printable(alert.run, FACT_CHARACTERS_MAX))]
    if alert.step is not None:
        facts.append(("Step", str(alert.step)))
    if alert.subject:
        if alert.subject.startswith("/"):
            facts.append(("Checkpoint", printable_path(alert.subject)))
        else:
            facts.append(("Tensor", printable(alert.subject, FACT_CHARACTERS_MAX)))
    facts += resume_facts(notification)
    facts += _first_cause(notification)
    facts.append(("Since", time_text(alert.opened_at)))
    if alert.resolved_at is not None:
        facts.append(("Resolved", time_text(alert.resolved_at)))
    facts += [
        (
            printable(label, LABEL_CHARACTERS_MAX),
            printable_path(text) if text.startswith("/") else printable(text, FACT_CHARACTERS_MAX),
        )
        for label, text in alert.details
    ]
    others = _others(notification)
    return [*facts[: FACTS_MAX - len(others)], *others]


def _first_cause(notification: Notification) -> list[tuple[str, str]]:
    """Return how the incident began, where that is not what the message says anyway."""
    if notification.gathering is None:
        return []
    incident, alert = notification.gathering.incident, notification.alert
    if (incident.rule, incident.step) == (alert.rule, alert.step):
        return []
    step = "" if incident.step is None else f" at step {incident.step}"
    text = f"{incident.rule.replace('_', ' ')}{step}: {incident.summary}"
    facts = [("First cause", printable(text, FACT_CHARACTERS_MAX))]
    if incident.tensor and incident.tensor != alert.subject:
        facts.append(("First bad tensor", printable(incident.tensor, FACT_CHARACTERS_MAX)))
    return facts


def _others(notification: Notification) -> list[tuple[str, str]]:
    """Return a line for each of the first few other alerts of the incident, and how many more there are."""
    about = notification.gathering
    if about is None:
        return []
    shown = about.others[:OTHERS_SHOWN_MAX]
    lines = [alert_line(a, REASON_RESOLVED if a.state is AlertState.RESOLVED else notification.reason) for a in shown]
    if about.n_others > len(shown):
        lines.append(("And", f"{about.n_others - len(shown)} more; `ckptwatch alerts` lists all"))
    return lines


def alert_line(alert: Alert, reason: str) -> tuple[str, str]:
    """Say in one line what an alert is: a label with severity, rule and step, and what it says."""
    head = "Resolved" if reason == REASON_RESOLVED else alert.severity.label.capitalize()
    step = "" if alert.step is None else f" at step {alert.step}"
    subject = f" ({alert.subject})" if alert.subject and alert.subject not in alert.summary else ""
    label = printable(f"{head}: {alert.rule.replace('_', ' ')}{step}", LABEL_CHARACTERS_MAX)
    return label, printable(alert.summary + subject, FACT_CHARACTERS_MAX)


def resume_facts(notification: Notification) -> list[tuple[str, str]]:
    """Return the facts that say from where training can go on."""
    if notification.last_good_path is None:
        return [("Last good checkpoint", "none known")]
    step = notification.last_good_step
    return [
        ("Last good checkpoint", "step unknown" if step is None else f"step {step}"),
        ("Resume from", printable_path(notification.last_good_path)),
        # Asked anew when it is run, so that an hour later it does not bring back what has gone bad since.
        ("Resume with", f'--resume "$(ckptwatch last-good {shlex.quote(printable_path(notification.alert.run))})"'),
    ]


def example_notification(notifier: str, now: float) -> Notification:
    """Return a made-up notification that says it is a test, for `notify test`."""
    alert = Alert(
        fingerprint="0" * 16,
        run="example-run",
        rule="test",
        severity=Severity.INFO,
        state=AlertState.FIRING,
        subject="layers.0.weight",
        step=1200,
        value=1.0,
        threshold=0.0,
        unit="",
        summary="This is a test message of ckptwatch. Nothing is wrong; alerts will arrive here.",
        details=(),
        opened_at=now,
        fired_at=now,
        resolved_at=None,
        last_seen_at=now,
        n_seen=1,
        episode=1,
    )
    return Notification(
        id=0,
        notifier=notifier,
        reason=REASON_FIRING,
        alert=alert,
        deduplication_key=f"test-{int(now * 1000):x}",
        last_good_step=1100,
        last_good_path="/path/to/checkpoint-1100",
        created_at=now,
        due_at=now,
        n_attempts=0,
        last_error=None,
    )
