"""Real runs of Keras and of TensorFlow's CheckpointManager beside a real daemon."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.daemons import REPOSITORY
from tests.support.watched import Plan, train_beside_daemon

pytestmark = pytest.mark.timeout(300)

LOOP = REPOSITORY / "tests" / "e2e" / "keras_loop.py"
FORMATS = {"weights": "hdf5", "keras": "keras", "manager": "tf_checkpoint"}


@pytest.mark.parametrize("mode", [pytest.param("weights", marks=pytest.mark.slow), "keras", "manager"])
def test_every_settled_checkpoint_is_recorded_once_and_the_training_sees_no_error(tmp_path: Path, mode: str) -> None:
    recorded = train_beside_daemon(tmp_path, "net", LOOP, mode, Plan(n_saves=4, n_hasty=3))
    for record in recorded:
        assert record.snapshot.format == FORMATS[mode]
        assert record.snapshot.gradient is not None
        assert record.snapshot.gradient.is_assumed == (mode != "keras")  # only the archive states beta2
