"""`ckptwatch history`: the snapshots of one run, their path, and how far each lies from a reference."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Annotated

import typer

from monitor.commands.console import (
    CommandError,
    ConfigOption,
    DatabaseOption,
    ExitCode,
    JsonOption,
    age,
    bars,
    console,
    number,
    print_json,
    size,
    table,
)
from monitor.commands.environment import existing_database
from monitor.show.documents import history_document
from monitor.show.views import DriftQuery, Journey, QuestionError, ReferenceDrift, WayPoint
from monitor.stored_views import StoredViews
from storage.records import StoredSnapshot

COURSE_BARS_MAX = 60


def history(
    run: Annotated[str, typer.Argument(help="The run's name, as `ckptwatch runs` prints it.")],
    limit: Annotated[int, typer.Option(min=1, max=100_000, help="How many of the latest snapshots.")] = 1000,
    against: Annotated[
        str | None,
        typer.Option(
            metavar="STEP|first|previous|best",
            help="Also show how far each snapshot lies from this one, whether or not its file is still there. best: "
            "the lowest logged validation loss, else training loss, else the last good one.",
        ),
    ] = None,
    tensor: Annotated[
        str | None,
        typer.Option(
            metavar="GLOB", help="Drift of the tensors of this name alone, of any kind; without --against the previous."
        ),
    ] = None,
    config: ConfigOption = None,
    db: DatabaseOption = None,
    json: JsonOption = False,
) -> None:
    """Show a run's snapshots, oldest first: step, norm, change, gradient, non-finite elements.

    Example: ckptwatch history llama/seed1 --against first --tensor '*.attn.*'
    """
    query = None
    if against is not None or tensor is not None:
        query = DriftQuery(against=against or "previous", tensors=tensor)
    with existing_database(config, db) as database:
        try:
            journey = StoredViews(database).journey(run, limit, query)
        except QuestionError as error:
            raise CommandError(str(error), ExitCode.USAGE) from error
    if journey is None:
        raise CommandError(f"there is no run {run!r}; `ckptwatch runs` lists them", ExitCode.USAGE)
    if json:
        print_json(history_document(run, journey, with_drift=query is not None))
        return
    _print_snapshots(run, journey, query)
    _print_course(journey)


def _print_snapshots(run: str, journey: Journey, query: DriftQuery | None) -> None:
    now = time.time()
    columns = [("step", "right"), ("written", "right"), ("size", "right"), ("weight norm", "right")]
    columns += [("update ratio", "right"), ("gradient", "right"), ("non-finite", "right")]
    columns += [("drift", "right"), ("cosine", "right"), ("from step", "right")] if query is not None else []
    rows = [
        [
            _step(s.step),
            f"{age(now - s.written_at)} ago",
            size(s.size_bytes),
            number(s.weight_norm),
            number(s.update_ratio, 3),
            number(s.gradient.norm if s.gradient else None),
            str(s.n_nonfinite),
            *([] if query is None else _drift_cells(journey.drifts.get(s.id))),
            _note(s, journey.drifts.get(s.id)),
        ]
        for s in journey.snapshots
    ]
    title = f"{run}: {len(rows)} snapshots"
    if query is not None:
        title += f", drift of {query.tensors or 'all parameters'} from {_from(query.against)}"
        if any(drift.method == "sketch" and drift.relative_l2 is not None for drift in journey.drifts.values()):
            title += " (~ estimated from sketches)"
    console().print(table(title, [*columns, ("", "left")], rows))


def _from(against: str) -> str:
    return {"first": "the first", "previous": "the one before", "best": "the best"}.get(against, f"step {against}")


def _drift_cells(drift: ReferenceDrift | None) -> list[str]:
    if drift is None:
        return ["–", "–", "–"]
    mark = "~" if drift.method == "sketch" and drift.relative_l2 is not None else ""
    return [f"{mark}{number(drift.relative_l2, 3)}", number(drift.cosine, 6), _step(drift.reference_step)]


def _note(snapshot: StoredSnapshot, drift: ReferenceDrift | None) -> str:
    if snapshot.problem is not None:
        return f"{snapshot.problem.kind}: {snapshot.problem.message}"
    return snapshot.first_bad_tensor or ("" if drift is None else drift.reason)


def _step(step: int | None) -> str:
    return "–" if step is None else str(step)


def _print_course(journey: Journey) -> None:
    snapshots = journey.snapshots
    points = [journey.points.get(s.id, WayPoint()) for s in snapshots]
    courses: tuple[tuple[str, Sequence[float | None]], ...] = (
        ("weight norm", [s.weight_norm for s in snapshots]),
        ("update ratio", [s.update_ratio for s in snapshots]),
        ("gradient", [s.gradient.norm if s.gradient else None for s in snapshots]),
        ("update cosine", [point.update_cosine for point in points]),
        ("from the first", [point.displacement for point in points]),
        ("drift", [d.relative_l2 if (d := journey.drifts.get(s.id)) else None for s in snapshots]),
    )
    drawn = [[name, line] for name, values in courses if (line := bars(values, COURSE_BARS_MAX))]
    if drawn:
        console().print(table(None, [("", "left"), ("oldest to newest", "left")], drawn))
    last = next((point for point in reversed(points) if point.path_length), None)
    if last is not None and last.path_length and last.displacement is not None:
        straight = min(last.displacement / last.path_length, 1.0)
        console().print(
            f"path since the first snapshot of this attempt: {number(last.path_length)} long, "
            f"{number(last.displacement)} as the crow flies ({straight:.0%})"
        )
