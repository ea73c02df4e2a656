"""A real training of two ranks that shards its checkpoints and saves them in the background, beside a real daemon."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.daemons import REPOSITORY
from tests.support.watched import Plan, train_beside_daemon

pytestmark = pytest.mark.timeout(300)

LOOP = REPOSITORY / "tests" / "e2e" / "dcp_loop.py"


def test_every_sharded_checkpoint_is_recorded_once_as_the_ranks_gathered_it(tmp_path: Path) -> None:
    recorded = train_beside_daemon(tmp_path, "titan", LOOP, "rotate", Plan(n_saves=4, n_hasty=6))
    for record in recorded:
        snapshot = record.snapshot
        assert snapshot.format == "torch_dcp"
        assert Path(snapshot.path).name == f"step-{record.step}"
        assert snapshot.gradient is not None
        assert snapshot.gradient.source == ("adam_ema" if record is recorded[0] else "adam_window")
