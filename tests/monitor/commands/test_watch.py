"""`watch`: a run in the terminal; and the completion of the shell."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.monitor.commands.conftest import Cli, Stored
from tests.support.daemons import clean_environment


def test_a_bad_run_shows_its_verdict_its_alerts_and_its_latest_checkpoints(cli: Cli, stored: Stored) -> None:
    ended = cli("watch", "runs/bad", "--times", 2, "--every", 0.2, "--db", stored.database)
    assert ended.code == 1
    assert "NOT HEALTHY" in ended.out
    assert "step-20.npz" in ended.out
    assert "layers.0.weight" in ended.out
    assert "weight norm" in ended.out


def test_a_healthy_run_ends_well_and_an_unknown_one_in_one_line(cli: Cli, stored: Stored) -> None:
    healthy = cli("watch", "runs/good", "--times", 1, "--db", stored.database)
    assert (healthy.code, "healthy" in healthy.out) == (0, True)
    unknown = cli("watch", "runs/none", "--db", stored.database)
    assert (unknown.code, unknown.err.count("\n")) == (2, 1)


def test_the_shell_completes_commands(tmp_path: Path) -> None:
    program = tmp_path / "ckptwatch"
    program.write_text(f"#!{sys.executable}\nfrom monitor.cli import main\nmain()\n")
    program.chmod(0o755)
    asked = {"_CKPTWATCH_COMPLETE": "complete_bash", "COMP_WORDS": "ckptwatch wa", "COMP_CWORD": "1"}
    ended = subprocess.run(
        [program], env={**clean_environment(), **asked}, capture_output=True, text=True, check=False, cwd=os.sep
    )
    assert ended.stdout.split() == ["watch"], ended.stderr
