"""Open the database of a daemon: one daemon at a time, a damaged SQLite file set aside, and a trace of a crash noticed.

Beside the file `NAME.db` lies `NAME.db.lock`: locked while a daemon records, with its process number inside until it
closes in order. Where the number was left, the last daemon ended in the middle of something and the file is checked
before it is used. What is damaged is renamed, never deleted; the checkpoints on disk fill the new database again.
PostgreSQL looks after itself, so there all of this is left to it.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import re
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from storage import sqlite
from storage.database import Database, move_aside, open_database, parse_url
from storage.errors import (
    CorruptDatabaseError,
    DatabaseError,
    DatabaseErrorKind,
    DatabaseLockedError,
    ForeignDatabaseError,
    display_url,
    make_error,
)

LOCK_SUFFIX: Final = ".lock"
ASIDE_SUFFIX: Final = ".corrupt-"
ASIDE_FILES_MAX: Final = 8  # then the disk, not the file, is what is broken
CHECK_BYTES_MAX: Final = 8 * 2**30  # checking reads all of the file, a gigabyte in a few seconds
_LOCK_BYTES_MAX: Final = 64
_SQLITE_HEAD: Final = b"SQLite format 3\0"

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class SetAside:
    """A damaged database that was renamed: where it is now, and what was wrong with it."""

    path: Path
    reason: str


class Recording:
    """A database open for the one daemon that records into it; `set_aside` is the damaged one that it replaces."""

    def __init__(self, database: Database, lock: _Lock | None, set_aside: SetAside | None) -> None:
        self.database = database
        self.set_aside = set_aside
        self._lock = lock

    def close(self, *, sound: bool = True) -> None:
        """Close the database and let another daemon have it; `sound` False has the next one check it first."""
        self.database.close()
        if self._lock is not None:
            self._lock.release(sound=sound)
            self._lock = None


def open_for_recording(url: str, *, now: float, is_damaged: bool = False) -> Recording:
    """Open the database for a daemon; raise a DatabaseError, DatabaseLockedError where another daemon has it.

    A damaged SQLite database is renamed to NAME.corrupt-TIME, with its log, and an empty one takes its place; `now` is
    the Unix time for the name. `is_damaged` says that it is, whatever a check would find.
    """
    address = parse_url(url)
    if address.get_backend_name() != "sqlite":
        return Recording(open_database(url), None, None)
    path = Path(str(address.database))
    is_ours = _is_ours(path)
    lock = _take(path, display_url(address))
    try:
        reason = "it was found to be damaged while it was in use" if is_damaged and path.exists() else None
        if reason is None:
            opened, reason = _open_sound(url, path, checked=lock.was_left)
            if opened is not None:
                return Recording(opened, lock, None)
            if not is_ours:
                raise _foreign(path, display_url(address))
        aside = _set_aside(url, path, now, reason)
        return Recording(open_database(url), lock, SetAside(path=aside, reason=reason))
    except BaseException:
        lock.release(sound=not lock.was_left)
        if not is_ours:
            with suppress(OSError):  # or the next start would take a stranger's file for ours
                os.unlink(str(path) + LOCK_SUFFIX)
        raise


def _is_ours(path: Path) -> bool:
    """Say whether a file may be set aside: it is SQLite's, or a daemon has recorded beside it, or there is none yet.

    Anything else is a file that somebody named by mistake, and is left where it is.
    """
    if Path(str(path) + LOCK_SUFFIX).exists():
        return True
    try:
        with path.open("rb") as file:
            return file.read(len(_SQLITE_HEAD)) in {b"", _SQLITE_HEAD}
    except OSError:
        return True  # opening it says what is wrong


def _foreign(path: Path, where: str) -> DatabaseError:
    return ForeignDatabaseError(
        f"database {where}: {path.name} is no SQLite database and was never one of ckptwatch; name another with --db"
    )


def newest_set_aside(url: str) -> float | None:
    """Return when a damaged database was last set aside (Unix time, by the file's name), None when none lies there."""
    address = parse_url(url)
    if address.get_backend_name() != "sqlite":
        return None
    times = [_time_of(name) for name in _names_aside(Path(str(address.database)))]
    return max((t for t in times if t is not None), default=None)


def _open_sound(url: str, path: Path, *, checked: bool) -> tuple[Database | None, str]:
    """Return the open database, or None and what is wrong with it; raises what is wrong with anything else."""
    try:
        opened = open_database(url)
    except CorruptDatabaseError as error:
        return None, _reason(error, url)
    if checked and path.stat().st_size <= CHECK_BYTES_MAX:
        log.info("the last daemon did not close %s in order; checking it", opened.url)
        try:
            found = opened.quick_check()
        except CorruptDatabaseError as error:
            found = (_reason(error, url),)
        if found:
            opened.close()
            return None, " ".join(found[0].split())[:300]
    return opened, ""


def _reason(error: CorruptDatabaseError, url: str) -> str:
    """Return what is wrong, without the place, which is said anyway, and the advice, which is being followed."""
    return str(error).removeprefix(f"database {display_url(parse_url(url))}: ").partition("; ")[0]


def _set_aside(url: str, path: Path, now: float, reason: str) -> Path:
    where = display_url(parse_url(url))
    n_aside = len(_names_aside(path))
    if n_aside >= ASIDE_FILES_MAX:
        raise make_error(
            DatabaseErrorKind.CORRUPT,
            where,
            f"{reason}, and {n_aside} damaged ones lie beside it already: check the disk, then remove them",
        )
    stamp = datetime.fromtimestamp(now, UTC).strftime("%Y%m%dT%H%M%SZ")
    suffix = f"{ASIDE_SUFFIX}{stamp}"
    while path.with_name(path.name + suffix).exists():
        suffix += "-again"
    aside = move_aside(url, suffix=suffix)
    assert aside is not None  # it is SQLite
    log.error(
        "database %s: %s; it was set aside as %s, and what is still on disk is measured anew", where, reason, aside
    )
    return aside


def _names_aside(path: Path) -> list[str]:
    begin = path.name + ASIDE_SUFFIX
    with suppress(OSError):
        names = os.listdir(path.parent)
        return [n[len(begin) :] for n in names if n.startswith(begin) and not n.endswith(("-wal", "-shm", "-journal"))]
    return []


def _time_of(stamp: str) -> float | None:
    match = re.match(r"\d{8}T\d{6}Z", stamp)
    if match is None:
        return None
    try:
        return datetime.strptime(match.group(), "%Y%m%dT%H%M%S%z").timestamp()
    except ValueError:
        return None


class _Lock:
    """The locked file; `was_left` says that the daemon before did not close in order."""

    def __init__(self, descriptor: int | None, was_left: bool) -> None:
        self._descriptor = descriptor
        self.was_left = was_left

    def release(self, *, sound: bool) -> None:
        if self._descriptor is None:
            return
        if sound:
            with suppress(OSError):
                os.ftruncate(self._descriptor, 0)
        os.close(self._descriptor)
        self._descriptor = None


def _take(path: Path, where: str) -> _Lock:
    """Lock the file beside the database and write our number into it; raise a DatabaseError."""
    try:
        sqlite.prepare_file(path)
        descriptor = os.open(str(path) + LOCK_SUFFIX, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise make_error(DatabaseErrorKind.UNREACHABLE, where, f"{error.strerror}: {error.filename}") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        holder = _number(descriptor)
        os.close(descriptor)
        if error.errno not in {errno.EWOULDBLOCK, errno.EACCES}:
            log.warning("%s cannot be locked (%s): see to it that one daemon alone uses it", where, error.strerror)
            return _Lock(None, was_left=False)
        by = "" if holder is None else f" (process {holder})"
        raise DatabaseLockedError(
            f"database {where}: another ckptwatch{by} is recording into it; stop that one, or name another database "
            "with --db"
        ) from error
    was_left = _number(descriptor) is not None
    with suppress(OSError):  # a full disk: the lock holds all the same
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
    return _Lock(descriptor, was_left)


def _number(descriptor: int) -> int | None:
    text = os.pread(descriptor, _LOCK_BYTES_MAX, 0).strip()
    return int(text) if text.isdigit() else None
