"""Pictures of runs and checkpoints with Matplotlib, for tickets and papers: records in, a figure out.

Matplotlib is an extra and takes a second to load, so it is imported when a picture is asked for. Draws; judges nothing.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from monitor.measure.histogram import BINS_PER_SIGN, bin_edges
from monitor.measure.measured import Measured
from monitor.show.closer_views import DriftMap
from monitor.show.grouping import layer_groups
from monitor.show.views import Course, TensorMoment
from storage.records import Alert, Severity, StoredSnapshot, TensorKind, TensorSummary

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LAYERS_MAX = 40
RIDGES_MAX = 24
TENSORS_MAX = 24
CELLS = 96
NAME_CHARACTERS_MAX = 48
LINE, SOFT, BAD, WARNING = "#3b6ea8", "#6a717c", "#bf3030", "#a86a0f"
_LOG_RATIO_MIN = 50.0


class NothingToDrawError(Exception):
    """There is too little to see; the message says what is missing."""


def timeline(run: str, snapshots: Sequence[StoredSnapshot], course: Course, alerts: Sequence[Alert]) -> Figure:
    """Draw norm, update ratio, gradient and logged loss over the steps, alerts as lines at their step."""
    known = [snapshot for snapshot in snapshots if snapshot.n_tensors]
    lines = [
        ("weight norm", [s.weight_norm for s in known]),
        ("update ratio", [s.update_ratio for s in known]),
        ("gradient norm", [s.gradient.norm if s.gradient else None for s in known]),
        ("logged loss", [course.losses.get(s.id) for s in known]),
    ]
    drawn = [(name, values) for name, values in lines if sum(_is_number(v) for v in values) > 1]
    if not drawn:
        raise NothingToDrawError("fewer than two checkpoints of this run have a number")
    figure = _figure(8.0, 0.6 + 1.7 * len(drawn))
    steps = _steps(known)
    for axes, (name, values) in zip(figure.subplots(len(drawn), sharex=True, squeeze=False)[:, 0], drawn, strict=True):
        axes.plot(steps, [v if _is_number(v) else math.nan for v in values], color=LINE, linewidth=1.5)
        positive = [v for v in values if v is not None and _is_number(v)]
        if min(positive) > 0 and max(positive) / min(positive) > _LOG_RATIO_MIN:
            axes.set_yscale("log")
        axes.set_ylabel(name, fontsize=9)
        for alert in alerts:
            if alert.step is not None and steps[0] <= alert.step <= steps[-1]:
                colour = BAD if alert.severity >= Severity.CRITICAL else WARNING
                axes.axvline(alert.step, color=colour, linewidth=0.8, alpha=0.6)
        _plain(axes)
    figure.axes[-1].set_xlabel(_x_label(known), fontsize=9)
    return _titled(figure, run)


def heatmap(run: str, snapshots: Sequence[StoredSnapshot], course: Course) -> Figure:
    """Draw the L2 norm of each layer over the steps, as a factor of the layer's own median; red is not finite."""
    place = {s.id: column for column, s in enumerate(s for s in snapshots if s.n_tensors)}
    points = [point for point in course.points if point.snapshot_id in place]
    if len({point.snapshot_id for point in points}) < 2:
        raise NothingToDrawError("fewer than two checkpoints of this run were measured")
    columns = sorted({place[point.snapshot_id] for point in points})
    at = {column: number for number, column in enumerate(columns)}
    groups = layer_groups((point.name for point in points), LAYERS_MAX)
    layers = list(dict.fromkeys(groups.values()))
    squares = [[0.0] * len(columns) for _ in layers]
    for point in points:
        row, column = layers.index(groups[point.name]), at[place[point.snapshot_id]]
        squares[row][column] += math.nan if point.n_nonfinite or point.norm_l2 is None else point.norm_l2**2
    rows = [_factors([math.sqrt(v) for v in row]) for row in squares]
    figure = _figure(9.0, 1.2 + 0.24 * len(layers))
    axes = figure.subplots()
    colours = importlib.import_module("matplotlib").colormaps["RdBu_r"].with_extremes(bad=BAD)
    image = axes.imshow(rows, aspect="auto", cmap=colours, vmin=-1.0, vmax=1.0, interpolation="nearest")
    axes.set_yticks(range(len(layers)), [_short(layer) for layer in layers], fontsize=8, parse_math=False)
    ordered = [s for s in snapshots if s.n_tensors]
    shown = sorted({0, len(columns) // 2, len(columns) - 1})
    axes.set_xticks(shown, [_step(ordered[columns[number]]) for number in shown], fontsize=8)
    figure.colorbar(image, ax=axes, label="log2 of norm over its median")
    return _titled(figure, f"{run}: layers by norm")


def ridgeline(run: str, moments: Sequence[TensorMoment]) -> Figure:
    """Draw the histogram of one tensor in at most RIDGES_MAX checkpoints, the oldest at the top."""
    drawable = [moment for moment in moments if moment.bins]
    if not drawable:
        raise NothingToDrawError("no histogram of this tensor is stored")
    chosen = drawable[:: max(1, math.ceil(len(drawable) / RIDGES_MAX))]
    low = min(_core(moment.bins)[0] for moment in chosen)
    high = max(_core(moment.bins)[1] for moment in chosen)
    figure = _figure(7.0, 0.8 + 0.42 * len(chosen))
    for axes, moment in zip(figure.subplots(len(chosen), sharex=True, squeeze=False)[:, 0], chosen, strict=True):
        _density(axes, moment.bins, (low, high), BAD if moment.tensor.n_nonfinite else LINE)
        axes.set_ylabel(_step(moment.snapshot), fontsize=8, rotation=0, ha="right", va="center")
    figure.axes[-1].tick_params(labelbottom=True, labelsize=8)
    return _titled(figure, f"{run}: {_short(moments[0].tensor.name)}")


def drift_map(run: str, found: DriftMap) -> Figure:
    """Draw every checkpoint against every other, and the path of the weights on a plane."""
    if len(found.snapshots) < 2:
        raise NothingToDrawError("fewer than two checkpoints of this run have all parameters finite")
    figure = _figure(11.0, 4.8)
    matrix, path = figure.subplots(1, 2)
    image = matrix.imshow(found.relative, cmap="Blues", interpolation="nearest")
    shown = sorted({0, len(found.snapshots) // 2, len(found.snapshots) - 1})
    labels = [_step(found.snapshots[number]) for number in shown]
    matrix.set_xticks(shown, labels, fontsize=8)
    matrix.set_yticks(shown, labels, fontsize=8)
    matrix.set_title("distance over the norm", fontsize=9)
    figure.colorbar(image, ax=matrix, shrink=0.8)
    xs, ys = [x for x, _ in found.points], [y for _, y in found.points]
    path.plot(xs, ys, color=LINE, linewidth=1, marker="o", markersize=4)
    for number in shown:
        path.annotate(
            _step(found.snapshots[number]), found.points[number], fontsize=8, xytext=(4, 6), textcoords="offset points"
        )
    path.set_aspect("equal", adjustable="datalim")
    path.set_title(f"path of the weights ({100 * found.share:.0f}% of it)", fontsize=9)
    _plain(path)
    return _titled(figure, run)


def histograms(title: str, measured: Measured) -> Figure:
    """Draw the distributions of the TENSORS_MAX largest tensors, the optimizer's only where there are no others."""
    drawable = [tensor for tensor in measured.tensors if _bins(tensor)]
    drawable = [tensor for tensor in drawable if tensor.kind is not TensorKind.OPTIMIZER] or drawable
    if not drawable:
        raise NothingToDrawError("no tensor of this checkpoint has a finite value")
    chosen = sorted(drawable, key=lambda tensor: -tensor.n_elements)[:TENSORS_MAX]
    chosen.sort(key=lambda tensor: tensor.position)
    n_columns = min(4, len(chosen))
    n_rows = math.ceil(len(chosen) / n_columns)
    figure = _figure(2.8 * n_columns, 0.6 + 1.6 * n_rows)
    places = figure.subplots(n_rows, n_columns, squeeze=False).flatten()
    for axes, tensor in zip(places, chosen, strict=False):
        _density(axes, _bins(tensor), _core(_bins(tensor)), BAD if tensor.n_nonfinite else LINE)
        axes.tick_params(labelbottom=True, labelsize=7)
        axes.locator_params(axis="x", nbins=4)
        axes.set_title(_short(tensor.name), fontsize=7, parse_math=False)
    for axes in places[len(chosen) :]:
        axes.set_axis_off()
    return _titled(figure, title)


def _figure(width_inches: float, height_inches: float) -> Figure:
    made: Figure = importlib.import_module("matplotlib.figure").Figure(
        figsize=(width_inches, height_inches), dpi=150, layout="constrained"
    )
    return made


def _titled(figure: Figure, title: str) -> Figure:
    # Names come from files; a dollar sign in one must not begin a formula.
    figure.suptitle(title, fontsize=10, parse_math=False)
    return figure


def _plain(axes: Any) -> None:
    axes.grid(alpha=0.25)
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)


def _density(axes: Any, bins: Sequence[tuple[float, float, int]], span: tuple[float, float], colour: str) -> None:
    """Draw the counts over CELLS equal cells of `span`: the bins are far narrower near zero than elsewhere."""
    low, high = span
    width = (high - low) / CELLS
    cells = [0.0] * CELLS
    for start, end, count in bins:
        first, last = max(start, low), min(end, high)
        if last < first or end <= start:
            continue
        for cell in range(max(0, int((first - low) / width)), min(CELLS - 1, int((last - low) / width)) + 1):
            left = low + cell * width
            cells[cell] += count * max(0.0, min(last, left + width) - max(first, left)) / (end - start)
    places = [low + (cell + 0.5) * width for cell in range(CELLS)]
    axes.fill_between(places, cells, color=colour, alpha=0.35, linewidth=0)
    axes.plot(places, cells, color=colour, linewidth=1.0)
    axes.set_xlim(low, high)
    axes.set_ylim(bottom=0)
    axes.set_yticks([])
    axes.tick_params(labelbottom=False)
    axes.spines[["top", "right", "left"]].set_visible(False)


def _bins(tensor: TensorSummary) -> list[tuple[float, float, int]]:
    if tensor.histogram is None:
        return []
    pairs = zip(tensor.histogram.bin_indices, tensor.histogram.counts, strict=True)
    return [(*bin_edges(index), count) for index, count in pairs if abs(index) <= BINS_PER_SIGN and index != 0]


def _core(bins: Sequence[tuple[float, float, int]]) -> tuple[float, float]:
    """Return the values between which all but a thousandth at each end lies."""
    total, seen, low = sum(count for _, _, count in bins), 0, bins[0][0]
    for start, end, count in bins:
        if seen <= total / 1000:
            low = start
        seen += count
        if seen >= total * 0.999:
            return (low, end) if end > low else (low - 1.0, low + 1.0)
    return low, bins[-1][1]


def _factors(norms: Sequence[float]) -> list[float]:
    known = sorted(norm for norm in norms if norm > 0 and math.isfinite(norm))
    middle = known[len(known) // 2] if known else 1.0
    return [math.nan if not math.isfinite(n) else math.log2(n / middle) if n > 0 else -1.0 for n in norms]


def _is_number(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def _steps(snapshots: Sequence[StoredSnapshot]) -> list[float]:
    known = [float(s.step) for s in snapshots if s.step is not None]
    return known if len(known) == len(snapshots) else [float(n) for n in range(1, len(snapshots) + 1)]


def _x_label(snapshots: Sequence[StoredSnapshot]) -> str:
    return "training step" if all(s.step is not None for s in snapshots) else "checkpoint"


def _step(snapshot: StoredSnapshot) -> str:
    return f"step {snapshot.step}" if snapshot.step is not None else _short(snapshot.path.rpartition("/")[2])


def _short(name: str) -> str:
    return name if len(name) <= NAME_CHARACTERS_MAX else f"…{name[-NAME_CHARACTERS_MAX:]}"
