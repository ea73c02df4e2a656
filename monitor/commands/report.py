"""`ckptwatch report`: the page of one run as one file, to attach to a ticket."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from monitor.commands.console import CommandError, ConfigOption, DatabaseOption, ExitCode
from monitor.commands.environment import existing_database, kept_copies
from monitor.show.views import AlertQuery
from monitor.show.web import pages
from monitor.show.web.run_course import wanted_snapshots
from monitor.stored_views import StoredViews


def report(
    run: Annotated[str, typer.Argument(help="The run's name, as `ckptwatch runs` prints it.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The HTML file to write.")],
    force: Annotated[bool, typer.Option("--force", help="Replace the file when it is there already.")] = False,
    config: ConfigOption = None,
    db: DatabaseOption = None,
) -> None:
    """Write what happened to a run as one HTML file without scripts that needs no server and no network.

    Example: ckptwatch report llama/seed1 -o report.html
    """
    with existing_database(config, db) as database:
        views = StoredViews(database, kept=kept_copies(config))
        view = views.view(run)
        if view is None:
            raise CommandError(f"there is no run {run!r}; `ckptwatch runs` lists them", ExitCode.USAGE)
        snapshots = views.history(run, pages.SNAPSHOTS_SHOWN_MAX) or ()
        alerts = views.alerts(AlertQuery(run=run, limit=pages.ALERTS_SHOWN_MAX))
        course = views.course(wanted_snapshots(snapshots))
    text = pages.report(view, snapshots, alerts, course, time.time())
    try:
        with output.open("w" if force else "x", encoding="utf-8", errors="backslashreplace") as file:
            file.write(text)
    except FileExistsError:
        raise CommandError(f"{output} is there already; --force replaces it", ExitCode.USAGE) from None
    except OSError as error:
        raise CommandError(f"cannot write {output}: {error.strerror}", ExitCode.ENVIRONMENT) from error
    sys.stderr.write(f"ckptwatch: wrote {output}\n")
