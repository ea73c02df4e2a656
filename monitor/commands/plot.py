"""`ckptwatch plot`: pictures of a run, or of one checkpoint."""

from __future__ import annotations

import os
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from monitor import pictures
from monitor.commands.console import CommandError, ConfigOption, DatabaseOption, ExitCode
from monitor.commands.environment import existing_database
from monitor.commands.measuring import checkpoint_at, measure_files
from monitor.commands.picture_file import check_output, save
from monitor.files import Order
from monitor.show.views import AlertQuery
from monitor.stored_views import StoredViews
from storage.records import Problem

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SNAPSHOTS_MAX = 400
HEATMAP_SNAPSHOTS_MAX = 120
MAP_SNAPSHOTS_MAX = 120


class Kind(StrEnum):
    """What to draw of a run."""

    TIMELINE = "timeline"
    HEATMAP = "heatmap"
    RIDGELINE = "ridgeline"
    MAP = "map"


def plot(
    subject: Annotated[str, typer.Argument(metavar="RUN|PATH", help="A run's name, or a checkpoint: its histograms.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The picture to write: .png, .svg or .pdf.")],
    kind: Annotated[Kind, typer.Option(help="What to draw of a run.")] = Kind.TIMELINE,
    tensor: Annotated[str | None, typer.Option(metavar="NAME", help="The tensor of a ridgeline.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the file when it is there already.")] = False,
    config: ConfigOption = None,
    db: DatabaseOption = None,
) -> None:
    """Draw a run from the database, or the distributions in one checkpoint, as a picture.

    Example: ckptwatch plot llama/seed1 --kind map -o map.png
    """
    check_output(output, force=force)
    try:
        figure = _of_path(subject) if os.path.lexists(subject) else _of_run(subject, kind, tensor, config, db)
    except pictures.NothingToDrawError as error:
        raise CommandError(f"{subject}: {error}", ExitCode.BAD_NEWS) from error
    save(figure, output)


def _of_path(path: str) -> Figure:
    checkpoint = checkpoint_at(path)
    (found,) = measure_files([Order(path=checkpoint)])
    if isinstance(found, Problem):
        raise CommandError(f"{path}: {found.kind}: {found.message}", ExitCode.UNREADABLE)
    return pictures.histograms(os.path.basename(checkpoint), found)


def _of_run(run: str, kind: Kind, tensor: str | None, config: Path | None, db: str | None) -> Figure:
    if (kind is Kind.RIDGELINE) != (tensor is not None):
        raise CommandError("a ridgeline needs --tensor NAME, and nothing else takes it", ExitCode.USAGE)
    with existing_database(config, db) as database:
        views = StoredViews(database)
        snapshots = views.history(run, SNAPSHOTS_MAX)
        if snapshots is None:
            raise CommandError(f"there is no run or file {run!r}; `ckptwatch runs` lists the runs", ExitCode.USAGE)
        if tensor is not None:
            moments = views.tensor(run, tensor, SNAPSHOTS_MAX)
            if not moments:
                raise CommandError(f"there is no tensor {tensor!r} in {run}", ExitCode.USAGE)
            return pictures.ridgeline(run, moments)
        if kind is Kind.MAP:
            found = views.sources().closer.drift_map(run, MAP_SNAPSHOTS_MAX)
            if found is None:
                raise CommandError(f"there is no run {run!r}", ExitCode.USAGE)
            return pictures.drift_map(run, found)
        measured = [s for s in snapshots if s.n_tensors]
        if kind is Kind.HEATMAP:
            shown = measured[-HEATMAP_SNAPSHOTS_MAX:]
            return pictures.heatmap(run, shown, views.course([s.id for s in shown]))
        course = views.course([s.id for s in measured])
        return pictures.timeline(run, measured, course, views.alerts(AlertQuery(run=run)))
