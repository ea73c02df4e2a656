from __future__ import annotations

import math

from storage import rows
from storage.records import GradientEstimate
from tests.support import stored


def test_a_snapshot_row_holds_no_nan_and_no_gradient_whose_norm_is_infinite() -> None:
    snapshot = stored.make_snapshot(
        weight_norm=math.inf,
        update_ratio=math.nan,
        duration_seconds=math.nan,
        gradient=GradientEstimate(norm=math.inf, source="adam_ema", window_steps=None),
    )
    row = rows.snapshot_row(snapshot, run_id=1, sort_step=1)
    assert row["weight_norm"] is row["update_ratio"] is row["gradient_norm"] is row["gradient_source"] is None
    assert not any(isinstance(value, float) and not math.isfinite(value) for value in row.values())
