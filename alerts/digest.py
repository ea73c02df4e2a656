"""What one message says about several alerts: those of one run, or those of many runs in a storm. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from alerts.grouping import Group, latest_of_each, lead
from alerts.message import (
    FACT_CHARACTERS_MAX,
    LABEL_CHARACTERS_MAX,
    REASON_RESOLVED,
    TEXT_CHARACTERS_MAX,
    TITLE_CHARACTERS_MAX,
    alert_line,
    compose,
    resume_facts,
)
from alerts.notifier import Message, printable
from storage.records import Notification, Severity

LINES_MAX = 24  # with the other facts this stays below what a message of Slack can hold


def compose_group(group: Group, *, link: str | None = None, picture: bytes | None = None) -> Message:
    """Say what several messages say in one; a group of one says what it says alone.

    `link` and `picture` are those of the leading alert's run.
    """
    latest = latest_of_each(group)
    first = lead(latest)
    if len(latest) == 1:
        return compose(first, link=link, picture=picture)
    firing = [n for n in latest if n.reason != REASON_RESOLVED]
    runs = {n.alert.run for n in latest}
    facts = _of_one_run(latest, first) if len(runs) == 1 else _of_many_runs(latest)
    severity = max((n.alert.severity for n in firing or latest), default=Severity.INFO)
    return Message(
        title=printable(_title(latest, firing, severity, runs), TITLE_CHARACTERS_MAX),
        text=printable(_text(firing or latest), TEXT_CHARACTERS_MAX),
        facts=tuple(facts),
        severity=severity.label,
        reason=first.reason if firing else REASON_RESOLVED,
        thread=first.conversation,
        related=tuple(n.conversation for n in latest if n is not first)[:LINES_MAX],
        link=link,
        picture=picture,
    )


def _title(latest: Group, firing: Sequence[Notification], severity: Severity, runs: set[str]) -> str:
    where = next(iter(runs)) if len(runs) == 1 else f"{len(runs)} runs"
    n_all, n_firing = _n_alerts(latest), _n_alerts(firing)
    if not firing:
        return f"Resolved: {n_all} alerts in {where}"
    over = f", {n_all - n_firing} resolved" if n_firing < n_all else ""
    count = "1 alert" if n_firing == 1 else f"{n_firing} alerts"
    return f"{severity.label.capitalize()}: {count}{over} in {where}"


def _n_alerts(notifications: Sequence[Notification]) -> int:
    """Count the alerts that messages speak of, those of their incidents too."""
    return sum(1 if n.gathering is None else 1 + n.gathering.n_others for n in notifications)


def _text(shown: Sequence[Notification]) -> str:
    """Say in a sentence which rules it is about, the most frequent first."""
    counts: dict[str, int] = {}
    for notification in shown:
        rule = notification.alert.rule.replace("_", " ")
        counts[rule] = counts.get(rule, 0) + 1
    parts = [f"{rule} ({n})" if n > 1 else rule for rule, n in sorted(counts.items(), key=lambda item: -item[1])]
    return f"These rules hit: {', '.join(parts)}."


def _of_one_run(latest: Group, first: Notification) -> list[tuple[str, str]]:
    facts = [("Run", printable(first.alert.run, FACT_CHARACTERS_MAX))]
    facts += [alert_line(n.alert, n.reason) for n in latest[:LINES_MAX]]
    if len(latest) > LINES_MAX:
        facts.append(("And", f"{len(latest) - LINES_MAX} more; `ckptwatch alerts` lists all"))
    return facts + resume_facts(latest[-1])


def _of_many_runs(latest: Group) -> list[tuple[str, str]]:
    by_run: dict[str, list[Notification]] = {}
    for notification in latest:
        by_run.setdefault(notification.alert.run, []).append(notification)
    facts = []
    for run, members in list(by_run.items())[:LINES_MAX]:
        first = lead(tuple(members))
        label, text = alert_line(first.alert, first.reason)
        more = f" and {len(members) - 1} more" if len(members) > 1 else ""
        facts.append((printable(run, LABEL_CHARACTERS_MAX), printable(f"{label}{more}: {text}", FACT_CHARACTERS_MAX)))
    if len(by_run) > LINES_MAX:
        facts.append(("And", f"{len(by_run) - LINES_MAX} more runs; `ckptwatch alerts` lists all"))
    return facts
