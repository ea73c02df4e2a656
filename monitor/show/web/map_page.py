"""A run from above as display values: every snapshot against every other, and the way on a plane; pure geometry."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from monitor.show.closer_views import DriftMap
from monitor.show.web import formatting
from monitor.show.web.addresses import run_url
from storage.records import StoredSnapshot

SNAPSHOTS_MAX = 60
LEVELS = 6  # shades of distance; the first is for none at all
WIDTH, HEIGHT = 720.0, 420.0
_MARGIN = 26.0
_LABELS_MAX = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Dot:
    """One snapshot on the plane; `label` is "" where there is no room for one."""

    x: float
    y: float
    tone: str
    label: str
    title: str


@dataclass(frozen=True, slots=True, kw_only=True)
class MapPage:
    """The page as shown: `paths` are (shade, path data) in cells of 1 by 1, rows and columns oldest first."""

    run: str
    run_url: str
    n: int
    paths: tuple[tuple[str, str], ...]
    largest: str
    first: str
    last: str
    ways: tuple[str, ...]
    dots: tuple[Dot, ...]
    share: str
    note: str
    findings: tuple[str, ...]


def map_page(run: str, found: DriftMap) -> MapPage:
    """Return the page; with fewer than two snapshots there is nothing to draw and `n` says so."""
    snapshots = found.snapshots
    largest = max((value for row in found.relative for value in row if math.isfinite(value)), default=0.0)
    places = _fitted(found.points)
    return MapPage(
        run=run,
        run_url=run_url(run),
        n=len(snapshots),
        paths=_cells(found.relative, largest),
        largest=formatting.number(largest),
        first=_step(snapshots[0]) if snapshots else "",
        last=_step(snapshots[-1]) if snapshots else "",
        ways=_ways(snapshots, places),
        dots=_dots(snapshots, places),
        share=f"{100 * found.share:.0f}%",
        note=f"{found.n_left_out} snapshots are left out: not all finite, of other parameters, or for lack of room"
        if found.n_left_out
        else "",
        findings=_findings(snapshots, found.relative),
    )


def _cells(relative: Sequence[Sequence[float]], largest: float) -> tuple[tuple[str, str], ...]:
    """Join neighbours of one shade, so that the map of a long run stays small."""
    paths: dict[str, list[str]] = {}
    for y, row in enumerate(relative):
        shades = [_shade(value, largest) for value in row]
        start = 0
        for x in range(1, len(shades) + 1):
            if x == len(shades) or shades[x] != shades[start]:
                paths.setdefault(shades[start], []).append(f"M{start} {y}h{x - start}v1h-{x - start}z")
                start = x
    return tuple((shade, "".join(parts)) for shade, parts in sorted(paths.items()))


def _shade(value: float, largest: float) -> str:
    if not math.isfinite(value):
        return "bad"
    if value <= 0 or largest <= 0:
        return "far0"
    return f"far{min(LEVELS - 1, 1 + int((LEVELS - 1) * value / largest))}"


def _fitted(points: Sequence[tuple[float, float]]) -> tuple[tuple[float, float], ...]:
    """Fit points into the picture, both directions on one scale, since distances are what is seen."""
    if not points:
        return ()
    xs, ys = [x for x, _ in points], [y for _, y in points]
    wide, high = max(xs) - min(xs), max(ys) - min(ys)
    rooms = ((WIDTH, wide), (HEIGHT, high))
    scale = min(((room - 2 * _MARGIN) / used for room, used in rooms if used > 0), default=0.0)
    if not math.isfinite(scale * max(wide, high)):  # nearly no movement, or nearly all there is
        scale = 0.0
    left, top = (WIDTH - scale * wide) / 2, (HEIGHT - scale * high) / 2
    return tuple(
        (round(left + scale * (x - min(xs)), 1), round(HEIGHT - top - scale * (y - min(ys)), 1)) for x, y in points
    )


def _ways(snapshots: Sequence[StoredSnapshot], places: Sequence[tuple[float, float]]) -> tuple[str, ...]:
    """Return one polyline an attempt."""
    ways: dict[int, list[str]] = {}
    for snapshot, (x, y) in zip(snapshots, places, strict=True):
        ways.setdefault(snapshot.attempt, []).append(f"{x:g},{y:g}")
    return tuple(" ".join(points) for points in ways.values() if len(points) > 1)


def _dots(snapshots: Sequence[StoredSnapshot], places: Sequence[tuple[float, float]]) -> tuple[Dot, ...]:
    every = max(1, math.ceil(len(snapshots) / _LABELS_MAX))
    last = len(snapshots) - 1
    return tuple(
        Dot(
            x=x,
            y=y,
            tone="first" if place == 0 else "last" if place == last else "",
            label=_step(snapshot) if place in {0, last} or (place % every == 0 and last - place >= every) else "",
            title=_step(snapshot) + (f", attempt {snapshot.attempt}" if snapshot.attempt > 1 else ""),
        )
        for place, (snapshot, (x, y)) in enumerate(zip(snapshots, places, strict=True))
    )


def _findings(snapshots: Sequence[StoredSnapshot], relative: Sequence[Sequence[float]]) -> tuple[str, ...]:
    """Say in words what the map shows: the largest step, and a return to an earlier place."""
    steps = [relative[i][i - 1] for i in range(1, len(snapshots))]
    if len(steps) < 2:
        return ()
    at = max(range(len(steps)), key=steps.__getitem__)
    found = [f"The largest step is to {_step(snapshots[at + 1])}: {formatting.number(steps[at])} of its norm."]
    back = _return(relative, steps)
    if back is not None:
        here, there = back
        found.append(
            f"{_step(snapshots[here])} lies nearer to {_step(snapshots[there])} than to the snapshot before it: "
            "a return to earlier weights."
        )
    return tuple(found)


def _return(relative: Sequence[Sequence[float]], steps: Sequence[float]) -> tuple[int, int] | None:
    """Return the first snapshot that lies less than half its step away from one at least two before, with that one."""
    for here in range(2, len(relative)):
        there = min(range(here - 1), key=relative[here].__getitem__)
        if relative[here][there] < 0.5 * steps[here - 1]:
            return here, there
    return None


def _step(snapshot: StoredSnapshot) -> str:
    return snapshot.path.rpartition("/")[2] if snapshot.step is None else f"step {formatting.integer(snapshot.step)}"
