"""The distribution of one tensor over checkpoints: quantile bands and a ridgeline; pure geometry for SVG."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from monitor.show.views import TensorMoment

RIDGES_MAX = 24
RIDGE_CELLS = 96
RIDGE_HEIGHT = 34.0
_MARGIN = 3.0
_STRETCH_RATIO_MIN = 8.0
_PAIRS = (("0.01", "0.99"), ("0.05", "0.95"), ("0.25", "0.75"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Bands:
    """Bands between two quantiles, the widest first, as (words, polygon points), and the median as polylines."""

    width: int
    height: int
    bands: tuple[tuple[str, str], ...]
    medians: tuple[str, ...]
    zero: float | None
    low: float
    high: float
    first_step: int | None
    last_step: int | None
    is_stretched: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Ridge:
    """One checkpoint's histogram: `area` is the closed outline in RIDGE_CELLS by RIDGE_HEIGHT units."""

    step: int | None
    area: str
    is_bad: bool
    description: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Ridgeline:
    """Ridges, oldest first, all on the values from `low` to `high`; what lies outside is not drawn.

    `is_stretched`: the axis is asinh(value / usual width), since some ridges are far wider than others.
    """

    ridges: tuple[Ridge, ...]
    low: float
    high: float
    is_stretched: bool


def quantile_bands(moments: Sequence[TensorMoment], *, width: int = 720, height: int = 160) -> Bands | None:
    """Return the bands of the moments that have quantiles, evenly spaced; None for fewer than two of them."""
    drawn = [moment for moment in moments if moment.tensor.quantiles]
    if len(drawn) < 2:
        return None
    width_usual = _usual_width([tuple(moment.tensor.quantiles.values()) for moment in drawn])
    known = [
        {key: _stretched(value, width_usual) for key, value in moment.tensor.quantiles.items()} for moment in drawn
    ]
    real = [value for moment in drawn for value in moment.tensor.quantiles.values()]
    values = [value for quantiles in known for value in quantiles.values()]
    low, high = min(values), max(values)
    step = (width - 2 * _MARGIN) / (len(known) - 1)

    def line(key: str) -> list[str]:
        return [
            f"{_MARGIN + place * step:.1f},{_height(quantiles[key], low, high, height):.1f}"
            for place, quantiles in enumerate(known)
        ]

    bands = tuple(
        (f"{lower} to {upper}", " ".join([*line(upper), *reversed(line(lower))]))
        for lower, upper in _PAIRS
        if all(lower in quantiles and upper in quantiles for quantiles in known)
    )
    has_median = all("0.5" in quantiles for quantiles in known)
    return Bands(
        width=width,
        height=height,
        bands=bands,
        medians=(" ".join(line("0.5")),) if has_median else (),
        zero=round(_height(0.0, low, high, height), 1) if low < 0 < high else None,
        low=min(real),
        high=max(real),
        first_step=drawn[0].snapshot.step,
        last_step=drawn[-1].snapshot.step,
        is_stretched=width_usual is not None,
    )


def ridgeline(moments: Sequence[TensorMoment]) -> Ridgeline | None:
    """Return at most RIDGES_MAX evenly chosen histograms, the newest among them; None where there is none."""
    drawable = [moment for moment in moments if moment.bins]
    chosen = _spread(drawable, RIDGES_MAX)
    cores = [_core(moment.bins) for moment in chosen]
    if not cores:
        return None
    usual = _usual_width(cores)
    real_low, real_high = min(low for low, _ in cores), max(high for _, high in cores)
    low, high = _stretched(real_low, usual), _stretched(real_high, usual)
    if not math.isfinite(high - low):  # near the largest double
        return None
    if not math.isfinite(RIDGE_CELLS / (high - low) if high > low else math.inf):  # one value, or all but one
        low, high = low - (abs(low) or 1.0) / 2, high + (abs(high) or 1.0) / 2
    if not math.isfinite(RIDGE_CELLS / (high - low)):  # below the smallest normal double
        low, high = low - 0.5, high + 0.5
    return Ridgeline(
        ridges=tuple(
            Ridge(
                step=moment.snapshot.step,
                area=_outline(
                    _spread_counts(
                        [(_stretched(a, usual), _stretched(b, usual), n) for a, b, n in moment.bins], low, high
                    )
                ),
                is_bad=moment.tensor.n_nonfinite > 0,
                description=_words(moment),
            )
            for moment in chosen
        ),
        low=real_low,
        high=real_high,
        is_stretched=usual is not None,
    )


def _usual_width(spans: Sequence[Sequence[float]]) -> float | None:
    """Return the median of the largest magnitudes where the highest is _STRETCH_RATIO_MIN times it, else None."""
    reach = [max(abs(value) for value in span) for span in spans]
    usual = median(reach)
    return usual if usual > 0 and max(reach) / usual > _STRETCH_RATIO_MIN else None


def _stretched(value: float, width: float | None) -> float:
    return value if width is None else math.asinh(value / width)


def _words(moment: TensorMoment) -> str:
    bad = moment.tensor.n_nonfinite
    low, high = _core(moment.bins)
    return f"99 of 100 elements from {low:.3g} to {high:.3g}" + (f", {bad} not finite" if bad else "")


def _height(value: float, low: float, high: float, height: int) -> float:
    span = high / 2 - low / 2  # halves, so that no difference overflows
    share = 0.5 if span == 0 else (value / 2 - low / 2) / span
    return height - _MARGIN - share * (height - 2 * _MARGIN)


def _spread(moments: Sequence[TensorMoment], n_max: int) -> list[TensorMoment]:
    if len(moments) <= n_max:
        return list(moments)
    return [moments[round(place * (len(moments) - 1) / (n_max - 1))] for place in range(n_max)]


def _core(bins: Sequence[tuple[float, float, int]]) -> tuple[float, float]:
    """Return between which values all but half a per cent of the elements on each side lie, to one bin."""
    cut = 0.005 * sum(count for _, _, count in bins)
    return _edge(bins, cut, 0), _edge(tuple(reversed(bins)), cut, 1)


def _edge(bins: Sequence[tuple[float, float, int]], cut: float, side: int) -> float:
    seen = 0
    for bin_ in bins:
        seen += bin_[2]
        if seen > cut:
            break
    return bin_[side]


def _spread_counts(bins: Sequence[tuple[float, float, int]], low: float, high: float) -> list[float]:
    """Return the counts over RIDGE_CELLS equal cells; a bin that spans several cells is shared out by width."""
    cells = [0.0] * RIDGE_CELLS
    scale = RIDGE_CELLS / (high - low)
    for lower, upper, count in bins:
        start, end = (lower - low) * scale, (upper - low) * scale
        if end < 0 or start > RIDGE_CELLS:
            continue
        width = end - start
        for cell in range(max(0, int(start)), min(RIDGE_CELLS - 1, int(end)) + 1):
            share = 1.0 if width <= 0 else (min(end, cell + 1) - max(start, cell)) / width
            cells[cell] += count * max(0.0, share)
    return cells


def _outline(cells: Sequence[float]) -> str:
    """Return the outline of the square roots of the cells, so that a peak of zeros does not flatten the rest."""
    heights = [math.sqrt(cell) for cell in cells]
    highest = max(heights) or 1.0
    points = (f"{x + 0.5:g},{RIDGE_HEIGHT * (1 - value / highest):.1f}" for x, value in enumerate(heights))
    return f"0,{RIDGE_HEIGHT:g} {' '.join(points)} {RIDGE_CELLS},{RIDGE_HEIGHT:g}"
