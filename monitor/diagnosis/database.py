"""The database: where it lies, whether it opens, is sound and has room. Opening one brings its schema up to date."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from monitor.diagnosis.finding import Condition, Diagnosis, problem, warning, well
from monitor.watch.filesystem import NETWORK, filesystem_type, kind_of_type
from storage import queries
from storage.database import open_database
from storage.errors import DatabaseError

FREE_BYTES_MIN = 2**30
SUBJECT = "database"


def diagnose_database(url: str) -> Sequence[Diagnosis]:
    """Look at the database behind `url`; one that is not there yet is not made."""
    path = None if not url.startswith("sqlite:///") else Path(url.removeprefix("sqlite:///"))
    found: list[Diagnosis] = []
    if path is not None:
        found += _place(path)
        if not path.exists() or any(diagnosis.condition is Condition.PROBLEM for diagnosis in found):
            return found
    return [*found, _contents(url)]


def _place(path: Path) -> list[Diagnosis]:
    directory = path.parent
    while not directory.exists() and directory != directory.parent:
        directory = directory.parent
    try:
        with tempfile.TemporaryFile(dir=directory):
            pass
    except OSError as error:
        reason = error.strerror or str(error)
        return [problem(SUBJECT, f"{directory} cannot be written: {reason}", "name another place with --db")]
    found = []
    name = filesystem_type(str(path)) or "unknown"
    if kind_of_type(name) == NETWORK:
        found.append(
            warning(
                SUBJECT,
                f"{path} lies on {name}, where SQLite's locks cannot be trusted",
                "put storage.url on a local disk, or use PostgreSQL",
            )
        )
    free = shutil.disk_usage(directory).free
    if free < FREE_BYTES_MIN:
        found.append(
            warning(
                SUBJECT, f"{free / 2**20:.0f} MiB are free at {directory}", "make room, or name another place with --db"
            )
        )
    if not path.exists():
        found.append(well(SUBJECT, f"{path} is not there yet; the daemon makes it"))
    return found


def _contents(url: str) -> Diagnosis:
    try:
        database = open_database(url)
    except DatabaseError as error:
        return problem(SUBJECT, str(error), "mend what it says, or name another database with --db")
    try:
        damage = database.quick_check()
        if damage:
            return problem(
                SUBJECT,
                f"{database.url} is damaged: {damage[0]}",
                "stop the daemon and move the file away with its -wal and -shm; a new one is filled by scanning",
            )
        with database.read() as session:
            runs = queries.runs(session)
    except DatabaseError as error:
        return problem(SUBJECT, str(error), "mend what it says, or name another database with --db")
    finally:
        database.close()
    n_snapshots = sum(run.n_snapshots for run in runs)
    return well(SUBJECT, f"{database.url} is sound: {len(runs):,} runs, {n_snapshots:,} snapshots")
