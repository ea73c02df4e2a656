"""`ckptwatch inspect`: one checkpoint's tensors and statistics, without a database."""

from __future__ import annotations

import os
import sys
from enum import StrEnum
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Any

import typer

from monitor.commands.console import (
    CommandError,
    ExitCode,
    JsonOption,
    console,
    number,
    print_json,
    size,
    table,
)
from monitor.commands.measuring import checkpoint_at, measure_files, size_on_disk
from monitor.commands.picture_file import check_output, save
from monitor.files import Order
from monitor.measure.measured import Measured
from storage.records import Problem, TensorSummary


class SortKey(StrEnum):
    """What `--sort` may order by; numbers run from large to small."""

    POSITION = "position"
    NAME = "name"
    SIZE = "size"
    NORM = "norm"
    ABS_MAX = "abs-max"
    NONFINITE = "non-finite"
    ZEROS = "zeros"


def inspect(
    path: Annotated[str, typer.Argument(help="A checkpoint.")],
    sort: Annotated[SortKey, typer.Option(help="Order of the tensors.")] = SortKey.POSITION,
    pattern: Annotated[str, typer.Option("--filter", metavar="GLOB", help="Only tensors with such a name.")] = "*",
    picture: Annotated[
        Path | None, typer.Option("--plot", metavar="FILE", help="Also draw the distributions: .png, .svg or .pdf.")
    ] = None,
    json: JsonOption = False,
) -> None:
    """Show every tensor of a checkpoint with its statistics; nothing in the file is executed.

    Example: ckptwatch inspect model.safetensors --sort norm --filter "*.weight"
    """
    path = checkpoint_at(path)
    if picture is not None:
        check_output(picture, force=True)
    found = measure_files([Order(path=path)])[0]
    tensors = [] if isinstance(found, Problem) else _chosen(found, sort, pattern)
    if json:
        print_json(document(path, found, tensors))
    elif isinstance(found, Measured):
        _print_table(path, found, tensors)
    if isinstance(found, Problem):
        raise CommandError(f"{path}: {found.kind}: {found.message}", ExitCode.UNREADABLE)
    if picture is not None:
        _draw(path, found, picture)


def _draw(path: str, found: Measured, picture: Path) -> None:
    from monitor import pictures  # noqa: PLC0415 - most inspections draw nothing and should start fast

    try:
        save(pictures.histograms(os.path.basename(path), found), picture)
    except pictures.NothingToDrawError as error:
        sys.stderr.write(f"ckptwatch: no picture: {error}\n")


def document(path: str, found: Measured | Problem, tensors: list[TensorSummary]) -> dict[str, Any]:
    """Return the JSON document of `inspect --json`."""
    measured = None if isinstance(found, Problem) else found
    return {
        "checkpoint": {
            "path": path,
            "format": measured.format if measured else None,
            "step": measured.step if measured else None,
            "epoch": measured.epoch if measured else None,
            "size_bytes": size_on_disk(path),
            "n_tensors": len(measured.tensors) if measured else 0,
            "n_parameters": measured.n_parameters if measured else 0,
        },
        "tensors": [_tensor(t) for t in tensors],
        "problem": {"kind": found.kind.value, "message": found.message} if isinstance(found, Problem) else None,
    }


def _tensor(tensor: TensorSummary) -> dict[str, Any]:
    return {
        "name": tensor.name,
        "kind": tensor.kind.value,
        "dtype": tensor.dtype,
        "shape": list(tensor.shape),
        "n_elements": tensor.n_elements,
        "n_nan": tensor.n_nan,
        "n_posinf": tensor.n_posinf,
        "n_neginf": tensor.n_neginf,
        "n_zero": tensor.n_zero,
        "min": tensor.min,
        "max": tensor.max,
        "mean": tensor.mean,
        "std": tensor.std,
        "norm_l1": tensor.norm_l1,
        "norm_l2": tensor.norm_l2,
        "abs_max": tensor.abs_max,
        "quantiles": dict(tensor.quantiles),
        "tied_to": tensor.tied_to,
        "problem": tensor.problem,
        "content_hash": tensor.content_hash,
    }


def _chosen(found: Measured, sort: SortKey, pattern: str) -> list[TensorSummary]:
    tensors = [t for t in found.tensors if fnmatchcase(t.name, pattern)]
    if sort is SortKey.POSITION:
        return tensors
    if sort is SortKey.NAME:
        return sorted(tensors, key=lambda t: t.name)
    values = {
        SortKey.SIZE: lambda t: t.n_elements,
        SortKey.NORM: lambda t: t.norm_l2 or 0.0,
        SortKey.ABS_MAX: lambda t: t.abs_max or 0.0,
        SortKey.NONFINITE: lambda t: t.n_nonfinite,
        SortKey.ZEROS: lambda t: t.n_zero / max(t.n_elements, 1),
    }
    return sorted(tensors, key=values[sort], reverse=True)


def _remark(tensor: TensorSummary) -> str:
    if tensor.n_nonfinite:
        return f"{tensor.n_nonfinite:,}"
    if tensor.problem is not None:
        return tensor.problem + (f", SHA-256 {tensor.content_hash[:12]}..." if tensor.content_hash else "")
    return f"= {tensor.tied_to}" if tensor.tied_to else ""


def _print_table(path: str, found: Measured, tensors: list[TensorSummary]) -> None:
    step = "no step" if found.step is None else f"step {found.step}"
    title = (
        f"{path}: {found.format}, {step}, {size(size_on_disk(path) or 0)}, "
        f"{len(found.tensors)} tensors, {found.n_parameters:,} parameters"
    )
    columns = [("tensor", "left"), ("kind", "left"), ("dtype", "left"), ("shape", "left"), ("mean", "right")]
    columns += [("std", "right"), ("min", "right"), ("max", "right"), ("norm", "right"), ("zeros", "right")]
    columns += [("NaN/Inf", "right")]
    rows = [
        [
            t.name,
            t.kind.value,
            t.dtype,
            "×".join(map(str, t.shape)) or "scalar",
            number(t.mean),
            number(t.std),
            number(t.min),
            number(t.max),
            number(t.norm_l2),
            f"{100 * t.n_zero / t.n_elements:.1f}%" if t.n_elements else "–",
            _remark(t),
        ]
        for t in tensors
    ]
    console().print(table(title, columns, rows))
    bad = [t for t in found.tensors if t.n_nonfinite]
    if bad:
        sys.stdout.write(f"\n{len(bad)} tensors hold NaN or infinity; the first is {bad[0].name}\n")
