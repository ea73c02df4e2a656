"""A real run of the Trainer that keeps one checkpoint, beside a real daemon."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest

from storage import queries
from storage.database import open_database
from storage.records import SnapshotStatus, TensorKind
from tests.support.daemons import DaemonProcess, wait_for
from tests.support.training import SAVE_EVERY, TRAINER_LOOP, TrainingProcess

pytestmark = pytest.mark.timeout(300)

N_SAVES = 8
N_HASTY = 10


def test_every_checkpoint_of_a_trainer_that_keeps_one_is_recorded_once_and_the_training_sees_no_error(
    tmp_path: Path,
) -> None:
    root = tmp_path / "gpt"
    arguments = ("--saves", N_SAVES, "--hasty-saves", N_HASTY)
    with TrainingProcess(root, tmp_path / "truth", "rotate", *arguments, loop=TRAINER_LOOP) as training:
        with DaemonProcess(tmp_path / "state", root) as daemon:
            for n in range(N_SAVES):
                training.save()
                # The checkpoint is there until the next save, so until it is recorded: longer than the settle time.
                wait_for(f"save {n + 1}", partial(_has_stored, daemon, n + 1))
            training.finish()
            last = (N_SAVES + N_HASTY) * SAVE_EVERY
            wait_for("the last save", lambda: daemon.snapshots()[-1]["step"] == last)
            wait_for("nothing left to do", lambda: daemon.metric("ckptwatch_oldest_unprocessed_seconds") == 0)
            assert daemon.metric("ckptwatch_supervisor_errors_total") == 0
            assert daemon.metric("ckptwatch_worker_crashes_total") == 0
            assert daemon.terminate() == 0
        _compare(tmp_path / "state" / "ckptwatch.db", training.truths())


def _has_stored(daemon: DaemonProcess, n: int) -> bool:
    return len(daemon.snapshots()) >= n


def _compare(database_path: Path, truths: dict[int, dict[str, Any]]) -> None:
    database = open_database(f"sqlite:///{database_path}")
    try:
        with database.read() as session:
            stored = queries.history(session, "gpt")
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
        assert snapshot.format == "hf_trainer"
        assert snapshot.step is not None
        truth = truths[snapshot.step]
        assert Path(snapshot.path).name == f"checkpoint-{snapshot.step}"
        assert snapshot.epoch == pytest.approx(truth["epoch"])
        assert snapshot.gradient is not None
        weights = {t.name: t for t in tensors[snapshot.id] if t.kind is not TensorKind.OPTIMIZER}
        assert set(weights) == set(truth["tensors"])
        for name, true in truth["tensors"].items():
            assert list(weights[name].shape) == true["shape"]
            for statistic in ("norm_l2", "max", "min"):
                assert getattr(weights[name], statistic) == pytest.approx(true[statistic], rel=1e-6), (name, statistic)
