"""Real runs of Lightning whose ModelCheckpoint rotates its files, beside a real daemon."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.daemons import REPOSITORY
from tests.support.watched import Plan, train_beside_daemon

pytestmark = pytest.mark.timeout(300)

LOOP = REPOSITORY / "tests" / "e2e" / "lightning_loop.py"


@pytest.mark.parametrize(
    ("mode", "plan"),
    [
        ("rotate", Plan(n_saves=6, n_hasty=5, ahead=2)),
        pytest.param("last", Plan(n_saves=4, n_hasty=4, n_paths=2), marks=pytest.mark.slow),
        pytest.param("link", Plan(n_saves=4, n_hasty=4), marks=pytest.mark.slow),
    ],
)
def test_every_checkpoint_of_lightning_is_recorded_once_and_the_training_sees_no_error(
    tmp_path: Path, mode: str, plan: Plan
) -> None:
    recorded = train_beside_daemon(tmp_path, "lit", LOOP, mode, plan)
    for record in recorded:
        snapshot = record.snapshot
        assert snapshot.format == "torch_zip"
        assert Path(snapshot.path).name in (f"epoch={record.truth['epoch']}-step={record.step}.ckpt", "last.ckpt")
        assert snapshot.epoch == record.truth["epoch"]
        assert snapshot.gradient is not None
        assert snapshot.gradient.source == ("adam_ema" if snapshot.reference_step is None else "adam_window")
