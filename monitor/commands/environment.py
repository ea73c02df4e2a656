"""The environment that commands need: an existing database to ask, and errors of database and port in one line."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from monitor.assembly import database_url as configured_url
from monitor.commands.console import CommandError, ExitCode, database_overrides, load_config
from monitor.protect.shelf import Shelf
from monitor.show.views import SourceError
from monitor.show.web.server import ServeError
from storage.database import Database, open_database
from storage.errors import DatabaseError
from storage.records import StoredSnapshot


@contextmanager
def environment_errors() -> Iterator[None]:
    """Turn what the environment refuses (database, port) into a CommandError with one line that says what to do."""
    try:
        yield
    except (DatabaseError, ServeError, SourceError) as error:
        raise CommandError(str(error), ExitCode.ENVIRONMENT) from error


@contextmanager
def existing_database(config_path: Path | None, db: str | None) -> Iterator[Database]:
    """Open the database for a question; raises CommandError when a SQLite file is not there yet."""
    url = database_url(config_path, db)
    file = url.removeprefix("sqlite:///")
    if file != url and not Path(file).exists():
        raise CommandError(
            f"there is no database at {file}; start `ckptwatch run DIR` first or name one with --db",
            ExitCode.ENVIRONMENT,
        )
    with environment_errors():
        database = open_database(url)
        try:
            yield database
        finally:
            database.close()


def kept_copies(config_path: Path | None) -> Callable[[StoredSnapshot], str | None] | None:
    """Return what finds the protected copy of a checkpoint, None where the configuration protects nothing."""
    protect = load_config(config_path).protect
    return Shelf(protect.place).path_of if protect.enabled else None


def database_url(config_path: Path | None, db: str | None) -> str:
    """Return the URL that the options, the configuration or the default name, in that order."""
    if db is not None:
        return str(database_overrides(db)["url"])
    return configured_url(load_config(config_path))
