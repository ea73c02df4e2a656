"""What the run's page draws: timelines and maps of layers, as plain display values; pure."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from monitor.show.views import Course, RunView
from monitor.show.web import formatting
from monitor.show.web.addresses import tensor_url
from monitor.show.web.heatmap import Heatmap, change_map, columns, norm_map
from monitor.show.web.timeline import Mark, Timeline, marks, timeline
from storage.records import Alert, StoredSnapshot

TIMELINE_SNAPSHOTS_MAX = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    """A timeline as shown."""

    label: str
    newest: str
    first: str
    last: str
    line: Timeline


@dataclass(frozen=True, slots=True, kw_only=True)
class Strip:
    """One layer of a map as shown."""

    layer: str
    url: str
    title: str
    paths: tuple[tuple[str, str], ...]
    first_bad: int | None
    description: str
    newest: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Map:
    """A map of layers as shown; `bad` says where it went wrong first, "" where it did not."""

    title: str
    strips: tuple[Strip, ...]
    n_columns: int
    first: str
    last: str
    bad: str
    bad_tensor: str
    bad_url: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RunCourse:
    """The drawn part of a run's page; `resume` is a command for a shell, "" without a good checkpoint."""

    resume: str
    charts: tuple[Chart, ...]
    marks: tuple[Mark, ...]
    maps: tuple[Map, ...]


def wanted_snapshots(snapshots: Sequence[StoredSnapshot]) -> tuple[int, ...]:
    """Return the numbers of the snapshots whose course the page needs, oldest first."""
    return tuple(snapshot.id for snapshot in columns(snapshots))


def run_course(
    view: RunView, snapshots: Sequence[StoredSnapshot], alerts: Sequence[Alert], course: Course, *, linked: bool = True
) -> RunCourse:
    """Return what is drawn of a run; charts and maps are left out where there is nothing to see.

    Without `linked` every address is "", for a file that is read where no server answers.
    """
    run = view.run.run
    shown = snapshots[-TIMELINE_SNAPSHOTS_MAX:]
    drawn = marks(shown, alerts) if len(shown) > 1 else ()
    lines = (
        timeline("weight norm", shown, lambda s: s.weight_norm, drawn),
        timeline("update ratio", shown, lambda s: s.update_ratio, drawn),
        timeline("gradient norm", shown, lambda s: None if s.gradient is None else s.gradient.norm, drawn),
        timeline("logged loss", shown, lambda s: course.losses.get(s.id), drawn),
    )
    mapped = columns(snapshots)
    maps = (
        ("Layers by norm", norm_map(course.points, mapped)),
        ("Layers by change since the checkpoint before", change_map(course.points, mapped)),
    )
    return RunCourse(
        resume=""
        if view.last_good is None
        else f'python train.py --resume "$(ckptwatch last-good {shlex.quote(run)})"',
        charts=tuple(chart_of(line) for line in lines if line is not None),
        marks=drawn,
        maps=tuple(_map(run, title, found, linked=linked) for title, found in maps if found is not None),
    )


def chart_of(line: Timeline) -> Chart:
    """Return a timeline as shown."""
    return Chart(
        label=line.label,
        newest=formatting.number(line.newest),
        first="" if line.first is None else f"step {formatting.integer(line.first)}",
        last="" if line.last is None else f"step {formatting.integer(line.last)}",
        line=line,
    )


def _map(run: str, title: str, found: Heatmap, *, linked: bool) -> Map:
    bad = found.bad_tensor
    return Map(
        title=title,
        strips=tuple(
            Strip(
                layer=row.layer,
                url=tensor_url(run, row.tensor) if linked else "",
                title=f"{row.n_tensors} tensor{'' if row.n_tensors == 1 else 's'}, see {row.tensor}",
                paths=row.paths,
                first_bad=row.first_bad,
                description=row.description,
                newest=formatting.number(row.newest),
            )
            for row in found.rows
            if row.paths
        ),
        n_columns=found.n_columns,
        first="" if found.first_step is None else f"step {formatting.integer(found.first_step)}",
        last="" if found.last_step is None else f"step {formatting.integer(found.last_step)}",
        bad=""
        if bad is None
        else "first not finite" + ("" if found.bad_step is None else f" at step {found.bad_step}"),
        bad_tensor=bad or "",
        bad_url="" if bad is None or not linked else tensor_url(run, bad),
    )
