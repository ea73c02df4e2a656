"""`ckptwatch db`: bring a database up to date, or copy it into another one."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from monitor.commands.console import CommandError, ConfigOption, DatabaseOption, ExitCode, JsonOption, print_json
from monitor.commands.environment import environment_errors, existing_database
from storage.copying import copy_all
from storage.database import open_database, parse_url

app = typer.Typer(help="Look after the database.", no_args_is_help=True, rich_markup_mode=None)


@app.callback()
def _db() -> None:
    """Look after the database."""


@app.command("upgrade")
def upgrade(config: ConfigOption = None, db: DatabaseOption = None) -> None:
    """Bring the database's schema up to date, as every start does; an SQLite file is copied beside itself first.

    Example: ckptwatch db upgrade --db /var/lib/ckptwatch/ckptwatch.db
    """
    with existing_database(config, db) as database:
        sys.stdout.write(f"{database.url} is up to date\n")


@app.command("copy")
def copy(
    source: Annotated[str, typer.Argument(metavar="SRC", help="What to copy: a database's address, or SQLite's file.")],
    target: Annotated[str, typer.Argument(metavar="DST", help="An empty database, or a file that is not there yet.")],
    json: JsonOption = False,
) -> None:
    """Copy everything that is stored into another, empty database: all of it or nothing; the source is only read.

    Stop the daemon first, and start it with the new address afterwards.
    Example: ckptwatch db copy /var/lib/ckptwatch/ckptwatch.db postgresql://ckptwatch@db.example.org/ckptwatch
    """
    with environment_errors():
        address = parse_url(source)
        if address == parse_url(target):
            raise CommandError("SRC and DST are the same database", ExitCode.USAGE)
        if address.get_backend_name() == "sqlite" and not Path(str(address.database)).exists():
            raise CommandError(f"there is no database at {address.database}", ExitCode.ENVIRONMENT)
        reading = open_database(source)
        try:
            writing = open_database(target)
            try:
                copied = copy_all(reading, writing, on_progress=_say_progress if sys.stderr.isatty() else _say_nothing)
            finally:
                writing.close()
        finally:
            reading.close()
    if json:
        print_json({"rows": copied})
    else:
        sys.stdout.write(f"copied {copied['runs']} runs with {copied['snapshots']} snapshots to {writing.url}\n")


def _say_progress(table: str, n_rows: int) -> None:
    sys.stderr.write(f"\r\x1b[K{table}: {n_rows:,} rows")


def _say_nothing(table: str, n_rows: int) -> None:
    """Where nobody watches, nothing is said before the end."""
