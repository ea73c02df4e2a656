"""A fresh database for each test of storage: a file of SQLite, and where it is installed one in a real PostgreSQL."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from storage.database import Database, open_database
from tests.support.postgresql import PostgresqlServer, needs_postgresql, running_server


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ckptwatch.db"


@pytest.fixture(scope="session")
def postgresql() -> Iterator[PostgresqlServer]:
    yield from running_server()


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=needs_postgresql)])
def url(request: pytest.FixtureRequest, path: Path) -> str:
    """The address of an empty database."""
    if request.param == "sqlite":
        return f"sqlite:///{path}"
    server: PostgresqlServer = request.getfixturevalue("postgresql")
    return server.emptied()


@pytest.fixture
def database(url: str) -> Iterator[Database]:
    opened = open_database(url)
    yield opened
    opened.close()


@pytest.fixture
def sqlite_database(path: Path) -> Iterator[Database]:
    opened = open_database(str(path))
    yield opened
    opened.close()
