"""Real runs of Keras and of TensorFlow's CheckpointManager beside a real daemon."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest

from storage import queries
from storage.database import open_database
from storage.records import SnapshotStatus, TensorKind
from tests.support.daemons import REPOSITORY, DaemonProcess, wait_for
from tests.support.training import SAVE_EVERY, TrainingProcess

pytestmark = pytest.mark.timeout(300)

LOOP = REPOSITORY / "tests" / "e2e" / "keras_loop.py"
N_SAVES = 4
N_HASTY = 3
FORMATS = {"weights": "hdf5", "keras": "keras", "manager": "tf_checkpoint"}


@pytest.mark.parametrize("mode", list(FORMATS))
def test_every_settled_checkpoint_is_recorded_once_and_the_training_sees_no_error(tmp_path: Path, mode: str) -> None:
    root = tmp_path / "net"
    arguments = ("--saves", N_SAVES, "--hasty-saves", N_HASTY)
    with TrainingProcess(root, tmp_path / "truth", mode, *arguments, loop=LOOP) as training:
        with DaemonProcess(tmp_path / "state", root) as daemon:
            for n in range(N_SAVES):
                training.save()
                # The checkpoint stays as it is until it is recorded: longer than the settle time.
                wait_for(f"save {n + 1}", partial(_has_stored, daemon, n + 1))
            training.finish()
            last = (N_SAVES + N_HASTY) * SAVE_EVERY
            wait_for("the last save", lambda: daemon.snapshots()[-1]["step"] == last)
            wait_for("nothing left to do", lambda: daemon.metric("ckptwatch_oldest_unprocessed_seconds") == 0)
            assert daemon.metric("ckptwatch_supervisor_errors_total") == 0
            assert daemon.metric("ckptwatch_worker_crashes_total") == 0
            assert daemon.terminate() == 0
        _compare(tmp_path / "state" / "ckptwatch.db", training.truths(), mode)


def _has_stored(daemon: DaemonProcess, n: int) -> bool:
    return len(daemon.snapshots()) >= n


def _compare(database_path: Path, truths: dict[int, dict[str, Any]], mode: str) -> None:
    database = open_database(f"sqlite:///{database_path}")
    try:
        with database.read() as session:
            stored = queries.history(session, "net")
            tensors = {snapshot.id: queries.tensors(session, snapshot.id) for snapshot in stored}
    finally:
        database.close()
    steps = [snapshot.step for snapshot in stored if snapshot.step is not None]
    assert len(steps) == len(stored)
    assert steps[:N_SAVES] == list(range(SAVE_EVERY, N_SAVES * SAVE_EVERY + 1, SAVE_EVERY))
    assert steps == sorted(set(steps)), "a checkpoint is stored twice, or out of order"
    for snapshot in stored:
        assert snapshot.status is SnapshotStatus.COMPLETE
        assert snapshot.problem is None
        assert snapshot.format == FORMATS[mode]
        assert snapshot.attempt == 1
        assert snapshot.step is not None
        assert (snapshot.gradient is not None) == (mode == "keras")  # only the archive states beta2
        truth = truths[snapshot.step]["tensors"]
        inner = (TensorKind.PARAMETER, TensorKind.BUFFER)
        weights = {t.name: t for t in tensors[snapshot.id] if t.kind in inner}
        assert set(weights) == set(truth)
        for name, true in truth.items():
            assert list(weights[name].shape) == true["shape"]
            for statistic in ("norm_l2", "max", "min"):
                assert getattr(weights[name], statistic) == pytest.approx(true[statistic], rel=1e-6), (name, statistic)
