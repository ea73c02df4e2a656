"""`ckptwatch diff`: two checkpoints, tensor by tensor."""

from __future__ import annotations

import os
from typing import Annotated, Any

import typer

from monitor.commands.console import CommandError, ExitCode, JsonOption, console, number, print_json, table
from monitor.commands.measuring import Order, measure_files
from monitor.measure.measured import Measured
from storage.records import Problem, TensorDrift, TensorKind, TensorSummary


def diff(
    a: Annotated[str, typer.Argument(help="The checkpoint to compare with (older).")],
    b: Annotated[str, typer.Argument(help="The checkpoint to compare (newer).")],
    fail_over: Annotated[
        float | None,
        typer.Option(metavar="RATIO", min=0, help="Exit 1 only when a parameter or buffer changed by more."),
    ] = None,
    all_tensors: Annotated[bool, typer.Option("--all", help="Show equal tensors as well.")] = False,
    json: JsonOption = False,
) -> None:
    """Compare two checkpoints; exit 1 when they differ.

    With `--fail-over` exit 1 only when tensors of the model were added, removed, reshaped, or changed by more than this
    relative L2 distance; the optimizer's own tensors, which change at every step, are shown and not judged.

    Example: ckptwatch diff ckpt-100.pt ckpt-200.pt --fail-over 0.1
    """
    paths = [os.path.abspath(path) for path in (a, b)]
    old, new = measure_files([Order(path=paths[0]), Order(path=paths[1], reference_path=paths[0])])
    for path, found in ((a, old), (b, new)):
        if isinstance(found, Problem):
            raise CommandError(f"{path}: {found.kind}: {found.message}", ExitCode.UNREADABLE)
    assert isinstance(old, Measured)
    assert isinstance(new, Measured)
    document = compare(old, new)
    if json:
        print_json(document)
    else:
        _print_table(document, all_tensors=all_tensors)
    if not _is_accepted(document, fail_over):
        raise typer.Exit(ExitCode.BAD_NEWS)


def compare(old: Measured, new: Measured) -> dict[str, Any]:
    """Return the JSON document of `diff --json`; `new` was measured with `old` as its reference."""
    drifts = {drift.name: drift for drift in new.exact_drifts}
    before = {tensor.name: tensor for tensor in old.tensors}
    rows = [_row(tensor, before.get(tensor.name), drifts.get(tensor.name)) for tensor in new.tensors]
    after = {tensor.name for tensor in new.tensors}
    rows += [_entry(None, tensor, "removed") for name, tensor in before.items() if name not in after]
    return {"identical": all(row["relation"] == "same" for row in rows), "tensors": rows}


def _row(new: TensorSummary, old: TensorSummary | None, drift: TensorDrift | None) -> dict[str, Any]:
    if old is None:
        return _entry(new, None, "added")
    if old.shape != new.shape:
        return _entry(new, old, "reshaped")
    if drift is None:
        return _entry(new, old, "changed")
    same = drift.n_changed == 0 and old.dtype == new.dtype
    entry = _entry(new, old, "same" if same else "changed")
    return entry | {
        "relative_l2": drift.relative_l2 if drift.n_changed else 0.0,
        "cosine_distance": drift.cosine_distance if drift.n_changed else 0.0,
        "max_abs_difference": drift.max_abs_difference,
        "n_changed": drift.n_changed,
    }


def _entry(new: TensorSummary | None, old: TensorSummary | None, relation: str) -> dict[str, Any]:
    either = new or old
    assert either is not None
    return {
        "name": new.name if new else None,
        "other_name": old.name if old else None,
        "kind": either.kind.value,
        "relation": relation,
        "relative_l2": None,
        "cosine_distance": None,
        "max_abs_difference": None,
        "n_changed": None,
    }


def _is_accepted(document: dict[str, Any], fail_over: float | None) -> bool:
    if fail_over is None:
        return bool(document["identical"])
    for row in document["tensors"]:
        if row["kind"] == TensorKind.OPTIMIZER:
            continue
        if row["relation"] in {"added", "removed", "reshaped"}:
            return False
        # A change without a number (from zero, or with a NaN) is over every limit.
        if row["relation"] == "changed" and (row["relative_l2"] is None or row["relative_l2"] > fail_over):
            return False
    return True


def _print_table(document: dict[str, Any], *, all_tensors: bool) -> None:
    rows = [row for row in document["tensors"] if all_tensors or row["relation"] != "same"]
    n_same = sum(row["relation"] == "same" for row in document["tensors"])
    columns = [("tensor", "left"), ("relation", "left"), ("relative L2", "right"), ("cosine distance", "right")]
    columns += [("largest difference", "right"), ("elements changed", "right")]
    cells = [
        [
            row["name"] or row["other_name"],
            row["relation"],
            number(row["relative_l2"]),
            number(row["cosine_distance"]),
            number(row["max_abs_difference"]),
            "–" if row["n_changed"] is None else f"{row['n_changed']:,}",
        ]
        for row in sorted(rows, key=lambda row: -(row["relative_l2"] or 0.0))
    ]
    out = console()
    if cells:
        out.print(table(None, columns, cells))
    out.print(f"{n_same} of {len(document['tensors'])} tensors are equal bit by bit")
