"""Sketches of many snapshots at once, and sums over their tensors: what paths and drifts of a run are made from.

Reads only, and never judges. Sketches are large: they come snapshot by snapshot, never all of a run at once.
"""

from __future__ import annotations

import fnmatch
import math
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from sqlalchemy import Select, literal, select
from sqlalchemy.orm import Session

from storage import rows
from storage.models import (
    DriftRow,
    RunRow,
    SketchRow,
    SnapshotRow,
    StatisticsRow,
    TensorRow,
    WeightSketchRow,
    table,
)
from storage.records import Sketch, SnapshotStatus, TensorKind

SNAPSHOTS_MAX: Final = 100_000
NAMES_MAX: Final = 1_000_000
_BATCH_ROWS: Final = 250  # a megabyte of sketches; below the number of variables an old SQLite allows


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a complete snapshot stands in the order of its run."""

    id: int
    attempt: int
    step: int | None
    path: str
    weight_norm: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorSketch:
    """One tensor of one snapshot with its sketch, None where it was thinned or never taken."""

    name: str
    shape: str
    n_nonfinite: int
    norm_l2: float | None
    sketch: Sketch | None


@dataclass(frozen=True, slots=True, kw_only=True)
class DriftSum:
    """The stored drifts of some tensors of one snapshot from the one before it, added up.

    `difference_l2` is |w - w0| over the `n_known` of `n_tensors` that have one; `is_exact` says that both files were
    read for all of them.
    """

    reference_step: int | None
    n_tensors: int
    n_known: int
    difference_l2: float
    is_exact: bool


def places(session: Session, run: str) -> list[Place]:
    """Return the complete snapshots of a run in the order of attempt, step and storing; the newest SNAPSHOTS_MAX."""
    order = (SnapshotRow.attempt.desc(), SnapshotRow.sort_step.desc(), SnapshotRow.id.desc())
    statement = (
        select(SnapshotRow.id, SnapshotRow.attempt, SnapshotRow.step, SnapshotRow.path, SnapshotRow.weight_norm)
        .join(RunRow, RunRow.id == SnapshotRow.run_id)
        .where(RunRow.name == run, SnapshotRow.status == SnapshotStatus.COMPLETE.value)
        .order_by(*order)
        .limit(SNAPSHOTS_MAX)
    )
    found = [
        Place(id=number, attempt=attempt, step=step, path=path, weight_norm=norm)
        for number, attempt, step, path, norm in session.execute(statement)
    ]
    return found[::-1]


def weights(session: Session, snapshot_ids: Sequence[int]) -> Iterator[tuple[int, Sketch]]:
    """Yield the sketch of all parameters of each snapshot that has one, in the order of `snapshot_ids`."""
    columns = table(WeightSketchRow).c
    for start in range(0, len(snapshot_ids), _BATCH_ROWS):
        part = snapshot_ids[start : start + _BATCH_ROWS]
        found = {row.snapshot_id: row for row in session.execute(_weights().where(columns.snapshot_id.in_(part)))}
        for number in part:
            if number in found:
                yield number, rows.sketch_record(found[number])


def weights_at_step(
    session: Session, seed: int, step: int, *, other_than: str, limit: int = 100
) -> list[tuple[str, Sketch]]:
    """Return the sketches of the same parameters (`seed`) in other runs at a step, by run, the latest stored first."""
    statement = (
        _weights()
        .add_columns(RunRow.name.label("run"))
        .join(SnapshotRow, SnapshotRow.id == table(WeightSketchRow).c.snapshot_id)
        .join(RunRow, RunRow.id == SnapshotRow.run_id)
        .where(table(WeightSketchRow).c.seed == seed, SnapshotRow.step == step, RunRow.name != other_than)
        .order_by(SnapshotRow.id.desc())
        .limit(limit)
    )
    return [(row.run, rows.sketch_record(row)) for row in session.execute(statement)]


def tensor_numbers(session: Session, run: str, pattern: str) -> list[int]:
    """Return the numbers of a run's tensors whose name is `pattern` or matches it as a glob (`*.attn.*`)."""
    matches = re.compile(fnmatch.translate(pattern)).match
    statement = select(TensorRow.id, TensorRow.name).join(RunRow, RunRow.id == TensorRow.run_id)
    named = session.execute(statement.where(RunRow.name == run).limit(NAMES_MAX))
    return [number for number, name in named if name == pattern or matches(name)]


def tensors(
    session: Session, snapshot_id: int, numbers: Collection[int], *, with_sketch: bool = True
) -> list[TensorSketch]:
    """Return the tensors of a snapshot that are among `numbers`, ties once, in the checkpoint's order."""
    statistics, sketches = table(StatisticsRow).c, table(SketchRow).c
    chosen = (
        select(
            statistics.position,
            statistics.tensor_id,
            TensorRow.name,
            TensorRow.shape,
            (statistics.n_nan + statistics.n_posinf + statistics.n_neginf).label("n_nonfinite"),
            statistics.norm_l2,
        )
        .join(TensorRow, TensorRow.id == statistics.tensor_id)
        .where(statistics.snapshot_id == snapshot_id, statistics.tied_to.is_(None))
        .order_by(statistics.position)
    )
    if len(numbers) <= _BATCH_ROWS:
        chosen = chosen.where(statistics.tensor_id.in_(list(numbers)))
    wanted = set(numbers)
    found = [row for row in session.execute(chosen) if row.tensor_id in wanted]
    kept: dict[int, Sketch] = {}
    for start in range(0, len(found) if with_sketch else 0, _BATCH_ROWS):
        part = [row.position for row in found[start : start + _BATCH_ROWS]]
        statement = select(
            sketches.position,
            sketches.kind.label("sketch_kind"),
            sketches.n_buckets,
            sketches.seed,
            sketches.dtype.label("sketch_dtype"),
            sketches["values"].label("sketch_values"),
        ).where(sketches.snapshot_id == snapshot_id, sketches.position.in_(part))
        kept.update((row.position, rows.sketch_record(row)) for row in session.execute(statement))
    return [
        TensorSketch(
            name=row.name,
            shape=row.shape,
            n_nonfinite=row.n_nonfinite,
            norm_l2=row.norm_l2,
            sketch=kept.get(row.position),
        )
        for row in found
    ]


def drift_sums(session: Session, snapshot_ids: Sequence[int], numbers: Collection[int] | None) -> dict[int, DriftSum]:
    """Return the stored drifts of each snapshot added up over tensors, ties once; those of all parameters for None."""
    sums: dict[int, DriftSum] = {}
    wanted = None if numbers is None else set(numbers)
    for start in range(0, len(snapshot_ids), _BATCH_ROWS):
        part = snapshot_ids[start : start + _BATCH_ROWS]
        # Both tables lie clustered by snapshot: read one after the other they cost a fraction of what a join costs.
        statistics = select(StatisticsRow.snapshot_id, StatisticsRow.tensor_id)
        ties = statistics.where(StatisticsRow.snapshot_id.in_(part), StatisticsRow.tied_to.is_not(None))
        tied = {(number, tensor) for number, tensor in session.execute(ties)}
        columns = (DriftRow.snapshot_id, DriftRow.tensor_id, DriftRow.reference_step, DriftRow.method)
        drifts = select(*columns, DriftRow.difference_l2).where(DriftRow.snapshot_id.in_(part))
        if wanted is not None and len(wanted) <= _BATCH_ROWS:
            drifts = drifts.where(DriftRow.tensor_id.in_(list(wanted)))
        found = session.execute(drifts).all()
        chosen = _parameters(session, {row.tensor_id for row in found}) if wanted is None else wanted
        for number, tensor, step, method, difference in found:
            if tensor not in chosen or (number, tensor) in tied:
                continue
            old = sums.get(number)
            sums[number] = DriftSum(
                reference_step=step,
                n_tensors=1 + (old.n_tensors if old else 0),
                n_known=(difference is not None) + (old.n_known if old else 0),
                difference_l2=math.hypot(difference or 0.0, old.difference_l2 if old else 0.0),
                is_exact=method == "exact" and (old is None or old.is_exact),
            )
    return sums


def _parameters(session: Session, numbers: Collection[int]) -> set[int]:
    """Return those of some tensors that are parameters."""
    asked, found = list(numbers), set[int]()
    for start in range(0, len(asked), _BATCH_ROWS):
        statement = select(TensorRow.id).where(
            TensorRow.id.in_(asked[start : start + _BATCH_ROWS]), TensorRow.kind == TensorKind.PARAMETER.value
        )
        found.update(session.scalars(statement))
    return found


def _weights() -> Select[tuple[int, str, int, int, str, bytes]]:
    columns = table(WeightSketchRow).c
    return select(
        columns.snapshot_id,
        literal("weights").label("sketch_kind"),
        columns.n_buckets,
        columns.seed,
        columns.dtype.label("sketch_dtype"),
        columns["values"].label("sketch_values"),
    )
