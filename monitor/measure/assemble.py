"""Measured numbers and a reference to a Snapshot: the daemon's half of measuring.

Pure, and free of the kernel and of readers, since the daemon process imports it.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from monitor.measure.drift import finite_or_none, sketch_drift, update_ratio
from monitor.measure.measured import Measured
from monitor.measure.optimizer import gradient_estimate
from monitor.measure.sketch import comparable
from monitor.measure.trajectory import update_cosine
from monitor.measure.weight_sketch import weight_sketch
from storage.records import (
    Checkpoint,
    GradientEstimate,
    Problem,
    Sketch,
    Snapshot,
    SnapshotStatus,
    StoredSnapshot,
    TensorDrift,
    TensorKind,
    TensorSummary,
)

UPDATE_COSINE_SCALAR = "path.update_cosine"


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """The snapshot that drift is measured against; `tensors` with their sketches.

    `weights` is the sketch of all its parameters, `weights_before` that of the snapshot it was compared with itself;
    None where there is none.
    """

    snapshot: StoredSnapshot
    tensors: tuple[TensorSummary, ...]
    scalars: Mapping[str, float] = field(default_factory=dict)
    weights: Sketch | None = None
    weights_before: Sketch | None = None


def assemble(
    checkpoint: Checkpoint,
    measured: Measured,
    reference: Reference | None,
    attempt: int,
    *,
    measured_at: float,
    duration_seconds: float,
) -> Snapshot:
    """Build the snapshot of a checkpoint that was measured; drifts are sketched where no exact one was taken.

    The content's own step and epoch win over those of the path. Times are Unix seconds. To the scalars comes
    UPDATE_COSINE_SCALAR, the cosine of this update with the one before, where both are known and no mere rounding.
    """
    step = measured.step if measured.step is not None else checkpoint.step
    epoch = measured.epoch if measured.epoch is not None else checkpoint.epoch
    reference_step = reference.snapshot.step if reference else None
    drifts = _drifts(measured, reference)
    ratio = None
    if reference is not None and step is not None and reference_step is not None:
        ratio = update_ratio(drifts, {t.name: t for t in reference.tensors}, step - reference_step)
    bad = [t for t in measured.tensors if t.n_nonfinite > 0]
    weights = weight_sketch(measured.tensors)
    return Snapshot(
        checkpoint=dataclasses.replace(checkpoint, format=measured.format, step=step, epoch=epoch),
        status=SnapshotStatus.COMPLETE,
        problem=None,
        tensors=measured.tensors,
        drifts=drifts,
        scalars={**_path_scalars(weights, reference), **measured.scalars},
        attempt=attempt,
        n_tensors=len(measured.tensors),
        n_parameters=measured.n_parameters,
        n_nonfinite=sum(t.n_nonfinite for t in bad if t.tied_to is None),
        weight_norm=weight_norm(measured.tensors),
        update_ratio=ratio,
        gradient=gradient_estimate(
            measured.tensors,
            measured.scalars,
            reference.tensors if reference else (),
            reference.scalars if reference else {},
        )
        or _logged_gradient(measured.scalars, step, reference_step),
        first_bad_tensor=min(bad, key=lambda t: t.position).name if bad else None,
        reference_step=reference_step,
        bytes_read=measured.bytes_read,
        measured_at=measured_at,
        duration_seconds=duration_seconds,
        weights=weights,
    )


def _path_scalars(weights: Sketch | None, reference: Reference | None) -> dict[str, float]:
    """Return how the update to these weights lies to the one before; empty where that is not known."""
    if weights is None or reference is None or reference.weights is None or reference.weights_before is None:
        return {}
    if not (comparable(weights, reference.weights) and comparable(weights, reference.weights_before)):
        return {}
    cosine = update_cosine(reference.weights_before, reference.weights, weights)
    return {} if cosine is None else {UPDATE_COSINE_SCALAR: cosine}


def _logged_gradient(scalars: Mapping[str, float], step: int | None, after: int | None) -> GradientEstimate | None:
    """Return the mean of the gradient norms that training logged since the reference, None where it logged none."""
    norm = scalars.get("log.grad_norm")
    if norm is None or norm < 0.0:
        return None
    steps = step - after if step is not None and after is not None and step > after else None
    return GradientEstimate(norm=norm, source="logged", window_steps=steps)


def failed(
    checkpoint: Checkpoint,
    problem: Problem,
    attempt: int,
    *,
    measured_at: float,
    duration_seconds: float,
    bytes_read: int = 0,
) -> Snapshot:
    """Build the snapshot of a checkpoint that could not be measured: it has a problem and no tensors."""
    return Snapshot(
        checkpoint=checkpoint,
        status=SnapshotStatus.FAILED,
        problem=problem,
        tensors=(),
        drifts=(),
        scalars={},
        attempt=attempt,
        n_tensors=0,
        n_parameters=0,
        n_nonfinite=0,
        weight_norm=None,
        update_ratio=None,
        gradient=None,
        first_bad_tensor=None,
        reference_step=None,
        bytes_read=bytes_read,
        measured_at=measured_at,
        duration_seconds=duration_seconds,
    )


def weight_norm(tensors: tuple[TensorSummary, ...]) -> float | None:
    """Return the L2 norm over the finite elements of all parameters, ties once; None without any, or on overflow."""
    norms = [
        t.norm_l2 for t in tensors if t.kind is TensorKind.PARAMETER and t.tied_to is None and t.norm_l2 is not None
    ]
    return finite_or_none(math.hypot(*norms)) if norms else None


def _drifts(measured: Measured, reference: Reference | None) -> tuple[TensorDrift, ...]:
    """Return one drift for each tensor that can be compared, exact before sketched, in the checkpoint's order."""
    if reference is None:
        return ()
    step = reference.snapshot.step
    exact = {d.name: dataclasses.replace(d, reference_step=step) for d in measured.exact_drifts}
    old = {t.name: t for t in reference.tensors}
    drifts: list[TensorDrift] = []
    for tensor in measured.tensors:
        drift = exact.get(tensor.name)
        if drift is None and tensor.name in old:
            drift = sketch_drift(tensor, old[tensor.name], step)
        if drift is not None:
            drifts.append(drift)
    return tuple(drifts)
