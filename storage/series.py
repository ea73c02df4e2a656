"""Few facts about many snapshots at once, for maps and courses; reads only, and never judges."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from sqlalchemy import and_, select
from sqlalchemy.orm import Session

from storage import encoding, rows
from storage.models import DriftRow, RunRow, ScalarsRow, StatisticsRow, TensorRow, table
from storage.records import TensorDrift, TensorKind, TensorPoint

SNAPSHOTS_MAX: Final = 500  # below the number of variables that an old SQLite allows in one statement
POINTS_MAX: Final = 100_000


def tensor_points(session: Session, snapshot_ids: Sequence[int], *, limit: int = POINTS_MAX) -> list[TensorPoint]:
    """Return at most `limit` parameters of at most SNAPSHOTS_MAX snapshots, by snapshot, in the checkpoint's order."""
    statement = (
        select(
            StatisticsRow.snapshot_id,
            TensorRow.name,
            StatisticsRow.n_elements,
            (StatisticsRow.n_nan + StatisticsRow.n_posinf + StatisticsRow.n_neginf).label("n_nonfinite"),
            StatisticsRow.norm_l2,
            DriftRow.relative_l2,
        )
        .join(TensorRow, TensorRow.id == StatisticsRow.tensor_id)
        .outerjoin(
            DriftRow,
            and_(DriftRow.snapshot_id == StatisticsRow.snapshot_id, DriftRow.tensor_id == StatisticsRow.tensor_id),
        )
        .where(
            StatisticsRow.snapshot_id.in_(snapshot_ids[-SNAPSHOTS_MAX:]), TensorRow.kind == TensorKind.PARAMETER.value
        )
        .order_by(StatisticsRow.snapshot_id, StatisticsRow.position)
        .limit(limit)
    )
    return [
        TensorPoint(
            snapshot_id=row.snapshot_id,
            name=row.name,
            n_elements=row.n_elements,
            n_nonfinite=row.n_nonfinite,
            norm_l2=row.norm_l2,
            relative_l2=row.relative_l2,
        )
        for row in session.execute(statement)
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
