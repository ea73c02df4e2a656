"""The command line as a whole: help, version, wrong usage."""

from __future__ import annotations

import re
from importlib.metadata import version

import pytest

from monitor.cli import COMMANDS
from tests.monitor.commands.conftest import Cli
from tests.support.daemons import ckptwatch

LEAVES = [[name] for name in COMMANDS if name not in {"config", "db", "notify", "rules"}]
LEAVES += [["config", "check"], ["config", "show"], ["notify", "test"], ["rules", "test"]]
LEAVES += [["db", "copy"], ["db", "upgrade"]]


@pytest.mark.parametrize("command", LEAVES, ids=" ".join)
def test_the_help_of_every_command_has_an_example_that_begins_with_the_command(cli: Cli, command: list[str]) -> None:
    ended = cli(*command, "--help")
    assert ended.code == 0
    text = " ".join(ended.out.split())
    assert re.search(rf"Example: .*ckptwatch {' '.join(command)}\b", text), text


def test_the_help_without_a_command_lists_all_of_them(cli: Cli) -> None:
    ended = cli("--help")
    assert ended.code == 0
    for name in COMMANDS:
        assert re.search(rf"^  {name}\s", ended.out, re.MULTILINE)


def test_the_version_is_that_of_the_distribution(cli: Cli) -> None:
    from monitor import __version__

    ended = cli("--version")
    assert (ended.code, ended.out) == (0, f"ckptwatch {__version__}\n")
    assert version("ckptwatch") == __version__


WRONG = [["launch"], ["inspect"], ["inspect", "a", "b"], ["runs", "--colour"], ["history", "r", "--limit", "0"]]


@pytest.mark.parametrize("arguments", WRONG, ids=" ".join)
def test_wrong_usage_ends_with_2_and_says_what_is_wrong(cli: Cli, arguments: list[str]) -> None:
    ended = cli(*arguments)
    assert (ended.code, ended.out) == (2, "")
    assert "Error" in ended.err
    assert "Traceback" not in ended.err


def test_a_short_question_imports_no_server_no_scheduler_and_no_database() -> None:
    ended = ckptwatch("--version", PYTHONPROFILEIMPORTTIME="1")
    assert ended.returncode == 0
    imported = {line.rpartition("|")[2].strip() for line in ended.stderr.splitlines() if "|" in line}
    assert "typer" in imported
    assert imported.isdisjoint({"uvicorn", "apscheduler", "sqlalchemy", "jinja2", "prometheus_client"})
