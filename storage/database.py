"""One database: opened, brought up to date, and lent out as sessions.

The only place that makes connections. It must not know what the tables mean. Errors of SQLAlchemy and of the driver
leave through here as DatabaseErrors only.
"""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Final

from sqlalchemy import URL, Connection, Engine, create_engine, event, inspect, make_url, text
from sqlalchemy.exc import ArgumentError, NoSuchModuleError, SQLAlchemyError
from sqlalchemy.orm import Session

from storage import migrations, postgresql, sqlite
from storage.errors import (
    ERROR_CLASSES,
    DatabaseError,
    DatabaseErrorKind,
    DatabaseReplacedError,
    ForeignDatabaseError,
    MigrationError,
    NewerSchemaError,
    UnsupportedDatabaseError,
    display_url,
    make_error,
    translate,
)
from storage.failpoints import reach
from storage.models import Base

MIGRATION_TIMEOUT_SECONDS: Final = 3600.0
WRITER_WAIT_SECONDS: Final = 60.0
CHECK_LINES_MAX: Final = 10
_CONNECTIONS_MAX: Final = 32
_PACKAGE_ROOT: Final = str(Path(__file__).resolve().parent.parent)


class Database:
    """An open database whose schema is up to date; safe to share between threads.

    `url` is the address with the password hidden, fit for logs. Made by `open_database`.
    """

    def __init__(self, engine: Engine, url: str, path: Path | None) -> None:
        self.url = url
        self._engine = engine
        self._path = path
        self._inode = None if path is None else _inode(path)
        self._log_inode: tuple[int, int] | None = None  # of the write-ahead log, once it was seen
        if path is None:
            self._reading = engine.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
        else:
            self._reading = engine.execution_options(ckptwatch_mode="read")
        self._writing = engine.execution_options(ckptwatch_mode="write")
        self._writer = threading.Lock()
        self._writer_thread: int | None = None

    def __repr__(self) -> str:
        return f"Database({self.url!r})"

    @contextmanager
    def read(self) -> Iterator[Session]:
        """Lend a session that sees one state of the database and cannot change it; raise a DatabaseError.

        It never waits for a writer in WAL mode. Keep it short: while it is open the write-ahead log cannot shrink.
        """
        try:
            with Session(self._reading, autoflush=False, expire_on_commit=False) as session:
                yield session
        except (SQLAlchemyError, sqlite3.Error) as error:
            raise translate(error, self.url) from error

    @contextmanager
    def write(self) -> Iterator[Session]:
        """Lend the one writing session: committed at the end, rolled back on any exception; raise a DatabaseError.

        It takes the write lock before the first statement, so what it reads stays true until it commits. Writers of
        this process wait for each other, those of other processes (and of other machines, with PostgreSQL) for at most
        the busy timeout. Not reentrant.
        """
        if self._writer_thread == threading.get_ident():
            raise RuntimeError("a write session of this thread is already open")
        if not self._writer.acquire(timeout=WRITER_WAIT_SECONDS):
            raise make_error(DatabaseErrorKind.LOCKED, self.url, "another thread is writing for too long")
        self._writer_thread = threading.get_ident()
        try:
            self._check_in_place()
            with Session(self._writing, autoflush=False, expire_on_commit=False) as session, session.begin():
                connection = session.connection()
                if self._path is None:
                    postgresql.take_write_lock(connection)
                reach("write.begin")
                yield session
                reach("write.commit")
            reach("write.committed")
        except (SQLAlchemyError, sqlite3.Error) as error:
            raise translate(error, self.url) from error
        finally:
            self._writer_thread = None
            self._writer.release()

    @property
    def is_shared(self) -> bool:
        """Say whether several daemons may record into it at once."""
        return self._path is None

    @contextmanager
    def write_beside(self) -> Iterator[Session]:
        """Lend a session that changes rows which have locks of their own, without waiting for the one that writes.

        Committed at the end, rolled back on any exception; raise a DatabaseError. With SQLite the same as `write`.
        """
        if self._path is not None:
            with self.write() as session:
                yield session
            return
        try:
            with Session(self._writing, autoflush=False, expire_on_commit=False) as session, session.begin():
                postgresql.limit_waiting(session.connection())
                yield session
        except SQLAlchemyError as error:
            raise translate(error, self.url) from error

    def _check_in_place(self) -> None:
        # SQLite goes on writing into a file that was deleted or replaced, and all of it would be lost without a word.
        if self._path is None:
            return
        if _inode(self._path) != self._inode:
            raise DatabaseReplacedError(
                f"database {self.url}: the file was removed or replaced while it was open; open it again"
            )
        found = _inode(Path(f"{self._path}-wal"))
        if self._log_inode is not None and found != self._log_inode:
            self._log_inode = None
            raise DatabaseReplacedError(
                f"database {self.url}: its -wal file was removed or replaced while it was open; open it again"
            )
        self._log_inode = found

    def quick_check(self) -> tuple[str, ...]:
        """Return what SQLite finds wrong with the file, at most ten lines; empty when sound or not SQLite."""
        if self._engine.dialect.name != "sqlite":
            return ()
        with self.read() as session:
            rows = session.connection().exec_driver_sql(f"PRAGMA quick_check({CHECK_LINES_MAX})").scalars().all()
        return () if list(rows) == ["ok"] else tuple(str(row) for row in rows)

    def close(self) -> None:
        """Close all connections; the last one to close an SQLite database also merges its write-ahead log."""
        self._engine.dispose()


def open_database(url: str) -> Database:
    """Open a database, create it where it is missing, bring its schema up to date; raise a DatabaseError.

    `url` is an SQLAlchemy address (`sqlite:////absolute/path.db`) or the plain path of an SQLite file.
    """
    address = parse_url(url)
    where = display_url(address)
    try:
        engine = _make_engine(address)
    except (ImportError, NoSuchModuleError) as error:
        raise UnsupportedDatabaseError(
            f"database {where}: its driver is missing; install it with `pip install 'ckptwatch[postgresql]'` "
            f"and write an address that begins with postgresql:// ({error})"
        ) from error
    path = Path(str(address.database)) if address.get_backend_name() == "sqlite" else None
    try:
        if path is not None:
            _prepare_sqlite(path)
        _bring_up_to_date(engine, address, where)
        return Database(engine, where, path)
    except (SQLAlchemyError, sqlite3.Error) as error:
        engine.dispose()
        raise translate(error, where) from error
    except OSError as error:
        engine.dispose()
        raise make_error(DatabaseErrorKind.UNREACHABLE, where, f"{error.strerror}: {error.filename}") from error
    except BaseException:
        engine.dispose()
        raise


def parse_url(url: str) -> URL:
    """Return the address of a database; a text without a scheme is the path of an SQLite file."""
    if "://" not in url:
        if not url.strip() or "\0" in url:
            raise UnsupportedDatabaseError("database: the address is empty; give a path such as /var/lib/ckptwatch/db")
        return URL.create("sqlite", database=os.path.abspath(os.path.expanduser(url)))
    try:
        address = make_url(url)
    except (ArgumentError, ValueError) as error:
        # The reason would repeat the address, and with it a password.
        raise UnsupportedDatabaseError(
            "database: the address cannot be understood; write sqlite:////absolute/path.db"
        ) from error
    if address.get_backend_name() not in {"sqlite", "postgresql"}:
        raise UnsupportedDatabaseError(f"database {display_url(address)}: only sqlite and postgresql can be used")
    if address.drivername == "postgresql":
        return address.set(drivername="postgresql+psycopg")  # the one driver that we know
    if address.get_backend_name() == "sqlite":
        if address.database in {None, "", ":memory:"} or str(address.database).startswith("file:"):
            raise UnsupportedDatabaseError(
                "database: a database in memory would forget everything; write sqlite:////absolute/path.db"
            )
        return address.set(database=os.path.abspath(os.path.expanduser(str(address.database))))
    return address


def move_aside(url: str, *, suffix: str) -> Path | None:
    """Rename a damaged SQLite database with its log, so that a fresh one can be opened; None when it is not SQLite.

    No connection to it may be open. Nothing is deleted. Return the new path; raise a DatabaseError.
    """
    address = parse_url(url)
    if address.get_backend_name() != "sqlite":
        return None
    try:
        return sqlite.move_aside(Path(str(address.database)), suffix)
    except OSError as error:
        where = display_url(address)
        raise make_error(DatabaseErrorKind.UNREACHABLE, where, f"{error.strerror}: {error.filename}") from error


def _make_engine(address: URL) -> Engine:
    # hide_parameters: values must not end up in messages and logs.
    engine = create_engine(
        address, hide_parameters=True, pool_size=5, max_overflow=_CONNECTIONS_MAX - 5, pool_timeout=10.0
    )
    if address.get_backend_name() == "sqlite":
        event.listen(engine, "connect", _on_connect)
        event.listen(engine, "begin", _on_begin)
    return engine


def _on_connect(connection: Any, _record: object) -> None:
    assert isinstance(connection, sqlite3.Connection)
    sqlite.configure(connection)


def _on_begin(connection: Connection) -> None:
    mode = connection.get_execution_options().get("ckptwatch_mode", "read")
    connection.exec_driver_sql(f"PRAGMA query_only={'ON' if mode == 'read' else 'OFF'}")
    # A transaction that reads first and writes later could find the lock taken when it is too late to start again.
    connection.exec_driver_sql("BEGIN" if mode == "read" else "BEGIN IMMEDIATE")


def _inode(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _prepare_sqlite(path: Path) -> None:
    sqlite.prepare_file(path)
    with closing(sqlite3.connect(path, timeout=sqlite.BUSY_TIMEOUT_SECONDS)) as connection:
        sqlite.choose_journal(connection, path)


def _bring_up_to_date(engine: Engine, address: URL, where: str) -> None:
    with engine.execution_options(ckptwatch_mode="read").connect() as connection:
        revision = _revision(connection, where)
    if revision == migrations.HEAD:
        return
    if revision is None:
        with engine.execution_options(ckptwatch_mode="write").connect() as connection, connection.begin():
            if connection.dialect.name == "postgresql":
                postgresql.take_schema_lock(connection)
            # Another process may have been faster between the look and the lock.
            if _revision(connection, where) is None:
                _create(connection)
                return
        _bring_up_to_date(engine, address, where)
        return
    if revision not in migrations.REVISIONS:
        raise NewerSchemaError(
            f"database {where}: its schema {revision} is newer than this release knows ({migrations.HEAD}); "
            "install the release that wrote it, or use another database"
        )
    _migrate(address, where)
    with engine.execution_options(ckptwatch_mode="read").connect() as connection:
        revision = _revision(connection, where)
    if revision != migrations.HEAD:
        raise MigrationError(f"database {where}: its schema is {revision} after the upgrade, not {migrations.HEAD}")


def _revision(connection: Connection, where: str) -> str | None:
    """Return the schema's revision, None for an empty database; raise ForeignDatabaseError for another program's."""
    names = inspect(connection).get_table_names()
    if not names:
        return None
    if "alembic_version" not in names or "snapshots" not in names:
        raise ForeignDatabaseError(
            f"database {where}: it holds the tables of another program ({', '.join(sorted(names)[:3])}); "
            "use another database"
        )
    value = connection.execute(text("SELECT version_num FROM alembic_version")).scalar()
    if value is None:
        raise make_error(DatabaseErrorKind.CORRUPT, where, "it does not say which schema it has")
    return str(value)


def _create(connection: Connection) -> None:
    reach("create.begin")
    # A new database gets the newest schema at once, with no need of Alembic; tests hold it equal to the revisions.
    Base.metadata.create_all(connection, checkfirst=False)
    connection.execute(
        text(
            "CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL, "
            "CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num))"
        )
    )
    connection.execute(text("INSERT INTO alembic_version VALUES (:head)"), {"head": migrations.HEAD})
    reach("create.commit")


def _migrate(address: URL, where: str) -> None:
    """Run `python -m storage.migrations` in a process of its own, which holds Alembic so that this one need not."""
    inherited = os.environ.get("PYTHONPATH")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([_PACKAGE_ROOT, *([inherited] if inherited else [])])}
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-m", "storage.migrations"],
            input=json.dumps(address._asdict()),
            env=environment,
            capture_output=True,
            text=True,
            timeout=MIGRATION_TIMEOUT_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise MigrationError(
            f"database {where}: the upgrade of the schema took longer than {MIGRATION_TIMEOUT_SECONDS:.0f} s"
        ) from error
    if done.returncode == 0:
        return
    try:
        answer = json.loads(done.stdout)
        kind, message = DatabaseErrorKind(answer["kind"]), str(answer["message"])
    except (ValueError, KeyError, TypeError):
        last = (done.stderr.strip().splitlines() or ["no message"])[-1][:300]
        raise MigrationError(f"database {where}: the upgrade of the schema failed: {last}") from None
    raise ERROR_CLASSES[kind](message)


__all__ = ["Database", "DatabaseError", "move_aside", "open_database", "parse_url"]
