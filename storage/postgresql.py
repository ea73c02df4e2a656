"""Everything that is particular to PostgreSQL: its locks.

Must not know any table. Locks are advisory and end with the transaction, so that a process which dies leaves none.
"""

from __future__ import annotations

from typing import Final

from sqlalchemy import Connection, text

LOCK_TIMEOUT_SECONDS: Final = 30.0  # writers of many daemons stand in one queue; half as long as a lease lasts
SCHEMA_LOCK_TIMEOUT_SECONDS: Final = 600.0  # another process may be migrating a large database
SCHEMA_LOCK: Final = 0x636B7074  # any constants; "ckpt" and "ckpw" in ASCII
WRITE_LOCK: Final = 0x636B7077


def take_write_lock(connection: Connection) -> None:
    """Wait for the one write lock of the database until the transaction ends; raise what the driver raises."""
    _wait_for(connection, WRITE_LOCK, LOCK_TIMEOUT_SECONDS)


def take_schema_lock(connection: Connection) -> None:
    """Wait until no other process creates or changes the schema, and keep others from it until the end."""
    _wait_for(connection, SCHEMA_LOCK, SCHEMA_LOCK_TIMEOUT_SECONDS)


def limit_waiting(connection: Connection, seconds: float = LOCK_TIMEOUT_SECONDS) -> None:
    """Let no statement of the transaction wait longer for a lock."""
    connection.execute(text("SELECT set_config('lock_timeout', :limit, true)"), {"limit": f"{int(seconds * 1000)}ms"})


def _wait_for(connection: Connection, key: int, seconds: float) -> None:
    limit_waiting(connection, seconds)
    connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": key})
