"""The history of the schema, and how to bring a database up to date without holding Alembic in memory.

Importing this package must not import Alembic (one second, 45 MiB): `python -m storage.migrations` does, in a process
of its own. The revisions are listed here by hand so that comparing needs no Alembic; a test compares the
list with the files.
"""

from __future__ import annotations

from typing import Final

REVISIONS: Final[tuple[str, ...]] = ("0001", "0002", "0003", "0004", "0005", "0006", "0007")
HEAD: Final = REVISIONS[-1]
