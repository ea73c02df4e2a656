"""Bring one database up to date: `python -m storage.migrations`, the parts of its address as JSON on standard input.

The address comes on standard input, not as an argument, because it may hold a password and arguments can be seen by
everyone on the machine. The whole upgrade is one transaction, begun before the revision is looked at, so that of two
processes that start at once one does the work and the other finds it done. On failure the status is 4 and standard
output holds one JSON object with `kind` and `message`.
"""

from __future__ import annotations

import json
import sqlite3
import sys
from pathlib import Path
from typing import Final

from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from alembic.util.exc import CommandError
from sqlalchemy import URL, Connection, create_engine, event, inspect, text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.pool import NullPool

from storage import postgresql, sqlite
from storage.errors import DatabaseError, MigrationError, NewerSchemaError, display_url, translate
from storage.failpoints import reach

LOCK_TIMEOUT_SECONDS: Final = 600.0  # another process may be migrating a large database
EXIT_FAILED: Final = 4
SCRIPTS: Final = str(Path(__file__).parent)


def configuration(connection: Connection | None = None, scripts: str = SCRIPTS) -> Config:
    """Return Alembic's configuration for the revisions in a directory, without any file."""
    config = Config()
    config.set_main_option("script_location", scripts.replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    return config


def upgrade(url: URL, *, scripts: str = SCRIPTS, target: str = "head") -> str | None:
    """Run the missing revisions in one transaction and return the revision before, None for an empty database.

    An SQLite database that holds data is copied first to `NAME.backup-REVISION` beside it. Raise a DatabaseError; then
    the database is as it was.
    """
    where = display_url(url)
    engine = create_engine(url, poolclass=NullPool, hide_parameters=True)
    if url.get_backend_name() == "sqlite":
        event.listen(engine, "connect", lambda connection, _: _configure_sqlite(connection))
    try:
        with engine.connect() as connection:
            _begin(connection)
            before = _revision(connection)
            script = ScriptDirectory.from_config(configuration(scripts=scripts))
            known = {revision.revision for revision in script.walk_revisions()}
            if before is not None and before not in known:
                raise NewerSchemaError(f"database {where}: its schema {before} is newer than this release knows")
            if before == script.get_current_head() and target == "head":
                return before
            if before is not None and url.database and url.get_backend_name() == "sqlite":
                path = Path(url.database)
                reach("migrate.begin")
                sqlite.back_up(path, path.with_name(f"{path.name}.backup-{before}"))
                reach("migrate.backed_up")
            command.upgrade(configuration(connection, scripts), target)
            _check_references(connection, where)
            reach("migrate.commit")
            connection.commit()
            reach("migrate.committed")
            return before
    except (SQLAlchemyError, sqlite3.Error) as error:
        raise translate(error, where) from error
    except (CommandError, OSError) as error:
        raise MigrationError(f"database {where}: the schema could not be brought up to date: {error}") from error
    finally:
        engine.dispose()


def _configure_sqlite(connection: sqlite3.Connection) -> None:
    # Rebuilding a table drops the old one, which must not delete the rows that refer to it.
    sqlite.configure(connection, foreign_keys=False)
    connection.execute(f"PRAGMA busy_timeout={int(LOCK_TIMEOUT_SECONDS * 1000)}")


def _begin(connection: Connection) -> None:
    if connection.dialect.name == "sqlite":
        connection.exec_driver_sql("BEGIN IMMEDIATE")
    else:
        postgresql.take_schema_lock(connection)


def _revision(connection: Connection) -> str | None:
    if not inspect(connection).has_table("alembic_version"):
        return None
    value = connection.execute(text("SELECT version_num FROM alembic_version")).scalar()
    return None if value is None else str(value)


def _check_references(connection: Connection, where: str) -> None:
    if connection.dialect.name == "sqlite":
        broken = connection.exec_driver_sql("PRAGMA foreign_key_check").fetchmany(1)
        if broken:
            raise MigrationError(f"database {where}: the upgrade would leave rows of {broken[0][0]} without a parent")


def main() -> int:
    """Upgrade the database named on standard input; return the exit status."""
    url = URL.create(**json.load(sys.stdin))
    try:
        upgrade(url)
    except DatabaseError as error:
        json.dump({"kind": error.kind, "message": str(error)}, sys.stdout)
        return EXIT_FAILED
    return 0


if __name__ == "__main__":
    sys.exit(main())
