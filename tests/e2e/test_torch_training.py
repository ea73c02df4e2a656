"""A real training loop beside a real daemon: every checkpoint is measured once, and every number is right."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.training import LOOP, window_norm
from tests.support.watched import Plan, Recorded, train_beside_daemon

pytestmark = pytest.mark.timeout(300)  # waits have their own, shorter limits


@pytest.mark.parametrize(("mode", "ahead"), [("overwrite", 1), ("rotate", 3)])
def test_every_settled_checkpoint_of_a_torch_run_is_stored_once_with_the_numbers_of_numpy(
    tmp_path: Path, mode: str, ahead: int
) -> None:
    recorded = train_beside_daemon(tmp_path, "mlp", LOOP, mode, Plan(n_saves=30, n_hasty=12, ahead=ahead))
    for record in recorded:
        assert record.snapshot.path == record.truth["path"]
        assert set(record.tensors) == set(record.truth["tensors"])
        _compare_gradient(record)


def _compare_gradient(record: Recorded) -> None:
    snapshot = record.snapshot
    assert snapshot.gradient is not None
    if snapshot.reference_step is None:
        assert snapshot.gradient.source == "adam_ema"
        return
    assert snapshot.gradient.source == "adam_window"
    assert snapshot.gradient.window_steps == record.step - snapshot.reference_step
    true_norm = window_norm(record.truths, record.step, snapshot.gradient.window_steps)
    assert snapshot.gradient.norm == pytest.approx(true_norm, rel=0.01)
