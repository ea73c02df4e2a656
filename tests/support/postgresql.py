"""A real PostgreSQL on loopback in a directory of its own, with a fresh database for every test that wants one."""

from __future__ import annotations

import itertools
import os
import pwd
import secrets
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Self

import pytest
from sqlalchemy import URL, create_engine, make_url, text
from sqlalchemy.exc import OperationalError

from tests.support.daemons import wait_for
from tests.support.receivers import free_port

STOP_SECONDS = 30


def find_programs() -> Path | None:
    """Return the directory of initdb and postgres, which Debian keeps out of the PATH; the newest one."""
    on_path = shutil.which("initdb")
    if on_path is not None:
        return Path(on_path).resolve().parent
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    return found[-1].parent if found else None


def _account() -> str | None:
    """Return the user that must run the server: it refuses to be root."""
    if os.geteuid() != 0:
        return None
    return next((name for name in ("postgres", "nobody") if name in {entry.pw_name for entry in pwd.getpwall()}), None)


PROGRAMS = find_programs()
needs_postgresql = pytest.mark.skipif(
    PROGRAMS is None, reason="PostgreSQL is not installed (Debian package postgresql)"
)


class PostgresqlServer:
    """One cluster without durability, since it lives as long as the tests; a password is asked for, as in real life."""

    def __init__(self) -> None:
        assert PROGRAMS is not None
        self.programs = PROGRAMS
        self.account = _account()
        self.directory = Path(tempfile.mkdtemp(prefix="ckptwatch-postgresql-"))
        self.port = free_port()
        self.password = secrets.token_urlsafe(16)
        self._numbers = itertools.count()
        self._shared: str | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._initialise()

    def _initialise(self) -> None:
        password_file = self.directory / "password"
        password_file.write_text(self.password)
        if self.account is not None:
            for path in (self.directory, password_file):
                shutil.chown(path, self.account)
        subprocess.run(
            [
                self.programs / "initdb",
                f"--pgdata={self.data}",
                "--username=ckptwatch",
                f"--pwfile={password_file}",
                "--auth=scram-sha-256",
                "--encoding=UTF8",
                "--no-locale",
                "--no-sync",
            ],
            cwd=self.directory,
            user=self.account,
            check=True,
            capture_output=True,
            timeout=120,
        )

    @property
    def data(self) -> Path:
        return self.directory / "data"

    def start(self) -> Self:
        settings = {
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": "",
            "fsync": "off",
            "synchronous_commit": "off",
            "full_page_writes": "off",
            "max_connections": "200",
            "shared_buffers": "32MB",
        }
        options = [option for key, value in settings.items() for option in ("-c", f"{key}={value}")]
        with (self.directory / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [self.programs / "postgres", "-D", self.data, "-p", str(self.port), *options],
                cwd=self.directory,
                user=self.account,
                stdout=log,
                stderr=log,
            )
        wait_for("PostgreSQL to take connections", self._is_ready)
        return self

    def _is_ready(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, (self.directory / "log").read_text()
        engine = create_engine(self.url("postgres"))
        try:
            with engine.connect():
                return True
        except OperationalError:
            return False
        finally:
            engine.dispose()

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """End the server, by default at once but in order: its clients are cut off."""
        if self._process is not None:
            self._process.send_signal(how)
            self._process.wait(STOP_SECONDS)
            self._process = None

    def remove(self) -> None:
        self.stop(signal.SIGQUIT)
        shutil.rmtree(self.directory, ignore_errors=True)

    def url(self, database: str) -> URL:
        return URL.create(
            "postgresql+psycopg",
            username="ckptwatch",
            password=self.password,
            host="127.0.0.1",
            port=self.port,
            database=database,
        )

    def create(self) -> str:
        """Make an empty database and return its address, the password in it."""
        name = f"test_{next(self._numbers)}"
        self._administer("postgres", f"CREATE DATABASE {name}")
        return self.url(name).render_as_string(hide_password=False)

    def emptied(self) -> str:
        """Empty the one database that tests use one after the other, and return its address."""
        if self._shared is None:
            self._shared = self.create()
        name = make_url(self._shared).database
        assert name is not None
        self._administer(name, "SET lock_timeout = '10s'; DROP SCHEMA public CASCADE; CREATE SCHEMA public")
        return self._shared

    def _administer(self, database: str, statements: str) -> None:
        engine = create_engine(self.url(database), isolation_level="AUTOCOMMIT")
        try:
            with engine.connect() as connection:
                for statement in statements.split(";"):
                    connection.execute(text(statement))
        finally:
            engine.dispose()


def running_server() -> Iterator[PostgresqlServer]:
    """Yield a running server and remove it; the body of a fixture."""
    if PROGRAMS is None:
        pytest.skip("PostgreSQL is not installed (Debian package postgresql)")
    server = PostgresqlServer()
    try:
        yield server.start()
    finally:
        server.remove()
