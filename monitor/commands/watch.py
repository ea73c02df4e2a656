"""`ckptwatch watch`: a run in the terminal, as it goes."""

from __future__ import annotations

import os
import time
from typing import Annotated

import typer
from rich.console import Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from monitor.commands.console import (
    CommandError,
    ConfigOption,
    DatabaseOption,
    ExitCode,
    age,
    bars,
    console,
    number,
    table,
)
from monitor.commands.environment import existing_database
from monitor.show.views import RunView
from monitor.show.visible_text import visible
from monitor.stored_views import StoredViews
from storage.records import Severity

ROWS_MAX = 12
BARS_MAX = 60
_STYLES = {Severity.CRITICAL: "bold red", Severity.WARNING: "yellow"}


def watch(
    run: Annotated[str, typer.Argument(help="The run's name, as `ckptwatch runs` prints it.")],
    every: Annotated[float, typer.Option(min=0.2, max=3600, help="Seconds between two looks.")] = 2.0,
    times: Annotated[int | None, typer.Option(min=1, help="Look so often and end; without it until Ctrl-C.")] = None,
    config: ConfigOption = None,
    db: DatabaseOption = None,
) -> None:
    """Show a run live in the terminal: verdict, alerts, the course of its numbers, the latest checkpoints.

    It looks into the database of a running daemon. Exit 1 when the run was not healthy at the last look.

    Example: ckptwatch watch llama/seed1 --every 5
    """
    with existing_database(config, db) as database:
        views = StoredViews(database)
        shown = _view(views, run)
        looks = 1
        with Live(_screen(shown), console=console(), auto_refresh=False) as live:
            try:
                while times is None or looks < times:
                    time.sleep(every)
                    looks += 1
                    views.forget()
                    shown = _view(views, run)
                    live.update(_screen(shown), refresh=True)
            except KeyboardInterrupt:
                pass  # how people end a live view
    if not shown.healthy:
        raise typer.Exit(ExitCode.BAD_NEWS)


def _view(views: StoredViews, run: str) -> RunView:
    found = views.view(run)
    if found is None:
        raise CommandError(f"there is no run {run!r}; `ckptwatch runs` lists them", ExitCode.USAGE)
    return found


def _screen(view: RunView) -> Group:
    now = time.time()
    return Group(_verdict(view, now), *_alerts(view), Text(), *_courses(view), Text(), _latest(view, now))


def _verdict(view: RunView, now: float) -> Text:
    state = ("healthy", "bold green") if view.healthy else ("NOT HEALTHY", "bold red")
    good = view.last_good
    written = view.run.last_written_at
    return Text.assemble(
        (visible(view.run.run), "bold"),
        "  ",
        state,
        f"  {visible(view.health_reason)}\n",
        "last checkpoint ",
        "never" if written is None else f"{age(now - written)} ago",
        "; last good ",
        "none yet" if good is None else visible(good.path),
    )


def _alerts(view: RunView) -> list[Text]:
    return [
        Text(f"  {alert.severity.label}: {visible(alert.summary)}", style=_STYLES.get(alert.severity, ""))
        for alert in view.firing
    ]


def _courses(view: RunView) -> list[Text]:
    snapshots = [s for s in view.recent if s.attempt == view.run.attempt]
    courses = {
        "weight norm": [s.weight_norm for s in snapshots],
        "update ratio": [s.update_ratio for s in snapshots],
        "gradient": [s.gradient.norm if s.gradient else None for s in snapshots],
    }
    lines = []
    for name, values in courses.items():
        drawn = bars(values, BARS_MAX)
        if drawn:
            newest = next((value for value in reversed(values) if value is not None), None)
            lines.append(Text(f"{name:>12}  {drawn}  {number(newest)}"))
    return lines


def _latest(view: RunView, now: float) -> Table:
    columns = [("step", "right"), ("written", "right"), ("weight norm", "right"), ("update ratio", "right")]
    columns += [("gradient", "right"), ("non-finite", "right"), ("", "left")]
    rows = [
        [
            os.path.basename(visible(s.path)) if s.step is None else str(s.step),
            f"{age(now - s.written_at)} ago",
            number(s.weight_norm),
            number(s.update_ratio, 3),
            number(s.gradient.norm if s.gradient else None),
            str(s.n_nonfinite),
            visible(f"{s.problem.kind}: {s.problem.message}" if s.problem else s.first_bad_tensor or ""),
        ]
        for s in reversed(view.recent[-ROWS_MAX:])
    ]
    return table(None, columns, rows)
