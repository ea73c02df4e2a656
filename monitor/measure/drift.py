"""How far tensors moved from a reference snapshot: from sketches, and the update ratio over all parameters.

Pure, NumPy only, no kernel: the daemon imports it. Exact drift, which needs both files, is in exact_drift.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from monitor.measure import sketch
from storage.records import TensorDrift, TensorKind, TensorSummary


def sketch_drift(new: TensorSummary, old: TensorSummary, reference_step: int | None) -> TensorDrift | None:
    """Estimate the drift of one tensor against an older summary of it.

    None when there is nothing to compare: another shape, or a sketch that is missing or was taken differently.
    All numbers are None when either tensor holds a non-finite element, since a sketch counts those as zero. Tensors
    small enough to be stored raw give exact numbers; they are still called "sketch", because `max_abs_difference` and
    `n_changed` are not looked at.
    """
    if new.shape != old.shape or new.sketch is None or old.sketch is None:
        return None
    try:
        difference = sketch.difference_l2(new.sketch, old.sketch)
    except ValueError:
        return None
    finite = new.n_nonfinite == 0 and old.n_nonfinite == 0
    relative = cosine = None
    if finite:
        base = old.norm_l2 if old.norm_l2 is not None else 0.0
        relative = difference / base if base > 0.0 else None
        cosine = sketch.cosine_distance(new.sketch, old.sketch)
    return TensorDrift(
        name=new.name,
        reference_step=reference_step,
        method="sketch",
        difference_l2=finite_or_none(difference) if finite else None,
        relative_l2=finite_or_none(relative),
        cosine_distance=cosine,
    )


def finite_or_none(value: float | None) -> float | None:
    """Return `value` where it is a finite number, else None."""
    return value if value is not None and math.isfinite(value) else None


def update_ratio(
    drifts: Iterable[TensorDrift], old_tensors: Mapping[str, TensorSummary], steps: int | None
) -> float | None:
    """Return |W - W0| / |W0| / steps over all parameters that both snapshots hold, ties once.

    `old_tensors` are the reference's by name. None when steps is unknown or not positive, when no parameter can be
    compared, when |W0| is 0, and when a compared parameter is not finite: a partial answer would look like a real one.
    """
    if steps is None or steps <= 0:
        return None
    moved: list[float] = []
    before: list[float] = []
    for drift in drifts:
        old = old_tensors.get(drift.name)
        if old is None or old.kind is not TensorKind.PARAMETER or old.tied_to is not None or old.n_elements == 0:
            continue
        if drift.difference_l2 is None or old.norm_l2 is None:
            return None
        moved.append(drift.difference_l2)
        before.append(old.norm_l2)
    base = math.hypot(*before)
    return finite_or_none(math.hypot(*moved) / base / steps) if base > 0.0 else None
