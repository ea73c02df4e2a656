"""A fresh database for each test of storage."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from storage.database import Database, open_database


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ckptwatch.db"


@pytest.fixture
def database(path: Path) -> Iterator[Database]:
    opened = open_database(str(path))
    yield opened
    opened.close()
