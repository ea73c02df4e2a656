"""From findings to alerts: pending, firing, resolved. Pure: the state is what the database gave, nothing else.

It decides what happened to each alert and returns it; storing and notifying is the engine's work. A rule that could
not judge leaves its alerts as they are.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from storage.records import Alert, AlertState, Finding

FINGERPRINT_CHARACTERS = 16
DETAILS_MAX = 20


class Transition(StrEnum):
    """What happened to an alert; the reason that goes with every change."""

    OPENED = "opened"  # seen, not often enough to fire yet
    FIRED = "fired"
    ESCALATED = "escalated"  # was firing, now with a higher severity
    SEEN = "seen"  # nothing new but the latest numbers
    MISSED = "missed"  # not seen this time, not often enough to be over
    CLEARED = "cleared"  # was over before it fired
    RESOLVED = "resolved"


NOTIFIED = frozenset({Transition.FIRED, Transition.ESCALATED, Transition.RESOLVED})


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One alert's new state and the reason for it; `before` is None for an alert that has just opened."""

    transition: Transition
    alert: Alert
    before: Alert | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """One rule's judgement as the lifecycle sees it.

    `n_clean` is the number of snapshots in a row, this one included, after which a given alert would count as clean;
    it is asked only for alerts that were not seen this time. A `silent` rule changes nothing.
    """

    rule: str
    findings: tuple[Finding, ...]
    silent: bool
    for_snapshots: int = 1
    resolve_after_snapshots: int = 1


def fingerprint(rule: str, run: str, identity: str) -> str:
    """Return the identity of an alert: 16 hexadecimal digits of a SHA-256 over rule, run and identity."""
    parts = (rule, run, identity)
    text = "".join(f"{len(part.encode('utf-8', 'surrogatepass'))}:{part}" for part in parts)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:FINGERPRINT_CHARACTERS]


def advance(
    open_alerts: Sequence[Alert],
    evaluations: Sequence[Evaluation],
    *,
    now: float,
    n_clean: Callable[[Alert], int],
    last_episode: Callable[[str], int],
) -> list[Change]:
    """Return what happens to each alert of one run after its rules were evaluated.

    `open_alerts` are the run's pending and firing alerts. `n_clean(alert)` counts the clean evaluations in a row, this
    one included, since the alert was last seen. `last_episode(fingerprint)` is the number of times an alert with that
    fingerprint opened so far (0 for never). Alerts of rules without an evaluation are left alone.
    """
    by_fingerprint = {alert.fingerprint: alert for alert in open_alerts}
    changes: list[Change] = []
    for evaluation in evaluations:
        if evaluation.silent:
            continue
        seen: set[str] = set()
        for finding in evaluation.findings:
            key = fingerprint(finding.rule, finding.run, finding.identity)
            if key in seen:
                continue  # one rule, one identity, one alert: the first finding speaks
            seen.add(key)
            alert = by_fingerprint.get(key)
            if alert is None:
                changes.append(_open(key, finding, evaluation, now=now, episode=last_episode(key) + 1))
            else:
                changes.append(_see(alert, finding, evaluation, now=now))
        for alert in open_alerts:
            if alert.rule == evaluation.rule and alert.fingerprint not in seen:
                changes.append(_miss(alert, evaluation, now=now, n_clean=n_clean(alert)))
    return changes


def _open(key: str, finding: Finding, evaluation: Evaluation, *, now: float, episode: int) -> Change:
    fires = evaluation.for_snapshots <= 1
    alert = Alert(
        fingerprint=key,
        run=finding.run,
        rule=finding.rule,
        severity=finding.severity,
        state=AlertState.FIRING if fires else AlertState.PENDING,
        subject=finding.subject,
        step=finding.step,
        value=finding.value,
        threshold=finding.threshold,
        unit=finding.unit,
        summary=finding.summary,
        details=finding.details[:DETAILS_MAX],
        opened_at=now,
        fired_at=now if fires else None,
        resolved_at=None,
        last_seen_at=now,
        n_seen=1,
        episode=episode,
    )
    return Change(transition=Transition.FIRED if fires else Transition.OPENED, alert=alert, before=None)


def _see(alert: Alert, finding: Finding, evaluation: Evaluation, *, now: float) -> Change:
    """Take over the latest numbers; subject and step stay those with which the trouble began."""
    seen = replace(
        alert,
        severity=max(alert.severity, finding.severity),
        value=finding.value,
        threshold=finding.threshold,
        unit=finding.unit,
        summary=finding.summary,
        details=finding.details[:DETAILS_MAX],
        last_seen_at=now,
        n_seen=alert.n_seen + 1,
    )
    if alert.state is AlertState.PENDING:
        if seen.n_seen < evaluation.for_snapshots:
            return Change(transition=Transition.SEEN, alert=seen, before=alert)
        fired = replace(seen, state=AlertState.FIRING, fired_at=now)
        return Change(transition=Transition.FIRED, alert=fired, before=alert)
    rises = seen.severity > alert.severity
    return Change(transition=Transition.ESCALATED if rises else Transition.SEEN, alert=seen, before=alert)


def _miss(alert: Alert, evaluation: Evaluation, *, now: float, n_clean: int) -> Change:
    if alert.state is AlertState.PENDING:
        cleared = replace(alert, state=AlertState.RESOLVED, resolved_at=now, n_seen=0)
        return Change(transition=Transition.CLEARED, alert=cleared, before=alert)
    if n_clean >= max(evaluation.resolve_after_snapshots, 1):
        resolved = replace(alert, state=AlertState.RESOLVED, resolved_at=now, n_seen=0)
        return Change(transition=Transition.RESOLVED, alert=resolved, before=alert)
    return Change(transition=Transition.MISSED, alert=replace(alert, n_seen=0), before=alert)
