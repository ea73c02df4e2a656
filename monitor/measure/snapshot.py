"""A checkpoint file to Measured: open, stream, measure, and make sure nobody wrote meanwhile.

Runs in worker processes. Memory is bounded by the chunk, not by the checkpoint. What comes out is pure fact;
assemble.py turns it into a Snapshot in the daemon.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from monitor.measure.measured import Measured, count_parameters
from monitor.measure.options import MeasureOptions
from monitor.measure.summary import SummaryBuilder
from monitor.read.reader import OpenCheckpoint, ReadLimits, TensorSpec
from monitor.read.registry import open_path
from storage.records import TensorDrift, TensorSummary


def measure_path(
    path: str,
    options: MeasureOptions,
    on_read: Callable[[int], None] | None = None,
    reference_path: str | None = None,
) -> Measured:
    """Measure every tensor of one checkpoint file.

    `on_read` is called with the number of bytes after each read. `reference_path` is an older checkpoint of the same
    run for exact drift. Raises a ReadError for a file that is not whole, changed meanwhile, or cannot be read; a
    tensor that alone cannot be read becomes a summary with a `problem` and no statistics.
    """
    limits = ReadLimits(chunk_bytes_max=options.chunk_bytes)
    with open_path(path, limits, on_read) as opened:
        checkpoint = opened.checkpoint
        tensors = _summaries(checkpoint, options)
        drifts: tuple[TensorDrift, ...] = ()
        opened.file.verify_unchanged()
        return Measured(
            format=opened.format,
            step=checkpoint.step,
            epoch=checkpoint.epoch,
            scalars=dict(checkpoint.scalars),
            tensors=tensors,
            exact_drifts=drifts,
            bytes_read=opened.file.bytes_read,
            n_parameters=count_parameters(tensors),
        )


def _summaries(checkpoint: OpenCheckpoint, options: MeasureOptions) -> tuple[TensorSummary, ...]:
    """Measure the tensors in order; a tied one is not read again."""
    found: dict[str, TensorSummary] = {}
    for position, spec in enumerate(checkpoint.tensors):
        owner = found.get(spec.tied_to) if spec.tied_to is not None else None
        if owner is not None:
            found[spec.name] = dataclasses.replace(
                owner, name=spec.name, kind=spec.kind, position=position, tied_to=owner.name
            )
        else:
            found[spec.name] = _summary(checkpoint, spec, position, options)
    return tuple(found.values())


def _summary(checkpoint: OpenCheckpoint, spec: TensorSpec, position: int, options: MeasureOptions) -> TensorSummary:
    if spec.problem is not None:
        return unmeasured(spec, position, spec.problem)
    try:
        builder = SummaryBuilder(spec.dtype, spec.n_elements, options)
    except ValueError as error:
        return unmeasured(spec, position, str(error))
    for chunk in checkpoint.chunks(spec):
        builder.update(chunk.offset_elements, chunk.values)
    return builder.finish(name=spec.name, kind=spec.kind, shape=spec.shape, position=position)


def unmeasured(spec: TensorSpec, position: int, problem: str) -> TensorSummary:
    """Return the summary of a tensor that could not be measured: what it claims to be, and why there is no more."""
    return TensorSummary(
        name=spec.name,
        kind=spec.kind,
        dtype=spec.dtype,
        shape=spec.shape,
        position=position,
        n_elements=spec.n_elements,
        n_nan=0,
        n_posinf=0,
        n_neginf=0,
        n_zero=0,
        min=None,
        max=None,
        mean=None,
        std=None,
        norm_l1=None,
        norm_l2=None,
        abs_max=None,
        problem=problem,
    )
