"""`ckptwatch rules`: which rules there are, and today's rules tried on a run that is stored already."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer

from alerts.rule import Rule
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

app = typer.Typer(help="List the rules, or try them on what is stored.", rich_markup_mode=None)


@app.callback(invoke_without_command=True)
def rules(context: typer.Context, config: ConfigOption = None, json: JsonOption = False) -> None:
    """List the rules as they are set: what each finds, how much that matters, and what it needs to judge.

    A rule that lacks what it needs is silent; `ckptwatch rules test RUN` says why for a run.
    Example: ckptwatch rules --config config.yaml --json
    """
    if context.invoked_subcommand is not None:
        return
    settings = engine_settings(load_config(config), routes=False).rules
    listed: list[dict[str, Any]] = [
        {
            "rule": setting.name,
            "enabled": setting.enabled,
            "severity": (setting.severity or setting.rule.severity).label,
            "needs": [need.value for need in setting.rule.needs],
            "on_tick": setting.rule.on_tick,
            "finds": _first_line(setting.rule),
        }
        for setting in settings
    ]
    if json:
        print_json(listed)
        return
    columns = [("rule", "left"), ("on", "left"), ("severity", "left"), ("needs", "left"), ("finds", "left")]
    rows = [
        [rule["rule"], "on" if rule["enabled"] else "off", rule["severity"], ", ".join(rule["needs"]), rule["finds"]]
        for rule in listed
    ]
    console().print(table(None, columns, rows))


def _first_line(rule: Rule) -> str:
    """Return the first sentence of a rule's own description."""
    return (type(rule).__doc__ or "").strip().split("\n")[0].rstrip(".")


@app.command("test")
def replay_run(
    run: Annotated[str, typer.Argument(help="The run's name, as `ckptwatch runs` prints it.")],
    limit: Annotated[int, typer.Option(min=1, max=100_000, help="How many of the latest snapshots.")] = 1000,
    config: ConfigOption = None,
    db: DatabaseOption = None,
    json: JsonOption = False,
) -> None:
    """Judge a stored run again under today's settings and say what would have fired; nothing stored is changed.

    Rules that only time can trip (stalled_run) are not asked, since only snapshots are replayed; similar_runs has no
    other run to compare with.
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
