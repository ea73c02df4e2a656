"""`ckptwatch db`: one database into another, and what is said of addresses with passwords."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from monitor.assembly import database_url
from monitor.commands.console import ExitCode
from monitor.config import ConfigError, load
from storage import queries, writer
from storage.database import open_database
from storage.errors import hide_password
from tests.support.daemons import ckptwatch
from tests.support.stored import make_snapshot


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "source.db"
    database = open_database(str(path))
    with database.write() as session:
        assert writer.add_snapshot(session, make_snapshot(1)) is not None
    database.close()
    return path


def test_a_copy_says_what_was_copied_and_refuses_to_be_made_twice(source: Path, tmp_path: Path) -> None:
    done = ckptwatch("db", "copy", source, tmp_path / "target.db", "--json")
    assert (done.returncode, done.stderr) == (ExitCode.WELL, "")
    assert json.loads(done.stdout)["rows"]["snapshots"] == 1
    opened = open_database(str(tmp_path / "target.db"))
    with opened.read() as session:
        assert queries.runs(session)[0].n_snapshots == 1
    opened.close()
    again = ckptwatch("db", "copy", source, tmp_path / "target.db")
    assert again.returncode == ExitCode.ENVIRONMENT
    assert "copy into an empty one" in again.stderr


def test_what_is_not_there_or_is_the_same_is_not_copied(source: Path, tmp_path: Path) -> None:
    missing = ckptwatch("db", "copy", tmp_path / "none.db", tmp_path / "target.db")
    assert missing.returncode == ExitCode.ENVIRONMENT
    assert not (tmp_path / "none.db").exists()
    assert not (tmp_path / "target.db").exists()
    same = ckptwatch("db", "copy", source, f"sqlite:///{source}")
    assert same.returncode == ExitCode.USAGE


def test_the_address_may_be_a_reference_and_its_password_is_never_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DB", "postgresql://ann:s3cret@db/x")
    assert database_url(load(None, {"storage": {"url": "env:DB"}})) == "postgresql://ann:s3cret@db/x"
    with pytest.raises(ConfigError, match="NO_DB"):
        database_url(load(None, {"storage": {"url": "env:NO_DB"}}))
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump({"storage": {"url": "postgresql://ann:s3cret@db/x"}}))
    shown = ckptwatch("config", "show", "--config", file)
    assert shown.returncode == ExitCode.WELL
    assert "s3cret" not in shown.stdout
    assert "postgresql://ann:***@db/x" in shown.stdout


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("postgresql://ann:a@b:c@db:5432/x", "postgresql://ann:***@db:5432/x"),
        ("postgresql://ann@db/x", "postgresql://ann@db/x"),
        ("sqlite:////data/a:b@c.db", "sqlite:////data/a:b@c.db"),
        ("/data/x.db", "/data/x.db"),
        ("env:DB", "env:DB"),
    ],
)
def test_a_password_is_replaced_by_stars(address: str, shown: str) -> None:
    assert hide_password(address) == shown
