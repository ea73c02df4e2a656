"""What people are to be told, and of what: alerts into incidents, incidents into the outbox. Sends nothing.

One incident is one conversation: a message when it opens, one when it becomes more severe, repeats while it lasts, one
when all of it is over. An info, which belongs to no incident, is told on its own while no incident is open.
"""

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING

from alerts.incident import Occasion, belongs, gather, gathering, joining, lead, news
from alerts.lifecycle import NOTIFIED, Change, Transition
from alerts.message import REASON_FIRING, REASON_REPEAT, REASON_RESOLVED
from alerts.quiet import MaintenanceWindow, quiet_reason
from storage import queries, telling, writer
from storage.records import (
    Alert,
    AlertState,
    Gathering,
    Incident,
    Notification,
    Severity,
    Silence,
    StoredSnapshot,
)

if TYPE_CHECKING:
    from sqlalchemy.orm import Session  # the name of a type only; sessions are made and used up in storage

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """One notifier by name, and from which severity on it is told.

    `wait_seconds` is how long a new alert waits for others of its run, so that they go out as one message.
    """

    notifier: str
    severity_min: Severity = Severity.WARNING
    send_resolved: bool = True
    wait_seconds: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Announced:
    """What was put into the outbox; `quiet` maps an alert's fingerprint to the reason why nobody was told of it."""

    n_enqueued: int = 0
    quiet: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Repeat:
    """One repeat that is due: the `number`-th interval since it began; `about` is None for an alert on its own."""

    alert: Alert
    about: Gathering | None
    number: int


class Announcer:
    """Keeps the incidents of runs and fills the outbox; its only memory is the database."""

    def __init__(
        self,
        routes: Sequence[Route],
        *,
        windows: Sequence[MaintenanceWindow] = (),
        repeat_interval_seconds: float | None = None,
    ) -> None:
        self._routes = tuple(routes)
        self._windows = tuple(windows)
        self._repeat_interval_seconds = repeat_interval_seconds
        self._severity_min = min((route.severity_min for route in routes), default=None)
        self._repeated: dict[str, int] = {}  # spares asking the outbox for a repeat that is in it already

    def apply(
        self,
        session: Session,
        changes: Sequence[Change],
        before: Sequence[Alert],
        occasion: Occasion,
        good: StoredSnapshot | None,
    ) -> Announced:
        """Store what happened to a run's alerts, move its incident on, and tell of both.

        `before` are the run's open alerts as they were before the changes.
        """
        now = occasion.now
        quiet_of = self._quiet(session, now)
        current = queries.open_incident(session, occasion.run)
        members = [a for a in _after(before, changes) if belongs(a)]
        incident = gather(current, members, occasion)
        if incident is not None and (incident != current or not incident.id):
            incident = writer.save_incident(session, incident, now)
        joined = {a.key for a in joining(current, members)}
        saved = {c.alert.key: c.alert for c in changes} | {a.key: a for a in members if a.key in joined}
        for key, alert in saved.items():
            writer.save_alert(session, replace(alert, incident=incident) if key in joined else alert)
        quiet = {
            c.alert.fingerprint: reason
            for c in changes
            if c.transition in NOTIFIED and (reason := quiet_of(c.alert)) is not None
        }
        for change in changes:
            if change.alert.fingerprint in quiet and change.transition in NOTIFIED:
                logger.info(
                    "nobody is told of %s in %s: %s", change.alert.rule, occasion.run, quiet[change.alert.fingerprint]
                )
        n_enqueued = 0
        if incident is not None:
            audible = [a for a in members if quiet_of(a) is None]
            if incident.state is AlertState.RESOLVED:
                n_enqueued += self._tell_end(session, incident, quiet_of, good, now)
            else:
                speaker = news(
                    incident,
                    audible,
                    occasion,
                    grew_at=None if current is None else current.changed_at,
                    joined=frozenset(joined),
                )
                n_enqueued += self._tell_news(session, incident, speaker, audible, occasion, good)
        n_enqueued += self._tell_infos(session, changes, quiet, incident, good, now)
        return Announced(n_enqueued=n_enqueued, quiet=quiet)

    def has_news(
        self, session: Session, changes: Sequence[Change], before: Sequence[Alert], occasion: Occasion
    ) -> bool:
        """Say whether `apply` would write anything: something changed, or a silence is over that held news back."""
        if changes:
            return True
        members = [a for a in before if belongs(a)]
        current = queries.open_incident(session, occasion.run)
        if current is None:
            return bool(members)
        if not members or joining(current, members):
            return True
        if self._severity_min is None:
            return False
        quiet_of = self._quiet(session, occasion.now)
        audible = [a for a in members if quiet_of(a) is None]
        speaker = news(current, audible, occasion, grew_at=current.changed_at, joined=frozenset())
        return speaker is not None and speaker.severity >= self._severity_min

    def untold_infos(self, session: Session, run: str, now: float, ending: set[str]) -> list[Alert]:
        """Return the firing alerts of no incident that some route wants and nobody was told of, unless that is meant.

        None while an incident is open: then an info is not what people need to hear.
        """
        if self._severity_min is None or queries.open_incident(session, run) is not None:
            return []
        quiet_of = self._quiet(session, now)
        return [
            alert
            for alert in telling.untold_alerts(session, run)
            if not belongs(alert)
            and alert.severity >= self._severity_min
            and alert.fingerprint not in ending
            and quiet_of(alert) is None
        ]

    def tell_infos(self, session: Session, alerts: Sequence[Alert], good: StoredSnapshot | None, now: float) -> int:
        """Tell of alerts on their own; return how many messages that made."""
        return sum(self._fire(session, alert, None, alert.severity.label, good, now) for alert in alerts)

    def due_repeats(self, session: Session, run: str, now: float, ending: set[str]) -> list[Repeat]:
        """Return what still fires and is to be said again: the incident, and alerts on their own."""
        interval = self._repeat_interval_seconds
        if interval is None or interval <= 0 or not self._routes:
            return []
        quiet_of = self._quiet(session, now)
        alerts = [a for a in queries.open_alerts(session, run) if a.fingerprint not in ending and quiet_of(a) is None]
        due = []
        incident = queries.open_incident(session, run)
        members = [a for a in alerts if belongs(a) and a.incident is not None]
        if incident is not None and members:
            speaker = lead(members, {})
            if (n := self._number(incident.opened_by, incident.opened_at, now, interval)) is not None:
                due.append(Repeat(alert=speaker, about=gathering(incident, speaker, members), number=n))
        elif incident is None:
            for alert in alerts:
                if alert.state is AlertState.FIRING and alert.fired_at is not None:
                    n = self._number(alert.key, alert.fired_at, now, interval)
                    due += [] if n is None else [Repeat(alert=alert, about=None, number=n)]
        return due

    def repeat(self, session: Session, due: Repeat, good: StoredSnapshot | None, now: float) -> int:
        """Put a repeat into the outbox, once; return how many messages that made."""
        conversation = due.alert.key if due.about is None else due.about.incident.opened_by
        told = telling.told_notifiers(session, conversation)
        n_enqueued = sum(
            self._enqueue(session, route, due.alert, due.about, (REASON_REPEAT, str(due.number)), good, now)
            for route in self._routes
            if due.alert.severity >= route.severity_min and route.notifier in told
        )
        if len(self._repeated) >= queries.OPEN_ALERTS_MAX:
            self._repeated.clear()  # only a saving: the outbox knows each repeat by its key
        self._repeated[conversation] = due.number
        return n_enqueued

    def _number(self, conversation: str, began_at: float, now: float, interval: float) -> int | None:
        n = math.floor((now - began_at) / interval)
        return n if n >= 1 and self._repeated.get(conversation, 0) < n else None

    def _quiet(self, session: Session, now: float) -> Callable[[Alert], str | None]:
        """Return a function that says why nobody is told of an alert now; it asks for the silences once, when used."""

        @cache
        def silences() -> list[Silence]:
            return telling.silences(session, now=now)

        return lambda alert: quiet_reason(alert, silences=silences(), windows=self._windows, at=now)

    def _tell_news(
        self,
        session: Session,
        incident: Incident,
        speaker: Alert | None,
        audible: Sequence[Alert],
        occasion: Occasion,
        good: StoredSnapshot | None,
    ) -> int:
        if speaker is None:
            return 0
        told = max(speaker.severity, incident.told_severity or speaker.severity)
        about = gathering(replace(incident, told_severity=told), speaker, audible)
        label = speaker.severity.label
        mark = label if speaker.key == incident.opened_by else f"{label}|{speaker.key}"
        is_wanted = self._severity_min is not None and speaker.severity >= self._severity_min
        if is_wanted and told != incident.told_severity:
            writer.save_incident(session, about.incident, occasion.now)
        return self._fire(session, speaker, about, mark, good, occasion.now)

    def _tell_end(
        self,
        session: Session,
        incident: Incident,
        quiet_of: Callable[[Alert], str | None],
        good: StoredSnapshot | None,
        now: float,
    ) -> int:
        told = telling.told_notifiers(session, incident.opened_by)
        if not told:
            return 0  # nobody was told that it began
        audible = [a for a in queries.incident_alerts(session, incident.id) if quiet_of(a) is None]
        if not audible:
            return 0
        speaker = lead(audible, {})
        about = gathering(incident, speaker, audible)
        return self._resolve(session, speaker, about, told, good, now)

    def _tell_infos(
        self,
        session: Session,
        changes: Sequence[Change],
        quiet: Mapping[str, str],
        incident: Incident | None,
        good: StoredSnapshot | None,
        now: float,
    ) -> int:
        n_enqueued = 0
        is_open = incident is not None and incident.state is AlertState.FIRING
        for change in changes:
            alert = change.alert
            is_info = not belongs(alert) and alert.incident is None
            if not is_info or change.transition not in NOTIFIED or alert.fingerprint in quiet:
                continue
            if change.transition is Transition.RESOLVED:
                told = telling.told_notifiers(session, alert.key)
                n_enqueued += self._resolve(session, alert, None, told, good, now)
            elif not is_open:
                n_enqueued += self._fire(session, alert, None, alert.severity.label, good, now)
        return n_enqueued

    def _fire(
        self,
        session: Session,
        alert: Alert,
        about: Gathering | None,
        mark: str,
        good: StoredSnapshot | None,
        now: float,
    ) -> int:
        return sum(
            self._enqueue(session, route, alert, about, (REASON_FIRING, mark), good, now)
            for route in self._routes
            if alert.severity >= route.severity_min
        )

    def _resolve(
        self,
        session: Session,
        alert: Alert,
        about: Gathering | None,
        told: frozenset[str],
        good: StoredSnapshot | None,
        now: float,
    ) -> int:
        return sum(
            self._enqueue(session, route, alert, about, (REASON_RESOLVED, ""), good, now)
            for route in self._routes
            if route.send_resolved and route.notifier in told
        )

    def _enqueue(
        self,
        session: Session,
        route: Route,
        alert: Alert,
        about: Gathering | None,
        reason: tuple[str, str],
        good: StoredSnapshot | None,
        now: float,
    ) -> bool:
        conversation = alert.key if about is None else about.incident.opened_by
        message = Notification(
            notifier=route.notifier,
            reason=reason[0],
            alert=alert,
            deduplication_key=deduplication_key(conversation, *reason),
            last_good_step=None if good is None else good.step,
            last_good_path=None if good is None else good.path,
            created_at=now,
            due_at=now + (route.wait_seconds if reason[0] == REASON_FIRING else 0.0),
            gathering=about,
        )
        return writer.enqueue(session, message)


def deduplication_key(conversation: str, reason: str, mark: str) -> str:
    """Return a key that is the same for every try of the same message: a hash of conversation, reason and mark.

    `conversation` is "fingerprint.episode". `mark` tells apart what may happen more than once in it: the severity of a
    firing, with the alert where it is not the one that opened the conversation; the number of a repeat.
    """
    fingerprint, _, episode = conversation.rpartition(".")
    text = f"{fingerprint}|{episode}|{reason}|{mark}"
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def _after(before: Sequence[Alert], changes: Sequence[Change]) -> list[Alert]:
    """Return a run's alerts after they changed."""
    alerts = {a.fingerprint: a for a in before}
    alerts.update((c.alert.fingerprint, c.alert) for c in changes)
    return list(alerts.values())
