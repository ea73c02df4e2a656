"""One incident a run: the alerts that belong together, their first cause, and when that is news. Pure.

A collapse trips many rules, some at once and some a checkpoint later; people want to hear of it once, with what came
first. Warnings and criticals belong to the run's open incident from when they fire; an info is an observation and
stays on its own. It decides; storing and sending is the work of others.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from storage.records import Alert, AlertState, Gathering, Incident, Severity

SETTLED_SNAPSHOTS = 3  # so many snapshots after an incident last grew, what joins it is no longer its cascade
OTHERS_MAX = 24
FAR = 1 << 62  # where something has no place in the order

# What brings about what, when several rules hit in one checkpoint: what was done to the training, then what the
# gradients did, then what became of the weights, then what the log says of it. Others come after these.
CAUSES: tuple[str, ...] = (
    "unreadable_checkpoint",
    "layout_change",
    "resume_discontinuity",
    "hyperparameters",
    "similar_runs",
    "replica_mismatch",
    "impossible_adam_state",
    "nonfinite",
    "loss_scale_collapse",
    "gradient_explosion",
    "clip_saturation",
    "drift_spike",
    "update_ratio",
    "oscillation",
    "weight_explosion",
    "variance_range",
    "loss_spike",
    "log_contradiction",
)
_RANKS = {rule: rank for rank, rule in enumerate(CAUSES)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Occasion:
    """What is known when the alerts of a run have changed.

    `order` is the place of each tensor in the model, empty on a tick. `measured_at` are the times of the snapshots
    before the newest one. `is_tick` says that time has passed and no snapshot came.
    """

    run: str
    now: float
    order: Mapping[str, int]
    measured_at: Sequence[float]
    is_tick: bool


def belongs(alert: Alert) -> bool:
    """Say whether an alert is part of its run's incident now: it fires, and is more than an info."""
    return alert.state is AlertState.FIRING and alert.severity >= Severity.WARNING


def gather(current: Incident | None, members: Sequence[Alert], occasion: Occasion) -> Incident | None:
    """Return the run's incident as it is after its alerts changed, None where there is and was none.

    `current` is the open one. `members` are all alerts that belong to it now; those that do not name it have just
    joined. Without members it is over.
    """
    if not members:
        return None if current is None else _over(current, occasion.now)
    joined = joining(current, members)
    if current is None:
        return _opened(joined, occasion)
    if not joined:
        return _with_severities(current, members)
    grown = replace(current, changed_at=occasion.now, n_alerts=current.n_alerts + len(joined))
    # An alert that had to be seen twice before it fired may be older than what opened the incident.
    older = [a for a in joined if a.opened_at < current.opened_at and _is_before(a.step, current.step)]
    if older:
        first = min(older, key=lambda a: _place(a, occasion.order))
        tensor = _first_tensor(older, first, occasion.order)
        grown = replace(grown, rule=first.rule, step=first.step, tensor=tensor, summary=first.summary)
    return _with_severities(grown, members)


def joining(current: Incident | None, members: Iterable[Alert]) -> list[Alert]:
    """Return the alerts that do not name the incident yet."""
    return [a for a in members if a.incident is None or current is None or a.incident.id != current.id]


def news(
    incident: Incident, audible: Sequence[Alert], occasion: Occasion, *, grew_at: float | None, joined: frozenset[str]
) -> Alert | None:
    """Return the alert with which an incident is to be told of now, None when what is new need not be said.

    `audible` are the members that are not kept quiet and `joined` the keys of those that have just come; `grew_at` is
    when the incident last grew before (None for a new one). It is told when nobody was told yet, when it has become
    more severe than what was told, and when something as severe joins it after it had settled. What only follows from
    it is kept with it, and named in the next message.
    """
    if not audible:
        return None
    level = max(a.severity for a in audible)
    worst = [a for a in audible if a.severity == level]
    if incident.told_severity is None or level > incident.told_severity:
        return lead(worst, occasion.order)
    fresh = [a for a in worst if a.key in joined]
    if level < incident.told_severity or not fresh or grew_at is None:
        return None
    settled = occasion.is_tick or sum(at > grew_at for at in occasion.measured_at) >= SETTLED_SNAPSHOTS
    return lead(fresh, occasion.order) if settled else None


def lead(alerts: Sequence[Alert], order: Mapping[str, int]) -> Alert:
    """Return the alert that speaks for several: of the most severe ones, the cause before what follows from it."""
    return min(alerts, key=lambda a: (-a.severity, *_place(a, order)))


def gathering(incident: Incident, speaker: Alert, alerts: Iterable[Alert]) -> Gathering:
    """Return the incident as a message tells of it that speaks of one alert first."""
    others = sorted((a for a in alerts if a.key != speaker.key), key=lambda a: (-a.severity, *_place(a, {})))
    return Gathering(incident=incident, others=tuple(others[:OTHERS_MAX]), n_others=len(others))


def _opened(joined: Sequence[Alert], occasion: Occasion) -> Incident:
    first = min(joined, key=lambda a: _place(a, occasion.order))
    return Incident(
        id=0,
        run=occasion.run,
        state=AlertState.FIRING,
        severity=max(a.severity for a in joined),
        told_severity=None,
        rule=first.rule,
        step=first.step,
        tensor=_first_tensor(joined, first, occasion.order),
        summary=first.summary,
        opened_by=first.key,
        opened_at=occasion.now,
        changed_at=occasion.now,
        resolved_at=None,
        n_alerts=len(joined),
    )


def _over(current: Incident, now: float) -> Incident:
    return replace(current, state=AlertState.RESOLVED, resolved_at=now)


def _with_severities(incident: Incident, members: Sequence[Alert]) -> Incident:
    """Let what was told hold only as far as it still fires: when the worst comes back, that is news."""
    level = max(a.severity for a in members)
    told = incident.told_severity
    return replace(
        incident,
        severity=max(incident.severity, level),
        told_severity=None if told is None else min(told, level),
    )


def _place(alert: Alert, order: Mapping[str, int]) -> tuple[int, int, int, int, str, str]:
    """Return where an alert stands: the earlier step first, the cause before its effect, the order in the model."""
    return (
        FAR if alert.step is None else alert.step,
        _RANKS.get(alert.rule, len(CAUSES)),
        -alert.severity,
        order.get(alert.subject, FAR),
        alert.rule,
        alert.fingerprint,
    )


def _first_tensor(alerts: Sequence[Alert], first: Alert, order: Mapping[str, int]) -> str:
    named = [a.subject for a in alerts if a.step == first.step and a.subject in order]
    if named:
        return min(named, key=lambda name: order[name])
    return "" if first.subject.startswith("/") else first.subject


def _is_before(step: int | None, other: int | None) -> bool:
    return step is not None and other is not None and step < other
