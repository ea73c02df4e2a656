"""Keras overwrites one path without any pause while it is read: no save may fail, nothing torn may be taken."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.daemons import REPOSITORY, DaemonProcess, clean_environment, wait_for

SAVER = REPOSITORY / "tests" / "e2e" / "keras_saves.py"
READER = REPOSITORY / "tests" / "e2e" / "keras_reads.py"
LOADED_SECONDS = 1200.0  # a loaded machine may take that long: the worker gives way to everybody else

pytestmark = pytest.mark.timeout(2 * LOADED_SECONDS)


@pytest.mark.parametrize(
    ("name", "n_saves"),
    [
        ("model.weights.h5", 60),
        pytest.param("model.weights.h5", 660, marks=pytest.mark.slow),
        pytest.param("model.keras", 660, marks=pytest.mark.slow),
        pytest.param("model.h5", 660, marks=pytest.mark.slow),
    ],
)
def test_no_save_of_keras_fails_beside_a_daemon_and_a_reader_that_never_rests(
    tmp_path: Path, name: str, n_saves: int
) -> None:
    root = tmp_path / "net"
    root.mkdir()
    path = root / name
    # The daemon is to read as early as it may, while the next save is under way.
    with (
        DaemonProcess(tmp_path / "state", root, watch={"settle_seconds": 0.1}) as daemon,
        start(SAVER, path, "--saves", n_saves) as saver,
    ):
        wait_for("the first save", path.exists)
        n_whole = n_torn = n_crashes = 0
        while saver.poll() is None:
            with start(READER, path) as reader:
                # HDF5 may break on half a structure, which is why workers are disposable: then another one begins.
                wait_for("the saver", lambda: saver.poll() is not None or reader.poll() is not None, LOADED_SECONDS)
                printed, _ = reader.communicate("\n" if reader.poll() is None else None, timeout=LOADED_SECONDS)
            if reader.returncode < 0:
                n_crashes += 1
                continue
            assert reader.returncode == 0
            n_whole, n_torn = map(int, printed.split())
        assert saver.returncode == 0
        assert json.loads(saver.communicate()[0]) == {"n_failures": 0, "errors": []}
        wait_for("the last save", lambda: _last_step(daemon) == n_saves - 1, LOADED_SECONDS)
        stored = daemon.snapshots()
        assert daemon.metric("ckptwatch_supervisor_errors_total") == 0
        assert daemon.terminate() == 0
    assert n_whole + n_crashes > 0
    assert n_torn + n_crashes > 0, "no reading met a save"
    steps = [snapshot["step"] for snapshot in stored]
    assert steps == sorted(set(steps))
    for snapshot in stored:
        assert (snapshot["status"], snapshot["problem"]) == ("complete", None)
        # Every weight is the number of the save; those of two saves would give another norm.
        assert snapshot["weight_norm"] == pytest.approx(snapshot["step"] * math.sqrt(4 * 40 * 41), rel=1e-6)


def start(program: Path, path: Path, *arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, str(program), str(path), *map(str, arguments)],
        env=clean_environment(CUDA_VISIBLE_DEVICES="", TF_CPP_MIN_LOG_LEVEL="3", KERAS_BACKEND="tensorflow"),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def _last_step(daemon: DaemonProcess) -> int | None:
    snapshots = daemon.snapshots()
    return snapshots[-1]["step"] if snapshots else None
