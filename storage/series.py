"""Few facts about many snapshots at once, for maps and courses; reads only, and never judges."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from sqlalchemy import select
from sqlalchemy.orm import Session

from storage import encoding, rows
from storage.models import DriftRow, RunRow, ScalarsRow, StatisticsRow, TensorRow, table
from storage.records import TensorDrift, TensorKind, TensorPoint

SNAPSHOTS_MAX: Final = 500  # below the number of variables that an old SQLite allows in one statement
POINTS_MAX: Final = 100_000
DRIFTS_MAX: Final = 400_000  # optimizer states drift too


def tensor_points(session: Session, snapshot_ids: Sequence[int], *, limit: int = POINTS_MAX) -> list[TensorPoint]:
    """Return at most `limit` parameters of at most SNAPSHOTS_MAX snapshots, by snapshot, in the checkpoint's order."""
    asked = snapshot_ids[-SNAPSHOTS_MAX:]
    statement = (
        select(
            StatisticsRow.snapshot_id,
            StatisticsRow.tensor_id,
            TensorRow.name,
            StatisticsRow.n_elements,
            StatisticsRow.n_nan + StatisticsRow.n_posinf + StatisticsRow.n_neginf,
            StatisticsRow.norm_l2,
        )
        .join(TensorRow, TensorRow.id == StatisticsRow.tensor_id)
        .where(StatisticsRow.snapshot_id.in_(asked), TensorRow.kind == TensorKind.PARAMETER.value)
        .order_by(StatisticsRow.snapshot_id, StatisticsRow.position)
        .limit(limit)
    )
    # Both tables lie clustered by snapshot: read one after the other they cost half of what a join costs.
    drifts = select(DriftRow.snapshot_id, DriftRow.tensor_id, DriftRow.relative_l2).where(
        DriftRow.snapshot_id.in_(asked)
    )
    relative = {
        (snapshot_id, tensor_id): value for snapshot_id, tensor_id, value in session.execute(drifts.limit(DRIFTS_MAX))
    }
    return [
        TensorPoint(
            snapshot_id=snapshot_id,
            name=name,
            n_elements=n_elements,
            n_nonfinite=n_nonfinite,
            norm_l2=norm_l2,
            relative_l2=relative.get((snapshot_id, tensor_id)),
        )
        for snapshot_id, tensor_id, name, n_elements, n_nonfinite, norm_l2 in session.execute(statement)
    ]


def tensor_drifts(session: Session, run: str, name: str, snapshot_ids: Sequence[int]) -> dict[int, TensorDrift]:
    """Return the drift of one tensor in each of at most SNAPSHOTS_MAX snapshots that has one, by snapshot."""
    statement = (
        select(*table(DriftRow).c, TensorRow.name)
        .join(TensorRow, TensorRow.id == DriftRow.tensor_id)
        .join(RunRow, RunRow.id == TensorRow.run_id)
        .where(RunRow.name == run, TensorRow.name == name, DriftRow.snapshot_id.in_(snapshot_ids[-SNAPSHOTS_MAX:]))
        .limit(SNAPSHOTS_MAX)
    )
    return {row.snapshot_id: rows.tensor_drift(row) for row in session.execute(statement)}


def scalar_values(session: Session, snapshot_ids: Sequence[int], key: str) -> dict[int, float]:
    """Return one plain number of each of at most SNAPSHOTS_MAX snapshots that has it, by snapshot."""
    statement = select(ScalarsRow.snapshot_id, ScalarsRow.scalars).where(
        ScalarsRow.snapshot_id.in_(snapshot_ids[-SNAPSHOTS_MAX:])
    )
    found = {row.snapshot_id: encoding.decode_numbers(row.scalars) for row in session.execute(statement)}
    return {number: scalars[key] for number, scalars in found.items() if key in scalars}
