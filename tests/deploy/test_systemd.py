"""The unit file starts the daemon, lets it write only its own directories, and puts training first."""

from __future__ import annotations

import re
from pathlib import Path

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
