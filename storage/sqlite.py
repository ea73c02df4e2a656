"""Everything that is particular to SQLite: the file, its permissions, the journal and the settings of a connection.

Must not know any table. All functions take a path or a plain sqlite3 connection.
"""

from __future__ import annotations

import os
import sqlite3
import tempfile
from contextlib import closing, suppress
from pathlib import Path
from typing import Final

from storage.failpoints import reach

BUSY_TIMEOUT_SECONDS: Final = 10.0
JOURNAL_BYTES_MAX: Final = 64 * 2**20
COMPANION_SUFFIXES: Final = ("-wal", "-shm", "-journal")

# Write-ahead logging needs memory that all processes share, which two hosts on a network filesystem do not have.
_NETWORK_FILESYSTEMS: Final = frozenset(
    {"nfs", "nfs4", "cifs", "smb3", "smbfs", "lustre", "gpfs", "beegfs", "ceph", "glusterfs", "afs", "9p", "panfs"}
)
_NETWORK_PREFIXES: Final = ("fuse.sshfs", "fuse.gluster", "fuse.ceph", "fuse.s3", "fuse.gcs", "fuse.rclone")


def prepare_file(path: Path) -> None:
    """Create the directories (mode 0700) and the empty file (mode 0600) where they are missing; raise OSError."""
    missing = [parent for parent in path.parents if not parent.exists()]
    for parent in reversed(missing):
        parent.mkdir(mode=0o700, exist_ok=True)
    with suppress(FileExistsError):
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600))


def on_network_filesystem(path: Path, mounts: str | None = None) -> bool:
    """Say whether a directory lies on a filesystem that other hosts may also write.

    `mounts` is the text of /proc/self/mountinfo, read here when None; False where there is no such file.
    """
    if mounts is None:
        try:
            mounts = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="surrogateescape")
        except OSError:
            return False
    real, best, kind = os.path.realpath(path), "", ""
    for line in mounts.splitlines():
        left, separator, right = line.partition(" - ")
        fields = left.split(" ")
        if not separator or len(fields) < 5:
            continue
        point = fields[4].replace("\\040", " ").replace("\\011", "\t").replace("\\134", "\\")
        inside = real == point or real.startswith(point.rstrip("/") + "/")
        if inside and len(point) >= len(best):  # of two mounts on one place the later one is seen
            best, kind = point, right.split(" ")[0]
    return kind in _NETWORK_FILESYSTEMS or kind.startswith(_NETWORK_PREFIXES)


def wal_works(directory: Path) -> bool:
    """Try write-ahead logging in a directory with a scratch database.

    Some filesystems accept the mode and fail at the first write or at the second connection; only trying tells.
    """
    try:
        with tempfile.TemporaryDirectory(prefix=".ckptwatch-probe-", dir=directory) as scratch:
            name = os.path.join(scratch, "probe.db")
            with closing(sqlite3.connect(name)) as one, closing(sqlite3.connect(name)) as two:
                if one.execute("PRAGMA journal_mode=WAL").fetchone() != ("wal",):
                    return False
                one.execute("CREATE TABLE probe (x INTEGER)")
                with one:
                    one.execute("INSERT INTO probe VALUES (1)")
                return bool(two.execute("SELECT x FROM probe").fetchone() == (1,))
    except (sqlite3.Error, OSError):
        return False


def choose_journal(connection: sqlite3.Connection, path: Path) -> str:
    """Put the database into WAL mode where that is safe, else into DELETE mode; return the mode now in force.

    The mode is kept in the file. Another process may be using it, which is no error: then the mode stays as it is.
    """
    (current,) = connection.execute("PRAGMA journal_mode").fetchone()
    network = on_network_filesystem(path.parent)
    if current == "wal" and not network:
        return "wal"
    wanted = "delete" if network or not wal_works(path.parent) else "wal"
    if current == wanted:
        return wanted
    try:
        (current,) = connection.execute(f"PRAGMA journal_mode={wanted}").fetchone()
    except sqlite3.OperationalError as error:
        if not (getattr(error, "sqlite_errorname", "") or "").startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
            raise
    return str(current)


def configure(connection: sqlite3.Connection, *, foreign_keys: bool = True) -> None:
    """Set what SQLite keeps per connection; transactions are begun by us, never by the driver."""
    connection.isolation_level = None
    connection.execute(f"PRAGMA busy_timeout={int(BUSY_TIMEOUT_SECONDS * 1000)}")
    connection.execute(f"PRAGMA foreign_keys={'ON' if foreign_keys else 'OFF'}")
    connection.execute(f"PRAGMA journal_size_limit={JOURNAL_BYTES_MAX}")
    (journal,) = connection.execute("PRAGMA journal_mode").fetchone()
    # With WAL, NORMAL cannot corrupt: a power cut may only undo the last commits. With DELETE it could, so FULL there.
    connection.execute(f"PRAGMA synchronous={'NORMAL' if journal == 'wal' else 'FULL'}")


def back_up(path: Path, target: Path) -> None:
    """Copy a database, as it is committed now, into a new file of mode 0600; a half copy never gets the name."""
    partial = target.with_name(target.name + ".partial")
    partial.unlink(missing_ok=True)
    os.close(os.open(partial, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600))
    with closing(sqlite3.connect(path)) as source, closing(sqlite3.connect(partial)) as copy:
        source.backup(copy)
    os.replace(partial, target)


def move_aside(path: Path, suffix: str) -> Path:
    """Rename a database and its companion files, so that a fresh one can take the name; nothing is deleted.

    Return the new path of the database. The companions go with it, since the log may hold what the file does not.
    """
    target = path.with_name(path.name + suffix)
    reach("aside.begin")
    for companion in COMPANION_SUFFIXES:
        with suppress(FileNotFoundError):
            os.rename(str(path) + companion, str(target) + companion)
    reach("aside.companions")
    os.rename(path, target)
    reach("aside.done")
    return target
