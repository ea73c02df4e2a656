"""`ckptwatch config`, `notify test`, and what `run` and `demo` refuse before anything is started."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.monitor.commands.conftest import Cli
from tests.support.daemons import REPOSITORY, ckptwatch, clean_environment
from tests.support.mailbox import Mailbox
from tests.support.receivers import HttpReceiver, free_port

BROKEN = {
    "watch": {"settle_seconds": "soon", "rots": ["/data"]},
    "rules": {"nonfinite": {"enabled": "perhaps"}, "gradient": {}},
    "notify": {"notifiers": [{"kind": "slack", "url": "https://hooks.slack.com/services/T/B/SECRET"}]},
    "storage": {"url": 7},
}
BROKEN_KEYS = {
    *("watch.settle_seconds", "watch.rots", "rules.nonfinite.enabled", "rules.gradient"),
    *("notify.notifiers.0.url", "storage.url"),
}


def write(tmp_path: Path, document: object) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(document))
    return path


def keys(err: str) -> set[str]:
    lines = err.splitlines()
    assert all(line.startswith("ckptwatch: ") for line in lines), err
    return {line.removeprefix("ckptwatch: ").partition(":")[0] for line in lines}


@pytest.mark.parametrize(
    "command", [["config", "check"], ["config", "show"], ["notify", "test"], ["run"], ["scan", "."]], ids=" ".join
)
def test_a_wrong_configuration_gives_every_error_with_its_key_and_2_and_starts_nothing(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: list[str]
) -> None:
    path = write(tmp_path, BROKEN)
    empty = tmp_path / "empty"
    empty.mkdir()
    monkeypatch.chdir(empty)
    monkeypatch.delenv("CKPTWATCH_WATCH__SETTLE_SECONDS")
    ended = cli(*command, "--config", path)
    assert (ended.code, ended.out) == (2, "")
    assert keys(ended.err) == BROKEN_KEYS
    assert "SECRET" not in ended.err
    assert not (tmp_path / "state-home").exists(), "a database was created"
    assert list(empty.iterdir()) == []


def test_config_check_says_what_it_came_to(cli: Cli, tmp_path: Path) -> None:
    path = write(
        tmp_path,
        {
            "watch": {"roots": ["/a", "/b"]},
            "rules": {"stalled_run": {"enabled": False}},
            "notify": {"notifiers": [{"kind": "log"}]},
        },
    )
    ended = cli("config", "check", "--config", path, "--json")
    assert (ended.code, ended.err) == (0, "")
    document = ended.document
    assert (document["ok"], document["roots"], document["notifiers"]) == (True, 2, ["log"])
    assert "nonfinite" in document["rules"]
    assert "stalled_run" not in document["rules"]
    assert cli("config", "check", "--config", path).out.startswith("ok: 2 roots; ")


def test_config_check_finds_options_that_make_no_sense_together(cli: Cli, tmp_path: Path) -> None:
    ended = cli("config", "check", "--config", write(tmp_path, {"measure": {"sketch_buckets": 1000}}))
    assert (ended.code, ended.out) == (2, "")
    assert keys(ended.err) == {"measure.sketch_buckets"}


def test_config_show_prints_what_can_be_read_again_and_never_a_secret(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOOK", "https://hooks.slack.com/services/T/B/VERYSECRET")
    document = {"notify": {"notifiers": [{"kind": "slack", "url": "env:HOOK"}]}, "watch": {"roots": ["/data"]}}
    path = write(tmp_path, document)
    shown = cli("config", "show", "--config", path)
    assert shown.code == 0
    assert "env:HOOK" in shown.out
    assert "VERYSECRET" not in shown.out
    again = tmp_path / "again.yaml"
    again.write_text(shown.out)
    assert cli("config", "show", "--config", again).out == shown.out
    as_json = cli("config", "show", "--config", path, "--json").document
    assert as_json == yaml.safe_load(shown.out)
    assert as_json["watch"]["settle_seconds"] == 0.1, "the environment counts"


def test_notify_test_sends_a_message_that_says_it_is_a_test_through_every_notifier(cli: Cli, tmp_path: Path) -> None:
    with HttpReceiver() as slack, Mailbox() as mailbox:
        (tmp_path / "hook").write_text(slack.url)
        mail = {"kind": "email", "host": "127.0.0.1", "port": mailbox.port, "security": "none"}
        mail |= {"from": "a@example.org", "to": ["b@example.org"]}
        path = write(tmp_path, {"notify": {"notifiers": [{"kind": "slack", "url": f"file:{tmp_path / 'hook'}"}, mail]}})
        ended = cli("notify", "test", "--config", path)
        assert (ended.code, ended.err) == (0, "")
        assert "slack: delivered" in ended.out
        assert "email: delivered" in ended.out
        assert "test" in slack.received[0].document["text"].lower()
        assert "test" in str(mailbox.messages[0]["Subject"]).lower()
        only = cli("notify", "test", "email", "--config", path)
        assert "slack" not in only.out
        assert (len(slack.received), len(mailbox.messages)) == (1, 2)


def test_notify_test_ends_with_4_and_names_the_receiver_that_does_not_answer(cli: Cli, tmp_path: Path) -> None:
    hook = tmp_path / "hook"
    hook.write_text(f"http://127.0.0.1:{free_port()}/services/T/B/SECRET")
    notifiers = [{"kind": "slack", "name": "down", "url": f"file:{hook}"}, {"kind": "log"}]
    ended = cli("notify", "test", "--config", write(tmp_path, {"notify": {"notifiers": notifiers}}))
    assert ended.code == 4
    assert "down: failed: " in ended.out
    assert "log: delivered" in ended.out
    assert "not delivered: down" in ended.err
    assert "SECRET" not in ended.out + ended.err


def test_notify_test_without_a_notifier_or_with_an_unknown_one_ends_with_2(cli: Cli, tmp_path: Path) -> None:
    assert "notify.notifiers is empty" in cli("notify", "test").err
    path = write(tmp_path, {"notify": {"notifiers": [{"kind": "log"}]}})
    ended = cli("notify", "test", "slack", "--config", path)
    assert ended.code == 2
    assert "'slack'" in ended.err


def test_run_without_a_root_ends_with_2_and_creates_no_database(cli: Cli, tmp_path: Path) -> None:
    ended = cli("run", "--db", tmp_path / "x.db")
    assert ended.code == 2
    assert "nothing to watch" in ended.err
    assert not (tmp_path / "x.db").exists()


def test_run_on_a_port_that_is_taken_ends_with_4_and_one_line(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        ended = ckptwatch("run", tmp_path, "--db", tmp_path / "x.db", "--listen", f"127.0.0.1:{port}")
    assert ended.returncode == 4
    assert ended.stderr.strip().splitlines()[-1].startswith("ckptwatch: ")
    assert str(port) in ended.stderr
    assert "Traceback" not in ended.stderr


def test_run_with_a_database_that_cannot_be_opened_ends_with_4_and_one_line(tmp_path: Path) -> None:
    (tmp_path / "x.db").write_bytes(b"this is no database" * 100)
    ended = ckptwatch("run", tmp_path, "--db", tmp_path / "x.db", "--listen", "127.0.0.1:0")
    assert ended.returncode == 4
    assert ended.stderr.strip().splitlines()[-1].startswith("ckptwatch: ")
    assert "Traceback" not in ended.stderr
    assert (tmp_path / "x.db").read_bytes() == b"this is no database" * 100  # somebody's file, named by mistake
    assert [path.name for path in tmp_path.iterdir()] == ["x.db"]


def _demo(tmp_path: Path, **environment: str) -> str:
    (tmp_path / "tmp").mkdir()
    ended = ckptwatch(
        *("demo", "--exit", "--pause-seconds", "0", "--listen", "127.0.0.1:0"),
        TMPDIR=str(tmp_path / "tmp"),
        **environment,
    )
    assert ended.returncode == 0, ended.stderr + ended.stdout
    assert list((tmp_path / "tmp").glob("ckptwatch*")) == [], "the demo left files behind"
    return ended.stdout


def _check_summary(text: str, suffix: str) -> None:
    lines = {line[:22].strip(): line[22:].strip() for line in text.splitlines()}
    assert lines["Checkpoints measured"] == "40"
    first_bad = int(lines["First bad step"].split()[0])
    assert 200 < first_bad <= 250
    assert "NaN or infinity since step" in lines["First bad tensor"]
    assert lines["Last good checkpoint"].startswith("step ")
    assert lines["Last good checkpoint"].endswith(suffix)
    good = int(lines["Last good checkpoint"].split()[1])
    assert 150 <= good < first_bad
    assert "http://127.0.0.1:" in text
    assert "/metrics" in text


@pytest.mark.timeout(300)
def test_the_demo_with_pytorch_ends_well_and_names_step_tensor_and_last_good_checkpoint(tmp_path: Path) -> None:
    text = _demo(tmp_path)
    assert "The trainer: PyTorch" in text
    _check_summary(text, ".pt")


@pytest.mark.timeout(300)
def test_the_demo_without_pytorch_trains_with_numpy_and_ends_the_same_way(tmp_path: Path) -> None:
    shim = tmp_path / "shim"
    shim.mkdir()
    hide = (
        "import importlib.util, sys\n"
        "class Hidden:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.partition('.')[0] == 'torch':\n"
        "            raise ModuleNotFoundError(name)\n"
        "find_spec = importlib.util.find_spec\n"
        "importlib.util.find_spec = lambda name, package=None: None if name == 'torch' else find_spec(name, package)\n"
        "sys.meta_path.insert(0, Hidden())\n"
    )
    (shim / "sitecustomize.py").write_text(hide)
    path = f"{shim}:{REPOSITORY}"
    probe = subprocess.run(
        [sys.executable, "-c", "import torch"], env=clean_environment(PYTHONPATH=path), capture_output=True, check=False
    )
    assert probe.returncode != 0, "torch can still be imported"
    text = _demo(tmp_path, PYTHONPATH=path)
    assert "The trainer: NumPy" in text
    _check_summary(text, ".safetensors")
