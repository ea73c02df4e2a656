"""A real training of two ranks that shards its checkpoints and saves them in the background, beside a real daemon."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest

from storage import queries
from storage.database import open_database
from storage.records import SnapshotStatus
from tests.support.daemons import REPOSITORY, DaemonProcess, wait_for
from tests.support.training import SAVE_EVERY, TrainingProcess

pytestmark = pytest.mark.timeout(300)

LOOP = REPOSITORY / "tests" / "e2e" / "dcp_loop.py"
N_SAVES = 4
N_HASTY = 6


def _has_stored(daemon: DaemonProcess, n: int) -> bool:
    return len(daemon.snapshots()) >= n


def test_every_sharded_checkpoint_is_recorded_once_as_the_ranks_gathered_it(tmp_path: Path) -> None:
    root = tmp_path / "titan"
    arguments = ("--saves", N_SAVES, "--hasty-saves", N_HASTY)
    with TrainingProcess(root, tmp_path / "truth", "rotate", *arguments, loop=LOOP) as training:
        with DaemonProcess(tmp_path / "state", root) as daemon:
            for n in range(N_SAVES):
                training.save()
                wait_for(f"save {n + 1}", partial(_has_stored, daemon, n + 1))
            training.finish()
            last = (N_SAVES + N_HASTY) * SAVE_EVERY
            wait_for("the last save", lambda: daemon.snapshots()[-1]["step"] == last)
            wait_for("nothing left to do", lambda: daemon.metric("ckptwatch_oldest_unprocessed_seconds") == 0)
            assert daemon.metric("ckptwatch_supervisor_errors_total") == 0
            assert daemon.metric("ckptwatch_worker_crashes_total") == 0
            assert daemon.terminate() == 0
        truths = training.truths()
    database = open_database(f"sqlite:///{tmp_path / 'state' / 'ckptwatch.db'}")
    try:
        with database.read() as session:
            stored = queries.history(session, "titan")
            tensors = {snapshot.id: queries.tensors(session, snapshot.id) for snapshot in stored}
    finally:
        database.close()
    steps = [snapshot.step for snapshot in stored if snapshot.step is not None]
    assert len(steps) == len(stored)
    assert steps[:N_SAVES] == list(range(SAVE_EVERY, N_SAVES * SAVE_EVERY + 1, SAVE_EVERY))
    assert steps == sorted(set(steps)), "a checkpoint is stored twice, or out of order"
    for snapshot in stored:
        assert (snapshot.status, snapshot.problem) == (SnapshotStatus.COMPLETE, None)
        assert snapshot.format == "torch_dcp"
        assert snapshot.step is not None
        assert Path(snapshot.path).name == f"step-{snapshot.step}"
        assert snapshot.gradient is not None
        assert snapshot.gradient.source == ("adam_ema" if snapshot is stored[0] else "adam_window")
        measured = {tensor.name: tensor for tensor in tensors[snapshot.id]}
        for name, true in truths[snapshot.step]["tensors"].items():
            assert list(measured[name].shape) == true["shape"]
            for statistic in ("norm_l2", "max", "min"):
                assert getattr(measured[name], statistic) == pytest.approx(true[statistic], rel=1e-6), (name, statistic)
