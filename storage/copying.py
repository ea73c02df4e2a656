"""Copy everything of one database into another, empty one: from SQLite to PostgreSQL, or back.

One state of the source becomes one transaction in the target: all of it or nothing. Numbers of snapshots stay the same.
Claims are left behind, since they are about daemons that run. It judges nothing and thins nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from sqlalchemy import BigInteger, Integer, Table, func, insert, select, text
from sqlalchemy.orm import Session

from storage.database import Database
from storage.errors import DatabaseConflictError, MigrationError
from storage.models import Base, ClaimRow, RunRow

BATCH_ROWS: Final = 1000
LEFT_BEHIND: Final = frozenset({ClaimRow.__tablename__})


def copy_all(
    source: Database, target: Database, *, on_progress: Callable[[str, int], None] = lambda _name, _n_rows: None
) -> dict[str, int]:
    """Copy all rows and return how many there were, by table; raise a DatabaseError and leave the target as it was.

    Both have the newest schema. `on_progress` is told a table's name and how many of its rows are copied, now and then.
    No daemon should record into the source meanwhile: what comes after the beginning is not copied.
    """
    copied: dict[str, int] = {}
    with source.read() as reading, target.write() as writing:
        if writing.execute(select(RunRow.id).limit(1)).first() is not None:
            raise DatabaseConflictError(f"database {target.url}: it holds runs already; copy into an empty one")
        for each in Base.metadata.sorted_tables:
            if each.name not in LEFT_BEHIND:
                copied[each.name] = _copy(reading, writing, each, on_progress)
        _check(writing, copied, target.url)
        if target.is_shared:
            _continue_numbers(writing)
    return copied


def _copy(reading: Session, writing: Session, each: Table, on_progress: Callable[[str, int], None]) -> int:
    # What a new database says of itself already gives way to what the source says.
    writing.execute(each.delete())
    found = reading.execute(
        select(each).order_by(*each.primary_key.columns), execution_options={"yield_per": BATCH_ROWS}
    )
    n_rows = 0
    for rows in found.mappings().partitions():
        writing.execute(insert(each), [dict(row) for row in rows])
        n_rows += len(rows)
        on_progress(each.name, n_rows)
    return n_rows


def _check(writing: Session, copied: dict[str, int], where: str) -> None:
    for name, n_rows in copied.items():
        n_found = writing.execute(select(func.count()).select_from(Base.metadata.tables[name])).scalar_one()
        if n_found != n_rows:
            raise MigrationError(
                f"database {where}: {name} has {n_found} rows after {n_rows} were copied; nothing is kept"
            )


def _continue_numbers(writing: Session) -> None:
    """Let PostgreSQL count on from the highest number: rows that came with theirs did not move its counters."""
    for each in Base.metadata.sorted_tables:
        column = each.columns.get("id")
        if column is None or not isinstance(column.type, BigInteger | Integer) or not column.primary_key:
            continue
        highest = writing.execute(select(func.max(column))).scalar()
        if highest is not None:
            sequence = writing.execute(text("SELECT pg_get_serial_sequence(:name, 'id')"), {"name": each.name}).scalar()
            writing.execute(text("SELECT setval(:sequence, :highest)"), {"sequence": sequence, "highest": highest})
