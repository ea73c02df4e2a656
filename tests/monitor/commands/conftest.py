"""The command line called in this process, and a database of three runs that went well, badly, and nowhere."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from monitor.cli import main
from monitor.measure.workers import PoolOptions, WorkerPool
from tests.support.daemons import ckptwatch


@dataclass(frozen=True, slots=True)
class Ended:
    """How a command ended, and what it printed."""

    code: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        """Return standard output as the one JSON document that it must be."""

        def refuse(constant: str) -> None:
            raise AssertionError(f"{constant} is no JSON")

        return json.loads(self.out, parse_constant=refuse)


Cli = Callable[..., Ended]


@pytest.fixture(scope="session")
def pool() -> Iterator[WorkerPool]:
    """Give a worker that lives longer than one command, since most of a short command is the start of its worker."""
    with WorkerPool(PoolOptions(n_workers=1)) as kept:
        yield kept


@pytest.fixture
def cli(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, pool: WorkerPool
) -> Iterator[Cli]:
    """Give a function that runs one command, away from the user's own database and settings."""
    for name in list(os.environ):
        if name.startswith("CKPTWATCH_") and name != "CKPTWATCH_COMPILE_CACHE":
            monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state-home"))
    monkeypatch.setenv("CKPTWATCH_WATCH__SETTLE_SECONDS", "0.1")
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr("monitor.files.WorkerPool", lambda _: contextlib.nullcontext(pool))
    signals = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    root_logger = logging.getLogger()
    handlers, level = list(root_logger.handlers), root_logger.level

    def call(*arguments: object) -> Ended:
        monkeypatch.setattr(sys, "argv", ["ckptwatch", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        captured = capsys.readouterr()
        code = ended.value.code
        return Ended(code=int(code) if code is not None else 0, out=captured.out, err=captured.err)

    yield call
    root_logger.handlers[:] = handlers
    root_logger.setLevel(level)
    for number, handler in signals.items():
        signal.signal(number, handler)


@dataclass(frozen=True, slots=True)
class Stored:
    """A database and the directory whose checkpoints it holds."""

    database: Path
    root: Path


def save_npz(path: Path, tensors: Mapping[str, npt.ArrayLike]) -> Path:
    """Write tensors as float32 under their names."""
    arrays: dict[str, Any] = {name: np.asarray(values, np.float32) for name, values in tensors.items()}
    np.savez(path, **arrays)
    return path


def write_step(directory: Path, step: int, *, nan: bool = False) -> Path:
    """Write one small checkpoint whose weights move a little with the step, as those of a healthy run do."""
    directory.mkdir(parents=True, exist_ok=True)
    start, moved = np.random.default_rng(0), np.random.default_rng(step)
    weight = start.standard_normal((8, 4)) + 0.01 * moved.standard_normal((8, 4))
    bias = 0.1 * start.standard_normal(8) + 0.001 * moved.standard_normal(8)
    if nan:
        weight[3, 1] = np.nan
    path = directory / f"step-{step}.npz"
    save_npz(path, {"layers.0.weight": weight, "layers.0.bias": bias})
    return path


@pytest.fixture(scope="session")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Stored:
    """Give a database made by `ckptwatch scan`; tests read it only."""
    directory = tmp_path_factory.mktemp("stored")
    root = directory / "runs"
    for step in (10, 20, 30):
        write_step(root / "good", step)
    for step in (10, 20, 30, 40):
        write_step(root / "bad", step, nan=step >= 30)
    (root / "broken").mkdir()
    (root / "broken" / "step-1.npz").write_bytes(b"PK\x03\x04 and then nothing of use")
    settings = {"CKPTWATCH_WATCH__SETTLE_SECONDS": "0.1", "CKPTWATCH_WATCH__INCOMPLETE_TIMEOUT_SECONDS": "1"}
    ended = ckptwatch("scan", root, "--db", directory / "runs.db", **settings)
    assert ended.returncode == 0, ended.stderr
    assert "8 checkpoints stored, 1 of them unreadable" in ended.stdout
    return Stored(database=directory / "runs.db", root=root)
