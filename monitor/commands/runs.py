"""`ckptwatch runs`: the runs that the database knows."""

from __future__ import annotations

import os
import time

from monitor.commands.console import (
    ConfigOption,
    DatabaseOption,
    JsonOption,
    age,
    bars,
    console,
    number,
    print_json,
    table,
)
from monitor.commands.environment import existing_database, kept_copies
from monitor.show.documents import runs_document
from monitor.stored_views import StoredViews
from storage.records import StoredSnapshot

RUN_BARS_MAX = 16


def runs(config: ConfigOption = None, db: DatabaseOption = None, json: JsonOption = False) -> None:
    """List the runs with their health, last step and last good checkpoint.

    Example: ckptwatch runs --json
    """
    with existing_database(config, db) as database:
        views = StoredViews(database, kept=kept_copies(config)).views()
    if json:
        print_json(runs_document(views))
        return
    now = time.time()
    columns = [("run", "left"), ("health", "left"), ("step", "right"), ("checkpoints", "right"), ("last", "right")]
    columns += [("update ratio", "left"), ("gradient", "right"), ("last good", "right"), ("why", "left")]
    rows = []
    for view in views:
        newest = view.newest
        gradient = newest.gradient if newest else None
        rows.append(
            [
                view.run.run,
                "healthy" if view.healthy else "BAD",
                "–" if view.run.last_step is None else str(view.run.last_step),
                str(view.run.n_snapshots),
                "–" if view.run.last_written_at is None else f"{age(now - view.run.last_written_at)} ago",
                bars([s.update_ratio for s in view.recent if s.attempt == view.run.attempt], RUN_BARS_MAX),
                number(gradient.norm if gradient else None),
                _name_of(view.last_good),
                view.health_reason,
            ]
        )
    console().print(table(None, columns, rows))


def _name_of(snapshot: StoredSnapshot | None) -> str:
    if snapshot is None:
        return "–"
    return os.path.basename(snapshot.path) if snapshot.step is None else f"step {snapshot.step}"
