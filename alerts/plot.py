"""Which picture goes with an alert: one statistic of the run over its steps, the threshold, where it happened. Pure.

The statistic is the one whose value the alert reports, so that its threshold can be drawn beside it. An alert about
something that no run-level number shows gets the weight norm for orientation, without a threshold.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from alerts.notifier import printable
from storage.records import Alert, AlertState, SnapshotStatus, StoredSnapshot

POINTS_MIN = 2
POINTS_MAX = 400
LOGARITHMIC_RATIO_MIN = 50.0
TEXT_CHARACTERS_MAX = 100

Value = Callable[[StoredSnapshot], float | None]

STATISTICS: dict[str, Value] = {
    "Gradient norm": lambda s: None if s.gradient is None else s.gradient.norm,
    "Relative change per step": lambda s: s.update_ratio,
    "Weight norm": lambda s: s.weight_norm,
    "Elements that are NaN or infinite": lambda s: float(s.n_nonfinite),
    "Size in bytes": lambda s: float(s.size_bytes),
}
OF_RULE = {"nonfinite": "Elements that are NaN or infinite"}
USUAL = "Weight norm"


@dataclass(frozen=True, slots=True, kw_only=True)
class Plot:
    """One line to draw: finite values over increasing steps, or over the checkpoint's number where one has no step.

    `marked` is the place of the alert among the points, None where it is not among them; `threshold` is in the unit of
    the values, None where it is not about them.
    """

    title: str
    x_label: str
    y_label: str
    xs: tuple[float, ...]
    ys: tuple[float, ...]
    marked: int | None
    threshold: float | None
    is_logarithmic: bool
    is_over: bool


def plot_of(alert: Alert, snapshots: Sequence[StoredSnapshot]) -> Plot | None:
    """Return what to draw for an alert over snapshots from oldest to newest; None when there is too little to see."""
    measured = [s for s in snapshots if s.status is SnapshotStatus.COMPLETE][-POINTS_MAX:]
    name, is_about_it = _statistic(alert, measured)
    points = [(s, y) for s in measured if (y := STATISTICS[name](s)) is not None and math.isfinite(y)]
    if len(points) < POINTS_MIN:
        return None
    steps = [s.step for s, _ in points]
    known = [float(step) for step in steps if step is not None]
    is_by_step = len(known) == len(steps) and known == sorted(set(known))
    ys = tuple(y for _, y in points)
    positive = min(ys) > 0
    return Plot(
        title=printable(f"{alert.rule.replace('_', ' ')} in {alert.run}", TEXT_CHARACTERS_MAX),
        x_label="Training step" if is_by_step else "Checkpoint",
        y_label=name,
        xs=tuple(known) if is_by_step else tuple(float(n) for n in range(1, len(points) + 1)),
        ys=ys,
        marked=next((n for n, step in enumerate(steps) if step is not None and step == alert.step), None),
        threshold=alert.threshold if is_about_it else None,
        is_logarithmic=positive and max(ys) / min(ys) >= LOGARITHMIC_RATIO_MIN,
        is_over=alert.state is AlertState.RESOLVED,
    )


def _statistic(alert: Alert, measured: Sequence[StoredSnapshot]) -> tuple[str, bool]:
    """Return the name of the statistic to draw, and whether the alert's threshold is a value of it."""
    preferred = OF_RULE.get(alert.rule)
    if alert.value is not None:
        for name in STATISTICS if preferred is None else (preferred,):
            found = (STATISTICS[name](s) for s in reversed(measured))
            if any(y is not None and y != 0 and math.isclose(y, alert.value, rel_tol=1e-6) for y in found):
                return name, alert.threshold is not None
    return preferred or USUAL, False
