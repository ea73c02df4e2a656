"""A real training loop beside a real daemon: every checkpoint is measured once, and every number is right."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from storage import queries
from storage.database import open_database
from storage.records import SnapshotStatus, StoredSnapshot, TensorSummary
from tests.support.daemons import DaemonProcess, wait_for
from tests.support.training import SAVE_EVERY, TrainingProcess, window_norm

pytestmark = pytest.mark.timeout(300)  # waits have their own, shorter limits

N_SAVES = 30
N_HASTY = 12


@pytest.mark.parametrize("mode", ["overwrite", "rotate"])
def test_every_settled_checkpoint_of_a_torch_run_is_stored_once_with_the_numbers_of_numpy(
    tmp_path: Path, mode: str
) -> None:
    root = tmp_path / "mlp"
    arguments = ("--saves", N_SAVES, "--hasty-saves", N_HASTY)
    with TrainingProcess(root, tmp_path / "truth", mode, *arguments) as training:
        with DaemonProcess(tmp_path / "state", root) as daemon:
            # The loop runs ahead of the daemon by as much as its checkpoints stay on disk, and no further: then each
            # of them is there for longer than the settle time, however slow the machine is.
            ahead = 1 if mode == "overwrite" else 3
            for n in range(N_SAVES):
                _wait_for_snapshots(daemon, n - ahead + 1)
                training.save()
            _wait_for_snapshots(daemon, N_SAVES)
            training.finish()
            last = (N_SAVES + N_HASTY) * SAVE_EVERY
            wait_for("the last save", lambda: daemon.snapshots()[-1]["step"] == last)
            wait_for("nothing left to do", lambda: daemon.metric("ckptwatch_oldest_unprocessed_seconds") == 0)
            assert daemon.metric("ckptwatch_supervisor_errors_total") == 0
            assert daemon.metric("ckptwatch_worker_crashes_total") == 0
            assert daemon.terminate() == 0
        _compare(tmp_path / "state" / "ckptwatch.db", training.truths())


def _wait_for_snapshots(daemon: DaemonProcess, n: int) -> None:
    wait_for(f"{n} snapshots", lambda: len(daemon.snapshots()) >= n)


def _compare(database_path: Path, truths: dict[int, dict[str, Any]]) -> None:
    database = open_database(f"sqlite:///{database_path}")
    try:
        with database.read() as session:
            stored = queries.history(session, "mlp")
            tensors = {snapshot.id: queries.tensors(session, snapshot.id) for snapshot in stored}
    finally:
        database.close()
    steps = [snapshot.step for snapshot in stored if snapshot.step is not None]
    assert steps == sorted(set(steps)), "a checkpoint is stored twice, or out of order"
    paced = list(range(SAVE_EVERY, N_SAVES * SAVE_EVERY + 1, SAVE_EVERY))
    assert steps[:N_SAVES] == paced
    assert steps[-1] == (N_SAVES + N_HASTY) * SAVE_EVERY
    for snapshot in stored:
        assert snapshot.status is SnapshotStatus.COMPLETE
        assert snapshot.problem is None
        assert snapshot.attempt == 1
        assert snapshot.step is not None
        truth = truths[snapshot.step]
        assert snapshot.path == truth["path"]
        assert {tensor.name for tensor in tensors[snapshot.id]} == set(truth["tensors"])
        for tensor in tensors[snapshot.id]:
            _compare_tensor(tensor, truth["tensors"][tensor.name])
        _compare_gradient(snapshot, truths)


def _compare_tensor(tensor: TensorSummary, truth: dict[str, Any]) -> None:
    assert list(tensor.shape) == truth["shape"]
    assert tensor.n_elements == math.prod(truth["shape"])
    assert tensor.n_nan == truth["n_nan"]
    assert tensor.n_zero == truth["n_zero"]
    for name in ("min", "max", "std", "norm_l1", "norm_l2", "abs_max"):
        assert getattr(tensor, name) == pytest.approx(truth[name], rel=1e-6), f"{tensor.name}.{name}"
    # A mean near zero is the small rest of large sums: it is as exact as the mean magnitude allows.
    mean_magnitude = truth["norm_l1"] / tensor.n_elements
    assert tensor.mean == pytest.approx(truth["mean"], rel=1e-6, abs=1e-6 * mean_magnitude), tensor.name


def _compare_gradient(snapshot: StoredSnapshot, truths: dict[int, dict[str, Any]]) -> None:
    assert snapshot.gradient is not None
    assert snapshot.step is not None
    if snapshot.reference_step is None:
        assert snapshot.gradient.source == "adam_ema"
        return
    assert snapshot.gradient.source == "adam_window"
    assert snapshot.gradient.window_steps == snapshot.step - snapshot.reference_step
    true_norm = window_norm(truths, snapshot.step, snapshot.gradient.window_steps)
    assert snapshot.gradient.norm == pytest.approx(true_norm, rel=0.01)
