"""`ckptwatch silence`: keep people from being told for a while; alerts are still judged and stored."""

from __future__ import annotations

import time
from typing import Annotated, Any

import typer

from alerts.quiet import PATTERN_CHARACTERS_MAX
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
from monitor.commands.environment import environment_errors, existing_database
from storage import telling, writer
from storage.database import Database
from storage.records import Silence

SECONDS_MAX = 366 * 86400.0  # what should be quiet for longer is switched off in the configuration


def silence(
    run: Annotated[str | None, typer.Argument(help="The run, or a pattern such as 'debug/*'.")] = None,
    rule: Annotated[str, typer.Argument(help="The rule, or a pattern; every rule without it.")] = "*",
    duration: Annotated[
        str | None, typer.Option("--for", metavar="4h", help="How long: 90s, 30m, 4h, 2d; a year at most.")
    ] = None,
    comment: Annotated[str, typer.Option(help="Why, for those who list the silences.")] = "",
    remove: Annotated[int | None, typer.Option(metavar="NUMBER", help="End a silence now.")] = None,
    config: ConfigOption = None,
    db: DatabaseOption = None,
    json: JsonOption = False,
) -> None:
    """Tell nobody about a run until the silence ends; without a run list the silences that last.

    What still fires when the silence ends is told then. A running daemon notices at once.

    Example: ckptwatch silence gpt-7b stalled_run --for 4h --comment "node is being replaced"
    """
    now = time.time()
    if run is None:
        if duration is not None or comment:
            raise CommandError("name the run to silence, for example: ckptwatch silence gpt --for 4h", ExitCode.USAGE)
        with existing_database(config, db) as database, environment_errors():
            if remove is not None:
                _remove(database, remove, now)
            _list(database, now, json)
        return
    if remove is not None:
        raise CommandError("--remove takes the number of a silence and nothing else", ExitCode.USAGE)
    seconds = _seconds(duration)
    if not run or not rule or max(len(run), len(rule)) > PATTERN_CHARACTERS_MAX:
        raise CommandError(f"a name or pattern has 1 to {PATTERN_CHARACTERS_MAX} characters", ExitCode.USAGE)
    with existing_database(config, db) as database, environment_errors():
        with database.write() as session:
            number = writer.add_silence(session, runs=run, rules=rule, now=now, ends_at=now + seconds, comment=comment)
        with database.read() as session:
            made = [found for found in telling.silences(session, now=now) if found.id == number]
    if json:
        print_json([_document(found) for found in made])
    else:
        console().print(f"silence {number}: nobody is told of {rule} in {run} for {age(seconds)}", markup=False)


def _seconds(duration: str | None) -> float:
    if duration is None:
        raise CommandError("say how long with --for, for example --for 4h", ExitCode.USAGE)
    seconds = duration_seconds(duration)
    if seconds is None or not 0 < seconds <= SECONDS_MAX:
        raise CommandError(
            f"--for {duration!r} must be a duration such as 30m, 4h or 2d, a year at most", ExitCode.USAGE
        )
    return seconds


def _remove(database: Database, number: int, now: float) -> None:
    with database.write() as session:
        ended = writer.end_silence(session, number, now)
    if not ended:
        raise CommandError(f"there is no silence {number} that still lasts", ExitCode.USAGE)


def _list(database: Database, now: float, json: bool) -> None:
    with database.read() as session:
        found = telling.silences(session, now=now)
    if json:
        print_json([_document(silence) for silence in found])
        return
    columns = [("number", "right"), ("run", "left"), ("rule", "left"), ("ends", "left"), ("comment", "left")]
    rows = [[str(s.id), s.runs, s.rules, f"in {age(s.ends_at - now)}", s.comment] for s in found]
    console().print(table(None, columns, rows) if rows else "no silences")


def _document(found: Silence) -> dict[str, Any]:
    return {
        "id": found.id,
        "runs": found.runs,
        "rules": found.rules,
        "created_at": found.created_at,
        "ends_at": found.ends_at,
        "comment": found.comment,
    }
