"""`ckptwatch rules`: try today's rules on a run that is stored already."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated

import typer

from monitor.assembly import engine_settings
from monitor.commands.console import (
    CommandError,
    ConfigOption,
    DatabaseOption,
    ExitCode,
    JsonOption,
    console,
    load_config,
    number,
    print_json,
    table,
)
from monitor.commands.environment import environment_errors, existing_database
from monitor.replay import Replay, replay
from monitor.show.documents import alerts_document
from storage.database import open_database

app = typer.Typer(help="Try the rules on what is stored.", no_args_is_help=True, rich_markup_mode=None)


@app.callback()
def _rules() -> None:
    """Try the rules on what is stored."""


@app.command("test")
def replay_run(
    run: Annotated[str, typer.Argument(help="The run's name, as `ckptwatch runs` prints it.")],
    limit: Annotated[int, typer.Option(min=1, max=100_000, help="How many of the latest snapshots.")] = 1000,
    config: ConfigOption = None,
    db: DatabaseOption = None,
    json: JsonOption = False,
) -> None:
    """Judge a stored run again under today's settings and say what would have fired; nothing stored is changed.

    Rules that only time can trip (stalled_run) are not asked, since only snapshots are replayed.
    Example: ckptwatch rules test llama/seed1 --config config.yaml
    """
    settings = engine_settings(load_config(config), routes=False)
    with (
        existing_database(config, db) as source,
        tempfile.TemporaryDirectory(prefix="ckptwatch-rules-") as directory,
        environment_errors(),
    ):
        scratch = open_database(f"sqlite:///{Path(directory) / 'replay.db'}")
        try:
            result = replay(source, scratch, settings, run, limit=limit)
        finally:
            scratch.close()
    if result is None:
        raise CommandError(f"there is no run {run!r}; `ckptwatch runs` lists them", ExitCode.USAGE)
    if json:
        print_json(
            {
                "run": run,
                "n_snapshots": result.n_snapshots,
                "fired": alerts_document(result.fired),
                "silent": dict(result.silent),
                "failures": dict(result.failures),
            }
        )
        return
    _print(run, result)


def _print(run: str, result: Replay) -> None:
    out = console()
    columns = [("step", "right"), ("severity", "left"), ("rule", "left"), ("value", "right"), ("", "left")]
    rows = [
        ["–" if a.step is None else str(a.step), a.severity.label, a.rule, number(a.value), a.summary]
        for a in result.fired
    ]
    # Not the table's title: a title is folded to the width of the columns, which is next to nothing without rows.
    out.print(f"{run}: {len(rows)} alerts would have fired in {result.n_snapshots} snapshots", markup=False)
    if rows:
        out.print(table(None, columns, rows))
    for rule, reason in sorted(result.silent.items()):
        out.print(f"{rule} could not judge: {reason}", markup=False)
    for rule, message in sorted(result.failures.items()):
        out.print(f"{rule} failed: {message}", markup=False)
