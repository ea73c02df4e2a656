"""`ckptwatch history`: the snapshots of one run."""

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
    bars,
    console,
    number,
    print_json,
    size,
    table,
)
from monitor.commands.environment import existing_database
from monitor.show.documents import history_document
from monitor.stored_views import StoredViews

COURSE_BARS_MAX = 60


def history(
    run: Annotated[str, typer.Argument(help="The run's name, as `ckptwatch runs` prints it.")],
    limit: Annotated[int, typer.Option(min=1, max=100_000, help="How many of the latest snapshots.")] = 1000,
    config: ConfigOption = None,
    db: DatabaseOption = None,
    json: JsonOption = False,
) -> None:
    """Show a run's snapshots, oldest first: step, norm, change, gradient, non-finite elements.

    Example: ckptwatch history llama/seed1 --limit 50
    """
    with existing_database(config, db) as database:
        snapshots = StoredViews(database).history(run, limit)
    if snapshots is None:
        raise CommandError(f"there is no run {run!r}; `ckptwatch runs` lists them", ExitCode.USAGE)
    if json:
        print_json(history_document(run, snapshots))
        return
    now = time.time()
    columns = [("step", "right"), ("written", "right"), ("size", "right"), ("weight norm", "right")]
    columns += [("update ratio", "right"), ("gradient", "right"), ("non-finite", "right"), ("", "left")]
    rows = [
        [
            "–" if s.step is None else str(s.step),
            f"{age(now - s.written_at)} ago",
            size(s.size_bytes),
            number(s.weight_norm),
            number(s.update_ratio, 3),
            number(s.gradient.norm if s.gradient else None),
            str(s.n_nonfinite),
            f"{s.problem.kind}: {s.problem.message}" if s.problem else s.first_bad_tensor or "",
        ]
        for s in snapshots
    ]
    console().print(table(f"{run}: {len(rows)} snapshots", columns, rows))
    courses = (
        ("weight norm", [s.weight_norm for s in snapshots]),
        ("update ratio", [s.update_ratio for s in snapshots]),
        ("gradient", [s.gradient.norm if s.gradient else None for s in snapshots]),
    )
    drawn = [[name, line] for name, values in courses if (line := bars(values, COURSE_BARS_MAX))]
    if drawn:
        console().print(table(None, [("", "left"), ("oldest to newest", "left")], drawn))
