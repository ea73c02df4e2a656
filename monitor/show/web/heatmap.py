"""Layers by checkpoints as strips of colour classes; pure.

A cell's colour says how far its value is from the usual one of its own row, since norms of different layers cannot be
compared. Cells of one colour are one SVG path, so that a large map stays small.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import median

from monitor.show.grouping import group_members, layer_groups
from storage.records import StoredSnapshot, TensorPoint

ROWS_MAX = 40
COLUMNS_MAX = 60
POINTS_MAX = 12_000  # what one map may ask of the database
NORM_FACTORS = (1.03, 1.25, 2.0)
CHANGE_FACTORS = (1.6, 4.0, 16.0)
BAD = "bad"

_ValueOf = Callable[[Sequence[TensorPoint]], float | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class HeatRow:
    """One layer: `paths` are (colour class, path data) in cells of 1 by 1, `first_bad` the column to outline or None.

    `tensor` is the one to look at first: the first with a non-finite element, else the largest.
    """

    layer: str
    tensor: str
    n_tensors: int
    paths: tuple[tuple[str, str], ...]
    newest: float | None
    first_bad: int | None
    description: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Heatmap:
    """Rows in the checkpoint's order over `n_columns` snapshots; steps are those of the first and last column."""

    rows: tuple[HeatRow, ...]
    n_columns: int
    first_step: int | None
    last_step: int | None
    bad_step: int | None
    bad_tensor: str | None


def columns(snapshots: Sequence[StoredSnapshot]) -> tuple[StoredSnapshot, ...]:
    """Return the latest measured snapshots that a map has room for, oldest first."""
    measured = [snapshot for snapshot in snapshots if snapshot.n_tensors]
    n_tensors = max((snapshot.n_tensors for snapshot in measured[-COLUMNS_MAX:]), default=1)
    return tuple(measured[-max(2, min(COLUMNS_MAX, POINTS_MAX // n_tensors)) :])


def norm_map(points: Sequence[TensorPoint], snapshots: Sequence[StoredSnapshot]) -> Heatmap | None:
    """Return the map of the L2 norm of each layer; None with fewer than two snapshots or without a point."""
    return _heatmap(points, snapshots, _norm, NORM_FACTORS)


def change_map(points: Sequence[TensorPoint], snapshots: Sequence[StoredSnapshot]) -> Heatmap | None:
    """Return the map of the relative change of each layer since the snapshot before; None as for `norm_map`."""
    return _heatmap(points, snapshots, _change, CHANGE_FACTORS)


def _heatmap(
    points: Sequence[TensorPoint],
    snapshots: Sequence[StoredSnapshot],
    value_of: _ValueOf,
    factors: Sequence[float],
) -> Heatmap | None:
    place = {snapshot.id: column for column, snapshot in enumerate(snapshots)}
    known = sorted((p for p in points if p.snapshot_id in place), key=lambda p: place[p.snapshot_id])
    if len(snapshots) < 2 or not known:
        return None
    bad = next((point for point in known if point.n_nonfinite), None)
    groups = layer_groups((point.name for point in known), ROWS_MAX)
    cells: dict[str, dict[int, list[TensorPoint]]] = {}
    for point in known:
        cells.setdefault(groups[point.name], {}).setdefault(place[point.snapshot_id], []).append(point)
    rows = []
    for layer, names in group_members(groups):
        row = _row(layer, names, cells[layer], (value_of, factors, len(snapshots)))
        if bad is not None and groups[bad.name] == layer:
            row = replace(row, first_bad=place[bad.snapshot_id], tensor=bad.name)
        rows.append(row)
    return Heatmap(
        rows=tuple(rows),
        n_columns=len(snapshots),
        first_step=snapshots[0].step,
        last_step=snapshots[-1].step,
        bad_step=None if bad is None else snapshots[place[bad.snapshot_id]].step,
        bad_tensor=None if bad is None else bad.name,
    )


def _row(
    layer: str,
    names: Sequence[str],
    cells: dict[int, list[TensorPoint]],
    scale: tuple[_ValueOf, Sequence[float], int],
) -> HeatRow:
    value_of, factors, n_columns = scale
    values = {column: value_of(members) for column, members in cells.items()}
    usual = [value for value in values.values() if value is not None and value > 0]
    middle = median(usual) if usual else None
    paths: dict[str, list[str]] = {}
    for column, members in sorted(cells.items()):
        is_bad = any(point.n_nonfinite for point in members)
        colour = BAD if is_bad else _colour(values[column], middle, factors)
        if colour is not None:
            paths.setdefault(colour, []).append(f"M{column} 0h1v1h-1z")
    members = [point for found in cells.values() for point in found]
    n_bad = sum(any(point.n_nonfinite for point in found) for found in cells.values())
    span = f"from {min(usual):.4g} to {max(usual):.4g}" if usual else "no number"
    newest = values.get(n_columns - 1)
    first_bad = next((point.name for point in members if point.n_nonfinite), None)
    return HeatRow(
        layer=layer,
        tensor=first_bad or max(members, key=lambda point: point.n_elements).name,
        n_tensors=len(names),
        paths=tuple((colour, "".join(parts)) for colour, parts in sorted(paths.items())),
        newest=newest,
        first_bad=None,
        description=f"{layer}: {span}" + (f", not finite in {n_bad} of {len(cells)} checkpoints" if n_bad else ""),
    )


def _colour(value: float | None, middle: float | None, factors: Sequence[float]) -> str | None:
    if value is None or middle is None:
        return None
    if value <= 0:
        return "down3"
    distance = math.log(value) - math.log(middle)
    level = sum(abs(distance) >= math.log(factor) for factor in factors)
    return "usual" if level == 0 else f"{'up' if distance > 0 else 'down'}{level}"


def _norm(members: Sequence[TensorPoint]) -> float | None:
    norms = [point.norm_l2 for point in members if point.norm_l2 is not None]
    return math.hypot(*norms) if norms else None


def _change(members: Sequence[TensorPoint]) -> float | None:
    """Return |W - W0| / |W| over the layer, each part's change taken against its own norm now."""
    parts = [(p.relative_l2, p.norm_l2) for p in members if p.relative_l2 is not None and p.norm_l2 is not None]
    norm = math.hypot(*(norm for _, norm in parts))
    return math.hypot(*(relative * (part / norm) for relative, part in parts)) if norm > 0 else None
