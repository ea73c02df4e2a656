"""Several checkpoints of a run wait at once: which are measured, which are skipped, and what is said of those."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from monitor.config import load
from monitor.daemon import Daemon, DaemonOptions
from monitor.measure.assemble import UPDATE_COSINE_SCALAR
from storage import queries
from storage.records import ProblemKind, SnapshotStatus, StoredSnapshot

STEPS = (1, 2, 3, 4)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Return a directory with four checkpoints of a run that walks straight on, and one of another run."""
    rng = np.random.default_rng(0)
    start, direction = rng.standard_normal((64, 64)), rng.standard_normal((64, 64))
    root = tmp_path / "runs"
    for name, steps in (("gpt", STEPS), ("other", (1,))):
        (root / name).mkdir(parents=True)
        for step in steps:
            path = root / name / f"step-{step}.npz"
            np.savez(path, weight=(start + 0.01 * step * direction).astype(np.float32))
            written_at = time.time() - 1000 + step
            os.utime(path, (written_at, written_at))
    return root


def watched(root: Path, watch: Mapping[str, Any], *, skips: bool = True) -> Iterator[Daemon]:
    config = load(
        None,
        {
            "watch": {"roots": [str(root)], "settle_seconds": 0.1, **watch},
            "storage": {"url": str(root.parent / "x.db")},
            "measure": {"drift": "sketch"},
        },
    )
    daemon = Daemon(config, options=DaemonOptions(serves=False, notifies=False, hints=False, skips=skips))
    try:
        daemon.run(until_done=True)
        yield daemon
    finally:
        daemon.close()


def history(daemon: Daemon, run: str = "runs/gpt") -> list[StoredSnapshot]:
    with daemon.database.read() as session:
        return queries.history(session, run)


def test_every_checkpoint_that_waits_is_measured_and_told_how_its_update_lies(root: Path) -> None:
    for daemon in watched(root, {}):
        snapshots = history(daemon)
        assert [(s.step, s.status) for s in snapshots] == [(step, SnapshotStatus.COMPLETE) for step in STEPS]
        with daemon.database.read() as session:
            cosines = [queries.scalars(session, s.id).get(UPDATE_COSINE_SCALAR) for s in snapshots]
        assert cosines[:2] == [None, None]
        assert cosines[2:] == pytest.approx([1.0, 1.0], abs=1e-3)


def test_superseded_ones_are_skipped_when_the_configuration_says_so_and_it_is_told(
    root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    for daemon in watched(root, {"skip_superseded": True}):
        *skipped, newest = history(daemon)
        assert (newest.step, newest.status) == (4, SnapshotStatus.COMPLETE)
        assert [s.step for s in skipped] == [1, 2, 3]
        for snapshot in skipped:
            assert snapshot.problem is not None
            assert snapshot.problem.kind is ProblemKind.SUPERSEDED
            assert snapshot.problem.message.startswith("skipped, since step-")
            assert snapshot.bytes_read == 0
        assert [s.status for s in history(daemon, "runs/other")] == [SnapshotStatus.COMPLETE]
        failures = daemon.registry.get_sample_value(
            "ckptwatch_snapshot_failures_total", {"problem": ProblemKind.SUPERSEDED.value}
        )
        assert failures == 3
        with daemon.database.read() as session:
            assert queries.open_alerts(session) == []
    told = [r for r in caplog.records if "of this run was written after it (watch.skip_superseded)" in r.getMessage()]
    assert [r.levelno for r in told] == [logging.INFO] * 3
    for daemon in watched(root, {"skip_superseded": False}):
        assert len(history(daemon)) == 4
        assert sum(s.status is SnapshotStatus.FAILED for s in history(daemon)) == 3


def test_a_scan_of_an_archive_skips_nothing(root: Path) -> None:
    for daemon in watched(root, {"skip_superseded": True}, skips=False):
        assert {s.status for s in history(daemon)} == {SnapshotStatus.COMPLETE}
