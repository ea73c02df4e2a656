"""`ckptwatch scan`: measure what is already there, once."""

from __future__ import annotations

import os
import signal
from typing import Annotated

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from monitor.backlog import Retried
from monitor.commands.console import (
    CommandError,
    ConfigOption,
    DatabaseOption,
    ExitCode,
    JsonOption,
    console,
    database_overrides,
    load_config,
    print_json,
    root_overrides,
    set_up_logging,
    size,
)
from monitor.commands.environment import environment_errors
from monitor.daemon import Daemon, DaemonOptions
from monitor.pipeline import Recorded
from monitor.show.documents import runs_document

# A file that does not become whole while we stand beside it is reported as cut off; a later scan looks again.
INCOMPLETE_TIMEOUT_SECONDS = 5.0


def scan(
    roots: Annotated[list[str], typer.Argument(metavar="ROOT...", help="Directories to look at.")],
    config: ConfigOption = None,
    db: DatabaseOption = None,
    json: JsonOption = False,
) -> None:
    """Measure, store and judge every checkpoint below the given directories once; nobody is notified.

    Example: ckptwatch scan ~/old-runs --db runs.db
    """
    set_up_logging(quiet=True)
    for root in roots:
        if not os.path.isdir(root):
            raise CommandError(f"{root} is not a directory", ExitCode.USAGE)
    settings = load_config(config, watch=root_overrides(roots), storage=database_overrides(db))
    recorded: list[Recorded] = []
    progress = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeElapsedColumn(),
        console=console(stderr=True),
        disable=json,
    )
    task = progress.add_task("checkpoints", total=None, rate="")

    def on_event(event: Recorded | Retried) -> None:
        if isinstance(event, Recorded) and event.outcome.stored:
            recorded.append(event)
            n_bytes = sum(r.snapshot.bytes_read for r in recorded)
            seconds = max(progress.tasks[0].elapsed or 0.0, 0.1)
            done = len(recorded)
            progress.update(
                task, completed=done, total=done + daemon.backlog.n_pending, rate=f"{size(int(n_bytes / seconds))}/s"
            )

    with environment_errors():
        daemon = Daemon(
            settings,
            options=DaemonOptions(
                serves=False,
                notifies=False,
                hints=False,
                skips=False,
                records_alone=False,
                incomplete_timeout_seconds=INCOMPLETE_TIMEOUT_SECONDS,
            ),
            on_event=on_event,
        )
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: daemon.stop())
        try:
            with progress:
                daemon.run(until_done=True)
            if json:
                print_json(runs_document(daemon.views.views()))
            else:
                _summarise(recorded)
        finally:
            daemon.close()


def _summarise(recorded: list[Recorded]) -> None:
    out = console()
    failures = [r.snapshot for r in recorded if r.snapshot.problem is not None]
    findings = [(r.snapshot, finding) for r in recorded for finding in r.outcome.findings]
    out.print(f"{len(recorded)} checkpoints stored, {len(failures)} of them unreadable, {len(findings)} findings")
    for snapshot in failures[:20]:
        assert snapshot.problem is not None
        out.print(f"  {snapshot.checkpoint.path}: {snapshot.problem.kind}: {snapshot.problem.message}", markup=False)
    seen: set[tuple[str, str, str]] = set()
    for _, finding in findings:
        key = (finding.run, finding.rule, finding.identity)
        if key not in seen:
            seen.add(key)
            out.print(f"  {finding.run}: {finding.severity.label}: {finding.summary}", markup=False)
