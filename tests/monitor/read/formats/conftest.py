"""Files that real frameworks wrote, made once for all tests."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.daemons import REPOSITORY, clean_environment
from tests.support.frameworks import CleanReader


@pytest.fixture(scope="session")
def clean_reader() -> Iterator[CleanReader]:
    """Give one process for all tests, since starting one takes longer than reading."""
    with CleanReader() as reader:
        yield reader


@pytest.fixture(scope="session")
def hf_checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a directory with `units` and `truth`, written once by the real Trainer, Accelerate and PEFT."""
    directory = tmp_path_factory.mktemp("hf")
    done = subprocess.run(
        [sys.executable, str(REPOSITORY / "tests" / "support" / "hf_writers.py"), str(directory)],
        env=clean_environment(OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1", CUDA_VISIBLE_DEVICES=""),
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return directory


@pytest.fixture(scope="session")
def keras_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the directory in which tests/support/keras_writer.py wrote, for all processes of the session."""
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    directory = shared / "keras_files"
    with (shared / "keras_files.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (directory / "done").exists():
            directory.mkdir()
            done = subprocess.run(
                [
                    sys.executable,
                    "-W",
                    "ignore",
                    str(REPOSITORY / "tests" / "support" / "keras_writer.py"),
                    str(directory),
                ],
                env=clean_environment(CUDA_VISIBLE_DEVICES="", TF_CPP_MIN_LOG_LEVEL="3", KERAS_BACKEND="tensorflow"),
                capture_output=True,
                text=True,
                timeout=240,
                check=False,
            )
            assert done.returncode == 0, done.stderr[-4000:]
            (directory / "done").touch()
    return directory
