"""`ckptwatch alerts`: what fired, fires, or is about to."""

from __future__ import annotations

import time
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
from storage.records import AlertState


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
    """List alerts, the newest first.

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
    rows = [
        [
            alert.state.value,
            alert.severity.label,
            alert.run,
            "–" if alert.step is None else str(alert.step),
            f"{age(now - alert.opened_at)} ago",
            alert.summary,
        ]
        for alert in found
    ]
    console().print(table(None, columns, rows) if rows else "no alerts")


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
