"""A checkpoint file to Measured: open, stream, measure, and make sure nobody wrote meanwhile.

Runs in worker processes. Memory is bounded by the chunk, not by the checkpoint. What comes out is pure fact;
assemble.py turns it into a Snapshot in the daemon.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from monitor.measure.content_hash import content_hash
from monitor.measure.exact_drift import PairedDrift
from monitor.measure.measured import Measured, count_parameters
from monitor.measure.options import MeasureOptions
from monitor.measure.sketch import GROUP_ROWS
from monitor.measure.stored import numpy_dtype
from monitor.measure.summary import SummaryBuilder
from monitor.read.reader import OpenCheckpoint, ReadError, ReadLimits, TensorSpec
from monitor.read.registry import OpenedPath, open_path
from storage.records import TensorDrift, TensorSummary

_LOG = logging.getLogger(__name__)

_ITEM_BYTES_MAX = 16  # complex128

OnRead = Callable[[int], None]


def measure_path(
    path: str,
    options: MeasureOptions,
    on_read: OnRead | None = None,
    reference_path: str | None = None,
    limits: ReadLimits = ReadLimits(),  # noqa: B008 - frozen
) -> Measured:
    """Measure every tensor of one checkpoint file.

    `on_read` is called with the number of bytes after each read. `reference_path` is an older checkpoint of the same
    run for exact drift; trouble with it is no error, there is then no exact drift. The chunk size is that of the
    options. Raises a ReadError for a file that is not whole, changed meanwhile, or cannot be read; a tensor that alone
    cannot be read becomes a summary with a `problem` and no statistics, and with a hash where its bytes are known.
    """
    limits = dataclasses.replace(limits, chunk_bytes_max=aligned_chunk_bytes(options))
    with (
        open_path(path, limits, on_read) as opened,
        _open_reference(reference_path, options, limits, on_read) as reference,
    ):
        tensors, drifts = _measure_all(opened.checkpoint, options, reference)
        opened.file.verify_unchanged()
        confirmed = reference.confirmed(drifts)
        n_bytes = opened.file.bytes_read + reference.bytes_read
        return _measured(opened.checkpoint, opened.format, tensors, confirmed, n_bytes)


def measure_checkpoint(
    checkpoint: OpenCheckpoint, options: MeasureOptions, *, format: str, reference: OpenCheckpoint | None = None
) -> Measured:
    """Measure a checkpoint that is open already, wherever its values come from; nothing is verified.

    `format` is what the result says of their origin. `reference` is the older one for exact drift, None without; what
    goes wrong in reading it is only logged. `bytes_read` of the result are the bytes of the tensors measured.
    """
    tensors, drifts = _measure_all(checkpoint, options, _Reference(reference))
    n_bytes = sum(t.n_elements * numpy_dtype(t.dtype).itemsize for t in tensors if not t.tied_to and not t.problem)
    return _measured(checkpoint, format, tensors, drifts, n_bytes)


def _measured(
    checkpoint: OpenCheckpoint,
    format_name: str,
    tensors: tuple[TensorSummary, ...],
    drifts: tuple[TensorDrift, ...],
    bytes_read: int,
) -> Measured:
    return Measured(
        format=format_name,
        step=checkpoint.step,
        epoch=checkpoint.epoch,
        scalars=dict(checkpoint.scalars),
        tensors=tensors,
        exact_drifts=drifts,
        bytes_read=bytes_read,
        n_parameters=count_parameters(tensors),
    )


def aligned_chunk_bytes(options: MeasureOptions) -> int:
    """Return the chunk size rounded down to whole groups of sketch rows of any dtype, which the kernel likes best."""
    group_bytes = GROUP_ROWS * options.sketch_buckets * _ITEM_BYTES_MAX
    return max(options.chunk_bytes // group_bytes * group_bytes, min(options.chunk_bytes, group_bytes))


class _Reference:
    """The older checkpoint, or nothing; once reading it fails it is nothing for good."""

    def __init__(self, checkpoint: OpenCheckpoint | None, opened: OpenedPath | None = None) -> None:
        self._checkpoint = checkpoint
        self._opened = opened
        self._specs = {s.name: s for s in checkpoint.tensors} if checkpoint else {}

    @property
    def bytes_read(self) -> int:
        return self._opened.file.bytes_read if self._opened else 0

    @property
    def step(self) -> int | None:
        return self._checkpoint.step if self._checkpoint else None

    def drift_against(self, spec: TensorSpec) -> PairedDrift | None:
        """Begin to compare a tensor, None when the older checkpoint holds none of its name and shape."""
        old = self._specs.get(spec.name)
        if self._checkpoint is None or old is None or old.shape != spec.shape or old.problem is not None:
            return None
        return PairedDrift(spec.n_elements, self._checkpoint.chunks(old))

    def give_up(self, error: ReadError) -> None:
        _LOG.info("no exact drift, the reference cannot be read: %s", error)
        self._specs = {}

    def confirmed(self, drifts: tuple[TensorDrift, ...]) -> tuple[TensorDrift, ...]:
        """Return the drifts, none of them when the older file was written or deleted meanwhile."""
        if self._opened is None:
            return ()
        try:
            self._opened.file.verify_unchanged()
        except ReadError as error:
            self.give_up(error)
            return ()
        return drifts


@contextmanager
def _open_reference(
    path: str | None, options: MeasureOptions, limits: ReadLimits, on_read: OnRead | None
) -> Iterator[_Reference]:
    """Open the reference if it is asked for and readable."""
    if path is None or options.drift == "sketch":
        yield _Reference(None)
        return
    opening = open_path(path, limits, on_read)
    try:
        opened = opening.__enter__()
    except ReadError as error:
        _LOG.info("no exact drift, the reference cannot be opened: %s", error)
        yield _Reference(None)
        return
    try:
        small = options.drift == "exact" or opened.file.size_bytes <= options.exact_drift_bytes_max
        yield _Reference(opened.checkpoint, opened) if small else _Reference(None)
    finally:
        opening.__exit__(None, None, None)


def _measure_all(
    checkpoint: OpenCheckpoint, options: MeasureOptions, reference: _Reference
) -> tuple[tuple[TensorSummary, ...], tuple[TensorDrift, ...]]:
    """Measure the tensors in order; a tied one is not read again."""
    found: dict[str, TensorSummary] = {}
    drifts: list[TensorDrift] = []
    for position, spec in enumerate(checkpoint.tensors):
        owner = found.get(spec.tied_to) if spec.tied_to is not None else None
        if owner is not None:
            found[spec.name] = dataclasses.replace(
                owner, name=spec.name, kind=spec.kind, position=position, tied_to=owner.name
            )
            continue
        summary, drift = _measure(checkpoint, spec, position, options, reference)
        found[spec.name] = summary
        if drift is not None:
            drifts.append(drift)
    return tuple(found.values()), tuple(drifts)


def _measure(
    checkpoint: OpenCheckpoint, spec: TensorSpec, position: int, options: MeasureOptions, reference: _Reference
) -> tuple[TensorSummary, TensorDrift | None]:
    if spec.problem is not None:
        summary = unmeasured(spec, position, spec.problem)
        if spec.content is None:
            return summary, None
        hashed = content_hash(spec.content, aligned_chunk_bytes(options))
        return dataclasses.replace(summary, content_hash=hashed), None
    try:
        builder = SummaryBuilder(spec.dtype, spec.n_elements, options.for_shape(spec.shape))
    except ValueError as error:
        return unmeasured(spec, position, str(error)), None
    paired = reference.drift_against(spec)
    for chunk in checkpoint.chunks(spec):
        builder.update(chunk.offset_elements, chunk.values)
        if paired is not None:
            try:
                paired.feed(chunk.values)
            except ReadError as error:
                reference.give_up(error)
                paired = None
    summary = builder.finish(name=spec.name, kind=spec.kind, shape=spec.shape, position=position)
    return summary, paired.finish(spec.name, reference.step) if paired is not None else None


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
