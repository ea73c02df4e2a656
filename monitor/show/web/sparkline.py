"""A row of numbers to the geometry of a small line chart; pure.

The template draws it as SVG with presentation attributes only, since the page allows no inline style. A gap in the
numbers is a gap in the line.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

_LOG_RATIO_MIN = 50.0  # positive numbers that span more than this are drawn on a logarithmic scale
_MARGIN = 3.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Sparkline:
    """A chart of `width` by `height` units, y downwards.

    `lines` are the "x,y x,y" points of unbroken stretches, `areas` the same closed to the floor, `dots` single
    numbers between gaps, `last` the newest number's point or None, `breaks` the x of what has no number.
    `description` says in words what is seen.
    """

    width: int
    height: int
    lines: tuple[str, ...]
    areas: tuple[str, ...]
    dots: tuple[tuple[float, float], ...]
    last: tuple[float, float] | None
    breaks: tuple[float, ...]
    is_logarithmic: bool
    description: str


def sparkline(values: Sequence[float | None], *, width: int = 160, height: int = 36) -> Sparkline | None:
    """Return the chart of `values`, oldest first; None and non-finite numbers are gaps. None below two numbers."""
    finite = [value for value in values if value is not None and math.isfinite(value)]
    if len(finite) < 2:
        return None
    low, high = min(finite), max(finite)
    is_logarithmic = low > 0 and high / low > _LOG_RATIO_MIN
    scaled = [_scaled(value, is_logarithmic) for value in values]
    bottom, top = (math.log(low), math.log(high)) if is_logarithmic else (low / 2, high / 2)
    span = top - bottom
    step = (width - 2 * _MARGIN) / (len(values) - 1)

    def point(position: int, value: float) -> tuple[float, float]:
        share = 0.5 if span == 0 else (value - bottom) / span
        return round(_MARGIN + position * step, 1), round(height - _MARGIN - share * (height - 2 * _MARGIN), 1)

    stretches: list[list[tuple[float, float]]] = [[]]
    breaks: list[float] = []
    for position, value in enumerate(scaled):
        if value is None:
            breaks.append(round(_MARGIN + position * step, 1))
            stretches.append([])
        else:
            stretches[-1].append(point(position, value))
    long = [stretch for stretch in stretches if len(stretch) > 1]
    newest = scaled[-1]
    scale = ", logarithmic" if is_logarithmic else ""
    return Sparkline(
        width=width,
        height=height,
        lines=tuple(_points(stretch) for stretch in long),
        areas=tuple(_points([(s[0][0], float(height)), *s, (s[-1][0], float(height))]) for s in long),
        dots=tuple(stretch[0] for stretch in stretches if len(stretch) == 1),
        last=None if newest is None else point(len(scaled) - 1, newest),
        breaks=tuple(breaks),
        is_logarithmic=is_logarithmic,
        description=f"{len(finite)} checkpoints, from {low:.4g} to {high:.4g}{scale}",
    )


def place(position: int, n_values: int, width: int) -> float:
    """Return the x of the number at `position` in a chart of `n_values` (at least 2) numbers."""
    return round(_MARGIN + position * (width - 2 * _MARGIN) / (n_values - 1), 1)


def _scaled(value: float | None, is_logarithmic: bool) -> float | None:
    """Return the height of a number before it is fitted; halves, so that no difference overflows."""
    if value is None or not math.isfinite(value):
        return None
    return math.log(value) if is_logarithmic else value / 2


def _points(stretch: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{x:g},{y:g}" for x, y in stretch)
