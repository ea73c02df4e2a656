"""The unit file starts the daemon, lets it write only its own directories, and puts training first."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from monitor.config import Config

UNIT = Path(__file__).parents[2] / "deploy" / "systemd" / "ckptwatch.service"


def settings() -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for line in UNIT.read_text().splitlines():
        if match := re.fullmatch(r"(\w+)=(.*)", line):
            found.setdefault(match[1], []).append(match[2])
    return found


def test_only_state_and_cache_can_be_written() -> None:
    unit = settings()
    assert unit["ProtectSystem"] == ["strict"]
    assert unit["ProtectHome"] == ["read-only"]
    assert unit["NoNewPrivileges"] == ["yes"]
    assert "ReadWritePaths" not in unit
    assert unit["StateDirectory"] == unit["CacheDirectory"] == ["ckptwatch"]


def test_kernels_can_be_compiled() -> None:
    assert "MemoryDenyWriteExecute" not in settings()


def test_the_environment_sets_keys_that_the_configuration_has() -> None:
    environment = dict(entry.split("=", 1) for entry in settings()["Environment"])
    url = environment.pop("CKPTWATCH_STORAGE__URL")
    assert url.startswith("sqlite:////var/lib/ckptwatch/")
    assert "url" in type(Config().storage).model_fields
    assert environment == {"XDG_CACHE_HOME": "/var/cache/ckptwatch"}


def test_training_comes_first() -> None:
    unit = settings()
    assert int(unit["Nice"][0]) > 0
    assert int(unit["CPUWeight"][0]) < 100
    assert int(unit["IOWeight"][0]) < 100
    assert int(unit["OOMScoreAdjust"][0]) > 0


def test_the_manager_is_told_when_it_is_ready_and_whether_it_still_works() -> None:
    unit = settings()
    assert unit["Type"] == ["notify"]
    assert unit["WatchdogSec"] == ["5min"]
    assert unit["ExecReload"] == ["/bin/kill -HUP $MAINPID"]


def test_the_exposure_that_systemd_finds_is_at_most_3() -> None:
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        pytest.skip("systemd-analyze is not installed (Debian package systemd)")
    command = [analyze, "security", "--offline=true", "--threshold=30", str(UNIT)]
    judged = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert judged.returncode == 0, judged.stdout[-500:] + judged.stderr
