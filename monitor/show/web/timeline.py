"""One number of a run over its checkpoints, with alerts and restarts marked; pure geometry for SVG."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from monitor.show.web.sparkline import Sparkline, place, sparkline
from storage.records import Alert, StoredSnapshot

WIDTH = 480
HEIGHT = 96


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """A vertical line at `x`; `tone` is restart or the severity's name, `text` says what happened."""

    x: float
    tone: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeline:
    """A chart over the snapshots from `first` to `last` (their steps, None where unknown).

    `newest` is None where the last snapshot has no such number, whatever earlier ones had.
    """

    label: str
    newest: float | None
    chart: Sparkline
    marks: tuple[Mark, ...]
    first: int | None
    last: int | None


def marks(snapshots: Sequence[StoredSnapshot], alerts: Sequence[Alert], width: int = WIDTH) -> tuple[Mark, ...]:
    """Return restarts and the alerts whose step one of the snapshots has; several of one place become one mark."""
    found: dict[tuple[int, str], list[str]] = {}
    places = {snapshot.step: number for number, snapshot in enumerate(snapshots) if snapshot.step is not None}
    for number, (before, after) in enumerate(pairwise(snapshots), start=1):
        if after.attempt != before.attempt:
            found.setdefault((number, "restart"), []).append(f"restart, attempt {after.attempt}")
    for alert in alerts:
        number = places.get(alert.step, -1) if alert.step is not None else -1
        if number >= 0:
            texts = found.setdefault((number, alert.severity.label), [])
            if alert.rule not in texts:
                texts.append(alert.rule)
    return tuple(
        Mark(
            x=place(number, len(snapshots), width), tone=tone, text=f"step {snapshots[number].step}: {', '.join(texts)}"
        )
        for (number, tone), texts in sorted(found.items())
    )


def timeline(
    label: str,
    snapshots: Sequence[StoredSnapshot],
    value_of: Callable[[StoredSnapshot], float | None],
    drawn: tuple[Mark, ...] = (),
) -> Timeline | None:
    """Return the chart of one number, oldest first; None where fewer than two snapshots have it."""
    values = [value_of(snapshot) for snapshot in snapshots]
    chart = sparkline(values, width=WIDTH, height=HEIGHT)
    if chart is None:
        return None
    return Timeline(
        label=label,
        newest=values[-1],
        chart=chart,
        marks=drawn,
        first=snapshots[0].step,
        last=snapshots[-1].step,
    )
