"""The page of alerts as display values: incidents with evidence, what was sent to whom, silences; pure."""

from __future__ import annotations

from dataclasses import dataclass

from monitor.show.closer_views import Happenings, IncidentView, MessageView
from monitor.show.visible_text import shortened
from monitor.show.web import formatting
from monitor.show.web.addresses import run_url, tensor_url
from storage.records import Alert, AlertState

TEXT_CHARACTERS_MAX = 400
EVIDENCE_MAX = 20
MESSAGES_MAX = 30


@dataclass(frozen=True, slots=True, kw_only=True)
class EvidenceLine:
    """One alert of an incident as shown."""

    tone: str
    rule: str
    summary: str
    state: str
    step: str
    value: str
    threshold: str


@dataclass(frozen=True, slots=True, kw_only=True)
class MessageLine:
    """One message as shown; `tone` is good, warning or critical."""

    tone: str
    receiver: str
    what: str
    state: str
    when: str
    error: str


@dataclass(frozen=True, slots=True, kw_only=True)
class IncidentBlock:
    """One incident as shown; `tensor` is "" where none was named."""

    tone: str
    state: str
    run: str
    run_url: str
    title: str
    step: str
    tensor: str
    tensor_url: str
    opened: str
    lasted: str
    evidence: tuple[EvidenceLine, ...]
    n_evidence_more: int
    messages: tuple[MessageLine, ...]
    told: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SilenceLine:
    """One silence as shown."""

    runs: str
    rules: str
    ends: str
    comment: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AlertsPage:
    """The page as shown."""

    incidents: tuple[IncidentBlock, ...]
    silences: tuple[SilenceLine, ...]
    n_open: int


def alerts_page(found: Happenings, now: float) -> AlertsPage:
    """Return the page at the Unix time `now`."""
    return AlertsPage(
        incidents=tuple(_incident(view, now) for view in found.incidents),
        silences=tuple(
            SilenceLine(
                runs=silence.runs,
                rules=silence.rules,
                ends=f"in {formatting.duration(silence.ends_at - now)}",
                comment=shortened(silence.comment, TEXT_CHARACTERS_MAX),
            )
            for silence in found.silences
        ),
        n_open=sum(view.incident.state is AlertState.FIRING for view in found.incidents),
    )


def _incident(view: IncidentView, now: float) -> IncidentBlock:
    incident = view.incident
    is_over = incident.resolved_at is not None
    ended = now if incident.resolved_at is None else incident.resolved_at
    return IncidentBlock(
        tone="quiet" if is_over else incident.severity.label,
        state="over" if is_over else incident.severity.label,
        run=incident.run,
        run_url=run_url(incident.run),
        title=shortened(incident.summary, TEXT_CHARACTERS_MAX),
        step="" if incident.step is None else formatting.integer(incident.step),
        tensor=incident.tensor,
        tensor_url=tensor_url(incident.run, incident.tensor) if incident.tensor else "",
        opened=formatting.ago(incident.opened_at, now),
        lasted=formatting.duration(ended - incident.opened_at),
        evidence=tuple(_evidence(alert) for alert in view.alerts[:EVIDENCE_MAX]),
        n_evidence_more=max(0, len(view.alerts) - EVIDENCE_MAX),
        messages=tuple(_message(message, now) for message in view.messages[-MESSAGES_MAX:]),
        told=_told(view),
    )


def _told(view: IncidentView) -> str:
    sent = sorted({message.notifier for message in view.messages if message.state == "sent"})
    waiting = sorted({message.notifier for message in view.messages if message.state == "pending"})
    lost = sorted({message.notifier for message in view.messages if message.state == "dead"})
    parts = [f"told {', '.join(sent)}"] if sent else []
    parts += [f"waiting for {', '.join(waiting)}"] if waiting else []
    parts += [f"given up on {', '.join(lost)}"] if lost else []
    return "; ".join(parts) or "nobody was told"


def _evidence(alert: Alert) -> EvidenceLine:
    return EvidenceLine(
        tone=alert.severity.label,
        rule=alert.rule,
        summary=shortened(alert.summary, TEXT_CHARACTERS_MAX),
        state=alert.state.value,
        step="" if alert.step is None else formatting.integer(alert.step),
        value=formatting.number(alert.value),
        threshold=formatting.number(alert.threshold),
    )


def _message(message: MessageView, now: float) -> MessageLine:
    tone = {"sent": "good", "dead": "critical"}.get(message.state, "warning")
    tries = f" after {message.n_attempts} tries" if message.n_attempts > 1 else ""
    state = {"sent": "sent", "dead": "given up", "pending": "waiting"}.get(message.state, message.state)
    return MessageLine(
        tone=tone,
        receiver=message.notifier,
        what=message.reason,
        state=state + tries,
        when=formatting.ago(message.at, now),
        error="" if message.state == "sent" else shortened(message.error, TEXT_CHARACTERS_MAX),
    )
