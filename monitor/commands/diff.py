"""`ckptwatch diff`: two checkpoints, tensor by tensor, also of two frameworks."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from monitor.commands.console import ExitCode, JsonOption, console, number, print_json, table
from monitor.commands.measuring import checkpoint_at, compare_files
from monitor.measure.comparison import Comparison, Relation, TensorComparison
from storage.records import TensorKind


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

    The two may come from different frameworks: tensors are matched by what their names and numbers have in common, and
    count as the same when they are equal with their axes in the other framework's order (column "layout").

    With `--fail-over` exit 1 only when tensors of the model were added, removed, reshaped, or changed by more than this
    relative L2 distance; the optimizer's own tensors, which change at every step, are shown and not judged.

    Example: ckptwatch diff ckpt-100.pt ckpt-200.pt --fail-over 0.1
    """
    comparison = compare_files(checkpoint_at(a), checkpoint_at(b))
    if json:
        print_json(document(comparison))
    else:
        _print_table(comparison, all_tensors=all_tensors)
    if not _is_accepted(comparison, fail_over):
        raise typer.Exit(ExitCode.BAD_NEWS)


def document(comparison: Comparison) -> dict[str, Any]:
    """Return the JSON document of `diff --json`."""
    return {"identical": comparison.identical, "tensors": [_row(tensor) for tensor in comparison.tensors]}


def _row(tensor: TensorComparison) -> dict[str, Any]:
    return {
        "name": tensor.name,
        "other_name": tensor.other_name,
        "kind": tensor.kind.value,
        "relation": tensor.relation.value,
        "relative_l2": tensor.relative_l2,
        "cosine_distance": tensor.cosine_distance,
        "max_abs_difference": tensor.max_abs_difference,
        "n_changed": tensor.n_changed,
        "layout": tensor.layout,
        "matched_by": tensor.matched_by.value if tensor.matched_by else None,
        "judged": tensor.is_judged,
        "note": tensor.note,
    }


def _is_accepted(comparison: Comparison, fail_over: float | None) -> bool:
    if fail_over is None:
        return comparison.identical
    for tensor in comparison.tensors:
        if tensor.kind is TensorKind.OPTIMIZER or not tensor.is_judged:
            continue
        if tensor.relation in {Relation.ADDED, Relation.REMOVED, Relation.RESHAPED}:
            return False
        # A change without a number (from zero, or with a NaN) is over every limit.
        if tensor.relation is Relation.CHANGED and (tensor.relative_l2 is None or tensor.relative_l2 > fail_over):
            return False
    return True


def _print_table(comparison: Comparison, *, all_tensors: bool) -> None:
    shown = [t for t in comparison.tensors if all_tensors or (t.relation is not Relation.SAME and t.is_judged)]
    n_judged = sum(t.is_judged for t in comparison.tensors)
    n_same = sum(t.relation is Relation.SAME for t in comparison.tensors)
    n_moved = sum(t.relation is Relation.SAME and t.layout is not None for t in comparison.tensors)
    columns = [("tensor", "left"), ("relation", "left"), ("relative L2", "right"), ("cosine distance", "right")]
    columns += [("largest difference", "right"), ("elements changed", "right")]
    has_layout = any(t.layout is not None for t in shown)
    if has_layout:
        columns.append(("layout", "left"))
    cells = [
        [
            _names(tensor),
            tensor.relation.value if tensor.is_judged else f"{tensor.relation.value} (not counted)",
            number(tensor.relative_l2),
            number(tensor.cosine_distance),
            number(tensor.max_abs_difference),
            "–" if tensor.n_changed is None else f"{tensor.n_changed:,}",
            *([tensor.layout or ""] if has_layout else []),
        ]
        for tensor in sorted(shown, key=lambda tensor: -(tensor.relative_l2 or 0.0))
    ]
    out = console()
    if cells:
        out.print(table(None, columns, cells))
    for tensor in shown:
        if tensor.note is not None:
            out.print(f"{tensor.name}: {tensor.note}", markup=False)
    moved = f", {n_moved} of them with their axes in another order" if n_moved else ""
    out.print(f"{n_same} of {n_judged} tensors are equal bit by bit{moved}")


def _names(tensor: TensorComparison) -> str:
    if tensor.name is None or tensor.other_name in (None, tensor.name):
        return tensor.name or tensor.other_name or ""
    return f"{tensor.other_name} -> {tensor.name}"
