"""A real run of the Trainer that keeps one checkpoint, beside a real daemon."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.daemons import REPOSITORY
from tests.support.watched import Plan, train_beside_daemon

pytestmark = pytest.mark.timeout(300)

LOOP = REPOSITORY / "tests" / "e2e" / "hf_loop.py"


def test_every_checkpoint_of_a_trainer_that_keeps_one_is_recorded_once_and_the_training_sees_no_error(
    tmp_path: Path,
) -> None:
    recorded = train_beside_daemon(tmp_path, "gpt", LOOP, "rotate", Plan(n_saves=8, n_hasty=10))
    for record in recorded:
        snapshot = record.snapshot
        assert snapshot.format == "hf_trainer"
        assert Path(snapshot.path).name == f"checkpoint-{record.step}"
        assert snapshot.epoch == pytest.approx(record.truth["epoch"])
        assert snapshot.gradient is not None
