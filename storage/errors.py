"""What can go wrong with the database, as one tree of errors that each say what to do.

Callers above storage catch DatabaseError and look at `kind`; they never see SQLAlchemy or sqlite3. This module must not
open anything and must not repeat secrets: messages name the database without its password.
"""

from __future__ import annotations

import sqlite3
from enum import StrEnum
from typing import ClassVar

from sqlalchemy import URL, exc

MESSAGE_CHARACTERS_MAX = 300


class DatabaseErrorKind(StrEnum):
    """Why the database could not do what was asked; the closed list that metrics and exit codes use."""

    CORRUPT = "corrupt"
    LOCKED = "locked"
    FULL = "full"
    NEWER_SCHEMA = "newer_schema"
    FOREIGN = "foreign"
    UNREACHABLE = "unreachable"
    READ_ONLY = "read_only"
    CONFLICT = "conflict"
    UNSUPPORTED = "unsupported"
    MIGRATION = "migration"
    INTERNAL = "internal"


class DatabaseError(Exception):
    """The database could not do what was asked; subclasses fix the kind.

    DatabaseError
    ├── CorruptDatabaseError      the file is damaged or not a database
    ├── DatabaseLockedError       another process held it for longer than the time limit
    ├── DatabaseFullError         no room left on the disk, or a quota
    ├── NewerSchemaError          written by a newer release
    ├── ForeignDatabaseError      a database of another program
    ├── DatabaseUnreachableError  cannot be opened or the connection is lost
    │   └── DatabaseReplacedError the file is no longer the one that was opened
    ├── ReadOnlyDatabaseError     may not be written
    ├── DatabaseConflictError     a rule of the schema was broken
    ├── UnsupportedDatabaseError  an address or driver that cannot be used
    └── MigrationError            the schema could not be brought up to date
    """

    kind: ClassVar[DatabaseErrorKind] = DatabaseErrorKind.INTERNAL


class CorruptDatabaseError(DatabaseError):
    """The file is damaged or is not a database."""

    kind = DatabaseErrorKind.CORRUPT


class DatabaseLockedError(DatabaseError):
    """Another process or thread held the database for longer than the time limit."""

    kind = DatabaseErrorKind.LOCKED


class DatabaseFullError(DatabaseError):
    """There is no room left; what was stored before is still readable."""

    kind = DatabaseErrorKind.FULL


class NewerSchemaError(DatabaseError):
    """The database was written by a newer release."""

    kind = DatabaseErrorKind.NEWER_SCHEMA


class ForeignDatabaseError(DatabaseError):
    """The database belongs to another program."""

    kind = DatabaseErrorKind.FOREIGN


class DatabaseUnreachableError(DatabaseError):
    """The database cannot be opened, or the connection to it is lost."""

    kind = DatabaseErrorKind.UNREACHABLE


class DatabaseReplacedError(DatabaseUnreachableError):
    """The file, or its log, was removed or replaced while it was open; open it again."""


class ReadOnlyDatabaseError(DatabaseError):
    """The database may not be written."""

    kind = DatabaseErrorKind.READ_ONLY


class DatabaseConflictError(DatabaseError):
    """A rule of the schema was broken: a bug in the caller, or two writers at once."""

    kind = DatabaseErrorKind.CONFLICT


class UnsupportedDatabaseError(DatabaseError):
    """The address or its driver cannot be used."""

    kind = DatabaseErrorKind.UNSUPPORTED


class MigrationError(DatabaseError):
    """The schema could not be brought up to date; the database is as it was before."""

    kind = DatabaseErrorKind.MIGRATION


ERROR_CLASSES: dict[DatabaseErrorKind, type[DatabaseError]] = {
    cls.kind: cls
    for cls in (
        CorruptDatabaseError,
        DatabaseLockedError,
        DatabaseFullError,
        NewerSchemaError,
        ForeignDatabaseError,
        DatabaseUnreachableError,
        ReadOnlyDatabaseError,
        DatabaseConflictError,
        UnsupportedDatabaseError,
        MigrationError,
        DatabaseError,
    )
}

_ADVICE: dict[DatabaseErrorKind, str] = {
    DatabaseErrorKind.CORRUPT: (
        "move it aside together with its -wal and -shm files and start again: "
        "checkpoints that are still on disk will be measured anew"
    ),
    DatabaseErrorKind.LOCKED: "end the other process that is using it, or try again",
    DatabaseErrorKind.FULL: "free some space on that disk; nothing that was stored is lost, and the work is done again",
    DatabaseErrorKind.UNREACHABLE: "check that the place exists, is reachable and may be opened by this user",
    DatabaseErrorKind.READ_ONLY: "check the permissions of the file and of its directory",
    DatabaseErrorKind.CONFLICT: "please report this",
    DatabaseErrorKind.INTERNAL: "please report this",
}

# Primary and extended names by https://www.sqlite.org/rescode.html; the longest match counts.
_SQLITE_KINDS: dict[str, DatabaseErrorKind] = {
    "SQLITE_CORRUPT": DatabaseErrorKind.CORRUPT,
    "SQLITE_NOTADB": DatabaseErrorKind.CORRUPT,
    "SQLITE_IOERR_CORRUPTFS": DatabaseErrorKind.CORRUPT,
    "SQLITE_BUSY": DatabaseErrorKind.LOCKED,
    "SQLITE_LOCKED": DatabaseErrorKind.LOCKED,
    "SQLITE_PROTOCOL": DatabaseErrorKind.LOCKED,
    "SQLITE_FULL": DatabaseErrorKind.FULL,
    # A disk or file-size quota shows as a failed write, growth or sync, not as SQLITE_FULL.
    "SQLITE_IOERR_WRITE": DatabaseErrorKind.FULL,
    "SQLITE_IOERR_SHMSIZE": DatabaseErrorKind.FULL,
    "SQLITE_IOERR": DatabaseErrorKind.UNREACHABLE,
    "SQLITE_CANTOPEN": DatabaseErrorKind.UNREACHABLE,
    "SQLITE_PERM": DatabaseErrorKind.UNREACHABLE,
    "SQLITE_AUTH": DatabaseErrorKind.UNREACHABLE,
    "SQLITE_READONLY": DatabaseErrorKind.READ_ONLY,
    "SQLITE_CONSTRAINT": DatabaseErrorKind.CONFLICT,
}

# By https://www.postgresql.org/docs/current/errcodes-appendix.html; a whole code counts before its class.
_SQLSTATE_KINDS: dict[str, DatabaseErrorKind] = {
    "40001": DatabaseErrorKind.LOCKED,  # serialization failure
    "40P01": DatabaseErrorKind.LOCKED,  # deadlock
    "55P03": DatabaseErrorKind.LOCKED,  # lock timeout
    "57014": DatabaseErrorKind.LOCKED,  # cancelled by a time limit
    "53100": DatabaseErrorKind.FULL,
    "25006": DatabaseErrorKind.READ_ONLY,
    "42501": DatabaseErrorKind.READ_ONLY,  # no privilege
    "08": DatabaseErrorKind.UNREACHABLE,
    "28": DatabaseErrorKind.UNREACHABLE,  # wrong password
    "3D": DatabaseErrorKind.UNREACHABLE,  # no such database
    "53": DatabaseErrorKind.UNREACHABLE,  # too many connections, no memory
    "57": DatabaseErrorKind.UNREACHABLE,  # shut down or starting up
    "58": DatabaseErrorKind.UNREACHABLE,  # an error of the system below
    "23": DatabaseErrorKind.CONFLICT,
    "XX": DatabaseErrorKind.CORRUPT,  # damaged data or index
    "XX000": DatabaseErrorKind.INTERNAL,
}


def display_url(url: URL) -> str:
    """Return the address of a database for messages: printable, the password hidden."""
    if url.get_backend_name() == "sqlite":
        return f"sqlite:///{url.database}".encode("utf-8", "backslashreplace").decode("utf-8")
    return url.render_as_string(hide_password=True)


def hide_password(address: str) -> str:
    """Return the address of a database as it was written, its password replaced by three stars."""
    head, at, rest = address.rpartition("@")
    scheme, mark, login = head.partition("://")
    user, colon, _ = login.partition(":")
    has_password = at and mark and colon and not scheme.startswith("sqlite")
    return f"{scheme}{mark}{user}:***@{rest}" if has_password else address


def make_error(kind: DatabaseErrorKind, where: str, reason: str) -> DatabaseError:
    """Return the error of a kind, its message made of the place, the reason and what to do.

    `where` is the database's name without a password; `reason` is cut to 300 characters and one line.
    """
    line = " ".join(reason.split())[:MESSAGE_CHARACTERS_MAX]
    advice = _ADVICE.get(kind)
    return ERROR_CLASSES[kind](f"database {where}: {line}" + (f"; {advice}" if advice else ""))


def kind_of_sqlite(error: sqlite3.Error) -> DatabaseErrorKind:
    """Return the kind of an error of the sqlite3 module by its result code."""
    name = getattr(error, "sqlite_errorname", None) or ""
    while name:
        if name in _SQLITE_KINDS:
            return _SQLITE_KINDS[name]
        name = name.rpartition("_")[0]
    return DatabaseErrorKind.CONFLICT if isinstance(error, sqlite3.IntegrityError) else DatabaseErrorKind.INTERNAL


def kind_of_sqlstate(code: str | None) -> DatabaseErrorKind | None:
    """Return the kind of an error of PostgreSQL by its code, None where the code says nothing in particular."""
    return None if code is None else _SQLSTATE_KINDS.get(code, _SQLSTATE_KINDS.get(code[:2]))


def translate(error: exc.SQLAlchemyError | sqlite3.Error, where: str) -> DatabaseError:
    """Return the DatabaseError that says what an error of the database libraries means.

    Only the driver's own words are repeated, never the statement or its values.
    """
    if isinstance(error, sqlite3.Error):
        return make_error(kind_of_sqlite(error), where, str(error))
    if isinstance(error, exc.DBAPIError):
        cause = error.orig
        if isinstance(cause, sqlite3.Error):
            return make_error(kind_of_sqlite(cause), where, str(cause))
        kind = kind_of_sqlstate(getattr(cause, "sqlstate", None))
        if kind is not None:
            return make_error(kind, where, str(cause).partition("\n")[0])  # what follows repeats values
        if isinstance(error, exc.IntegrityError):
            return make_error(DatabaseErrorKind.CONFLICT, where, str(cause))
        if error.connection_invalidated or isinstance(error, exc.OperationalError | exc.InterfaceError):
            return make_error(DatabaseErrorKind.UNREACHABLE, where, str(cause))
        return make_error(DatabaseErrorKind.INTERNAL, where, f"{type(cause).__name__}: {cause}")
    if isinstance(error, exc.TimeoutError):
        return make_error(DatabaseErrorKind.LOCKED, where, "all connections are in use")
    return make_error(DatabaseErrorKind.INTERNAL, where, f"{type(error).__name__}: {error}")
