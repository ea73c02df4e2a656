"""`ckptwatch alerts`: what fired, fires, or is about to."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Annotated

import typer

from monitor.commands.console import (
    CommandError,
    ConfigOption,
    DatabaseOption,
    ExitCode,
    JsonOption,
    age,
    console,
    duration_seconds,
    print_json,
    table,
)
from monitor.commands.environment import existing_database
from monitor.show.documents import alerts_document
from monitor.show.views import AlertQuery
from monitor.stored_views import StoredViews
from storage.records import Alert, AlertState


def alerts(
    since: Annotated[
        str | None, typer.Option(metavar="4h", help="Not over before then: 90s, 30m, 4h, 2d ago, or a Unix time.")
    ] = None,
    state: Annotated[AlertState | None, typer.Option(help="Only alerts in this state.")] = None,
    run: Annotated[str | None, typer.Option(help="Only alerts of this run.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=10_000)] = 500,
    config: ConfigOption = None,
    db: DatabaseOption = None,
    json: JsonOption = False,
) -> None:
    """List alerts, the newest first, those of one incident together under its first cause.

    Example: ckptwatch alerts --state firing --since 4h --json
    """
    now = time.time()
    query = AlertQuery(run=run, state=state, since=None if since is None else _moment(since, now), limit=limit)
    with existing_database(config, db) as database:
        found = StoredViews(database).alerts(query)
    if json:
        print_json(alerts_document(found))
        return
    columns = [("state", "left"), ("severity", "left"), ("run", "left"), ("step", "right"), ("opened", "right")]
    columns += [("summary", "left")]
    rows = [row for group in by_incident(found) for row in _rows(group, now)]
    console().print(table(None, columns, rows) if rows else "no alerts")


def by_incident(alerts: Sequence[Alert]) -> list[tuple[Alert, ...]]:
    """Return the alerts with those of one incident together, in the order in which each first appears."""
    groups: dict[str, list[Alert]] = {}
    for alert in alerts:
        groups.setdefault(alert.key if alert.incident is None else f"incident {alert.incident.id}", []).append(alert)
    return [tuple(group) for group in groups.values()]


def _rows(group: Sequence[Alert], now: float) -> list[list[str]]:
    """Return one row for an alert alone; for an incident of several its own row and one for each alert below it."""
    incident = group[0].incident
    if incident is None or incident.n_alerts == 1:
        return [_row(alert, now, alert.summary) for alert in group]
    step = "–" if incident.step is None else str(incident.step)
    first = f", first in {incident.tensor}" if incident.tensor and incident.tensor not in incident.summary else ""
    head = [
        incident.state.value,
        incident.severity.label,
        incident.run,
        step,
        f"{age(now - incident.opened_at)} ago",
        f"incident {incident.id} of {incident.n_alerts} alerts{first}: {incident.summary}",
    ]
    return [head, *(_row(alert, now, f"  {alert.rule}: {alert.summary}") for alert in reversed(group))]


def _row(alert: Alert, now: float, text: str) -> list[str]:
    return [
        alert.state.value,
        alert.severity.label,
        alert.run,
        "–" if alert.step is None else str(alert.step),
        f"{age(now - alert.opened_at)} ago",
        text,
    ]


def _moment(text: str, now: float) -> float:
    """Return the Unix time that "4h" ago or a plain Unix time means."""
    seconds = duration_seconds(text)
    if seconds is not None:
        return now - seconds
    try:
        return float(text)
    except ValueError:
        message = f"--since {text!r} is neither a duration such as 30m nor a Unix time"
        raise CommandError(message, ExitCode.USAGE) from None
