"""The command: real programs that succeed, fail, hang, and leave children behind."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from alerts.message import compose
from alerts.notifier import DeliveryError
from alerts.notifiers.command import CommandNotifier
from alerts.registry import OptionsError, notifier_config
from tests.support import json_schema
from tests.support.daemons import wait_for
from tests.support.notifier_conformance import make_notification
from tests.support.stored import make_alert

SCHEMA = json.loads((Path(__file__).parents[3] / "docs" / "notifiers" / "webhook.schema.json").read_text())
SECRET = "hunter2-secret"


def run(code: str, *arguments: object, timeout_seconds: float = 20.0, **changes: Any) -> DeliveryError | None:
    argv = [sys.executable, "-S", "-c", code, *map(str, arguments)]
    config = {"enabled": True, "argv": argv, "timeout_seconds": timeout_seconds, "environment": {"MINE": "yes"}}
    notifier = CommandNotifier(CommandNotifier.Config.model_validate(config))
    notification = make_notification(**changes)
    try:
        notifier.send(notification, compose(notification))
    except DeliveryError as error:
        return error
    return None


def test_the_program_gets_the_document_on_standard_input_and_a_small_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLACK_WEBHOOK_URL", SECRET)
    code = "import json,os,sys; json.dump([json.load(sys.stdin), dict(os.environ), sys.argv], open(sys.argv[1], 'w'))"
    hostile = make_alert(run="gpt; touch /tmp/x $(id) `id`\n--flag\ud800", subject="$(reboot)")
    assert run(code, tmp_path / "seen", "{run}", "$HOME", alert=hostile) is None
    document, environment, argv = json.loads((tmp_path / "seen").read_text())
    assert json_schema.errors(document, SCHEMA) == []
    assert document["alert"]["run"].startswith("gpt; touch /tmp/x $(id) `id`\n--flag")
    assert argv[2:] == ["{run}", "$HOME"]
    assert environment["MINE"] == "yes"
    assert environment["CKPTWATCH_SEVERITY"] == "critical"
    assert environment["CKPTWATCH_REASON"] == "firing"
    assert SECRET not in environment.values()


@pytest.mark.parametrize(
    ("code", "words", "permanent"),
    [
        ("import sys; print('no such job'); sys.exit(3)", "status 3: no such job", True),
        ("import sys; sys.stderr.write('later\\x1b[31m'); sys.exit(75)", "status 75: later\\\\u001b", False),
        ("import os; os.kill(os.getpid(), 9)", "ended by signal 9", True),
        ("import sys; sys.stdout.write('x' * 10**6 + ' the end'); sys.exit(1)", "status 1", True),
    ],
)
def test_the_status_says_whether_to_try_again(code: str, words: str, permanent: bool) -> None:
    error = run(code)
    assert error is not None
    assert words.replace("\\\\", "\\") in str(error)
    assert str(error).isprintable()
    assert len(str(error)) < 400
    assert error.permanent == permanent


def test_a_program_that_reads_nothing_of_its_input_is_no_failure() -> None:
    assert run("pass", alert=make_alert(details=(("x" * 4000, "y" * 4000),) * 20)) is None


def test_a_program_that_hangs_is_ended_with_all_that_it_started(tmp_path: Path) -> None:
    code = "import os,sys,time\nchild = os.fork()\nopen(sys.argv[1], 'a').write(f'{os.getpid()} ')\ntime.sleep(300)\n"
    began = time.monotonic()
    error = run(code, tmp_path / "pids", timeout_seconds=2.0)
    assert time.monotonic() - began < 30
    assert error is not None
    assert not error.permanent
    assert "within 2 s" in str(error)
    pids = [int(pid) for pid in (tmp_path / "pids").read_text().split()]
    wait_for("all to be gone", lambda: not any(map(_runs, pids)))


def _runs(pid: int) -> bool:
    try:
        return "(zombie)" not in Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_a_program_that_leaves_a_child_behind_delays_nothing() -> None:
    began = time.monotonic()
    assert run("import os,time\nif os.fork() == 0: time.sleep(300)", timeout_seconds=60.0) is None
    assert time.monotonic() - began < 30


def test_a_program_that_is_not_there_is_tried_again() -> None:
    config = CommandNotifier.Config.model_validate({"enabled": True, "argv": ["/no/such/program"]})
    with pytest.raises(DeliveryError, match="cannot be started: No such file") as caught:
        CommandNotifier(config).send(make_notification(), compose(make_notification()))
    assert not caught.value.permanent


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"argv": ["/bin/true"]}, "set enabled: true"),
        ({"argv": ["true"], "enabled": True}, "absolute path"),
        ({"argv": [], "enabled": True}, "at least 1"),
        ({"argv": ["/bin/true", "a\0b"], "enabled": True}, "NUL"),
        ({"enabled": True}, "is required"),
    ],
)
def test_it_is_off_until_it_is_meant(options: dict[str, Any], words: str) -> None:
    with pytest.raises(OptionsError, match=words):
        notifier_config("command", options)


def test_the_directory_it_runs_in_is_not_a_watched_one(tmp_path: Path) -> None:
    assert run("import os,sys; open(sys.argv[1], 'w').write(os.getcwd())", tmp_path / "cwd") is None
    assert (tmp_path / "cwd").read_text() == "/"
    assert os.getcwd() != "/"
