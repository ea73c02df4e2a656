"""`ckptwatch silence`, and that `run` heeds it."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest

from storage.database import open_database
from tests.monitor.commands.conftest import Cli


@pytest.fixture
def database(tmp_path: Path) -> str:
    path = str(tmp_path / "some.db")
    open_database(path).close()
    return path


def test_a_silence_is_made_listed_and_removed(cli: Cli, database: str) -> None:
    assert cli("silence", "--db", database).out.strip() == "no silences"
    made = cli("silence", "gpt/*", "stalled_run", "--for", "4h", "--comment", "node [red]swap", "--db", database)
    assert (made.code, made.out.strip()) == (0, "silence 1: nobody is told of stalled_run in gpt/* for 4 h")
    (second,) = cli("silence", "bert", "--for", "90s", "--json", "--db", database).document
    assert second["ends_at"] - second["created_at"] == pytest.approx(90.0)
    assert abs(second["created_at"] - datetime.now(UTC).timestamp()) < 600
    assert (second["id"], second["runs"], second["rules"], second["comment"]) == (2, "bert", "*", "")
    listed = cli("silence", "--db", database).out
    assert listed.index("bert") < listed.index("gpt/*")
    assert "node [red]swap" in listed
    assert [s["id"] for s in cli("silence", "--remove", 2, "--json", "--db", database).document] == [1]
    again = cli("silence", "--remove", 2, "--db", database)
    assert (again.code, again.err.strip()) == (2, "ckptwatch: there is no silence 2 that still lasts")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["gpt"], "say how long with --for"),
        (["gpt", "--for", "soon"], "must be a duration"),
        (["gpt", "--for", "0s"], "must be a duration"),
        (["gpt", "--for", "400d"], "a year at most"),
        (["--for", "4h"], "name the run"),
        (["gpt", "--remove", "1", "--for", "4h"], "--remove takes"),
        (["", "--for", "4h"], "1 to 1000 characters"),
    ],
)
def test_what_cannot_be_meant_is_refused(cli: Cli, database: str, arguments: list[str], words: str) -> None:
    ended = cli("silence", *arguments, "--db", database)
    assert ended.code == 2
    assert words in ended.err
    assert cli("silence", "--db", database).out.strip() == "no silences"


def test_without_a_database_it_says_so(cli: Cli, tmp_path: Path) -> None:
    ended = cli("silence", "gpt", "--for", "1h", "--db", tmp_path / "none.db")
    assert ended.code == 4
    assert "there is no database" in ended.err
