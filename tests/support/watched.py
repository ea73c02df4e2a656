"""A real training beside a real daemon, and the comparison of what the daemon stored with what was true."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from storage import queries
from storage.database import open_database
from storage.records import SnapshotStatus, StoredSnapshot, TensorKind, TensorSummary
from tests.support.daemons import DaemonProcess, wait_for
from tests.support.training import SAVE_EVERY, TrainingProcess

MODEL = (TensorKind.PARAMETER, TensorKind.BUFFER)


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorded:
    """One stored snapshot with its tensors, and with what the training wrote down of every save, by step."""

    snapshot: StoredSnapshot
    tensors: Mapping[str, TensorSummary]
    step: int
    truths: Mapping[int, Mapping[str, Any]]

    @property
    def truth(self) -> Mapping[str, Any]:
        return self.truths[self.step]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How a loop saves: `n_saves` when it is told to, then `n_hasty` without any pause.

    `ahead` is how many checkpoints lie on disk unread while the loop goes on: as many as it keeps, so that each is
    there for longer than the settle time, however slow the machine is. Each save writes `n_paths` checkpoints.
    """

    n_saves: int
    n_hasty: int
    ahead: int = 1
    n_paths: int = 1

    @property
    def last_step(self) -> int:
        return (self.n_saves + self.n_hasty) * SAVE_EVERY


def train_beside_daemon(directory: Path, run: str, loop: Path, mode: str, plan: Plan) -> list[Recorded]:
    """Run a training to its end beside a daemon, neither of which may see an error; return what was stored, in order.

    Each checkpoint must be stored once, whole, in its order and with the numbers that the training wrote down.
    """
    root = directory / run
    arguments = ("--saves", plan.n_saves, "--hasty-saves", plan.n_hasty)
    with (
        TrainingProcess(root, directory / "truth", mode, *arguments, loop=loop) as training,
        DaemonProcess(directory / "state", root) as daemon,
    ):
        for n in range(plan.n_saves):
            wait_for_snapshots(daemon, (n - plan.ahead + 1) * plan.n_paths)
            training.save()
        wait_for_snapshots(daemon, plan.n_saves * plan.n_paths)
        training.finish()
        wait_for("the last save", lambda: _count(daemon, plan.last_step) == plan.n_paths)
        wait_for("nothing left to do", lambda: daemon.metric("ckptwatch_oldest_unprocessed_seconds") == 0)
        assert daemon.metric("ckptwatch_supervisor_errors_total") == 0
        assert daemon.metric("ckptwatch_worker_crashes_total") == 0
        assert daemon.terminate() == 0
        recorded = _recorded(directory / "state" / "ckptwatch.db", run, training.truths())
    _assert_once_and_in_order(recorded, plan)
    for record in recorded:
        assert_true(record)
    return recorded


def wait_for_snapshots(daemon: DaemonProcess, n: int) -> None:
    wait_for(f"{n} snapshots", lambda: len(daemon.snapshots()) >= n)


def _count(daemon: DaemonProcess, step: int) -> int:
    return sum(snapshot["step"] == step for snapshot in daemon.snapshots())


def _recorded(database_path: Path, run: str, truths: Mapping[int, Mapping[str, Any]]) -> list[Recorded]:
    database = open_database(f"sqlite:///{database_path}")
    found = []
    try:
        with database.read() as session:
            for snapshot in queries.history(session, run):
                assert (snapshot.status, snapshot.problem, snapshot.attempt) == (SnapshotStatus.COMPLETE, None, 1)
                assert snapshot.step is not None
                tensors = {t.name: t for t in queries.tensors(session, snapshot.id)}
                found.append(Recorded(snapshot=snapshot, tensors=tensors, step=snapshot.step, truths=truths))
    finally:
        database.close()
    return found


def _assert_once_and_in_order(recorded: list[Recorded], plan: Plan) -> None:
    steps = [record.step for record in recorded]
    assert steps == sorted(steps), "a checkpoint is stored out of order"
    which = [(record.step, record.snapshot.path) for record in recorded]
    assert len(set(which)) == len(which), "a checkpoint is stored twice"
    paced = range(SAVE_EVERY, plan.n_saves * SAVE_EVERY + 1, SAVE_EVERY)
    assert steps[: plan.n_saves * plan.n_paths] == [step for step in paced for _ in range(plan.n_paths)]
    assert steps[-1] == plan.last_step
    assert all(steps.count(step) <= plan.n_paths for step in steps)


def assert_true(record: Recorded) -> None:
    """Compare every tensor that the training wrote down; no other may be of the model."""
    truth: Mapping[str, Mapping[str, Any]] = record.truth["tensors"]
    assert set(truth) <= set(record.tensors)
    assert {t.name for t in record.tensors.values() if t.kind in MODEL} <= set(truth)
    for name, true in truth.items():
        _assert_tensor(record.tensors[name], true)


def _assert_tensor(tensor: TensorSummary, true: Mapping[str, Any]) -> None:
    assert list(tensor.shape) == true["shape"]
    assert tensor.n_elements == math.prod(true["shape"])
    assert (tensor.n_nan, tensor.n_zero) == (true["n_nan"], true["n_zero"])
    for name in ("min", "max", "std", "norm_l1", "norm_l2", "abs_max"):
        # What std can be told apart from zero is a matter of the rounding of the mean.
        rounding = 1e-8 * true["abs_max"] if name == "std" and name in true else 0.0
        assert getattr(tensor, name) == pytest.approx(true.get(name), rel=1e-6, abs=rounding), f"{tensor.name}.{name}"
    # A mean near zero is the small rest of large sums: it is as exact as the mean magnitude allows.
    mean_magnitude = true.get("norm_l1", 0.0) / tensor.n_elements
    assert tensor.mean == pytest.approx(true.get("mean"), rel=1e-6, abs=1e-6 * mean_magnitude), tensor.name
