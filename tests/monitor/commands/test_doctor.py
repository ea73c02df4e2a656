"""`doctor`: what the daemon needs, looked at without changing anything."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from monitor.config import ServeConfig
from monitor.diagnosis.database import diagnose_database
from monitor.diagnosis.finding import Condition
from monitor.diagnosis.machine import diagnose_machine
from monitor.diagnosis.page import diagnose_page
from monitor.measure.confinement import WorkerLimits
from monitor.measure.workers import PoolOptions
from tests.monitor.commands.conftest import Cli, Stored


def _by_subject(document: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {}
    for entry in document:
        found.setdefault(entry["subject"], []).append(entry)
    return found


@contextmanager
def _listening() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.0)
        yield server.getsockname()[1]


def _free_port() -> int:
    with _listening() as port:
        return port


def test_a_fit_machine_has_no_problem_and_stays_as_it_was(
    cli: Cli, stored: Stored, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CKPTWATCH_SERVE__LISTEN", f"127.0.0.1:{_free_port()}")
    root = tmp_path / "runs"
    root.mkdir()
    np.savez(root / "step-1.npz", w=np.ones(4))
    before = sorted((entry.name, entry.stat().st_mtime_ns) for entry in os.scandir(root))
    ended = cli("doctor", root, "--db", stored.database, "--json")
    found = _by_subject(ended.document)
    assert ended.code == 0
    assert {entry["condition"] for entries in found.values() for entry in entries} <= {"ok", "warning"}
    assert found[f"root {root}"][0]["message"] == "1 checkpoints among 1 names"
    assert found["worker"][0]["condition"] == "ok"
    assert "3 runs" in found["database"][0]["message"]
    assert sorted((entry.name, entry.stat().st_mtime_ns) for entry in os.scandir(root)) == before


def test_a_missing_root_and_a_configuration_error_say_what_to_do(cli: Cli, tmp_path: Path) -> None:
    ended = cli("doctor", tmp_path / "none", "--db", tmp_path / "new.db")
    assert ended.code == 4
    assert "does not exist" in ended.out
    assert "→ the daemon waits for it" in ended.out
    assert not (tmp_path / "new.db").exists()

    config = tmp_path / "bad.yaml"
    config.write_text("watch: {scan_interval_seconds: -1}\nnotify: {notifiers: [{kind: pigeon}]}\n")
    broken = cli("doctor", "--config", config, "--json")
    assert broken.code == 4
    assert len(broken.document) == 2
    assert {entry["subject"] for entry in broken.document} == {"configuration"}


def test_a_damaged_database_is_named_and_not_touched(tmp_path: Path) -> None:
    file = tmp_path / "ckptwatch.db"
    file.write_bytes(b"this is no database" * 300)
    found = diagnose_database(f"sqlite:///{file}")
    assert [diagnosis.condition for diagnosis in found] == [Condition.PROBLEM]
    assert file.read_bytes() == b"this is no database" * 300


def test_an_unwritable_place_for_a_database_is_a_problem() -> None:
    found = diagnose_database("sqlite:////proc/ckptwatch/new.db")
    assert found[0].condition is Condition.PROBLEM
    assert "--db" in found[0].remedy


def test_a_port_taken_by_a_stranger_is_a_problem() -> None:
    with _listening() as port:
        found = diagnose_page(ServeConfig(listen=f"127.0.0.1:{port}"))
    assert [diagnosis.condition for diagnosis in found] == [Condition.PROBLEM]
    assert "--listen" in found[0].remedy


def test_a_worker_that_cannot_live_under_its_limits_is_a_problem() -> None:
    limits = WorkerLimits(memory_bytes_max=64 * 2**20, cpu_seconds_max=60)
    found = diagnose_machine(PoolOptions(n_workers=1, limits=limits))
    worker = next(diagnosis for diagnosis in found if diagnosis.subject == "worker")
    assert worker.condition is Condition.PROBLEM
    assert "memory_bytes_max" in worker.remedy
