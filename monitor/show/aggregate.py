"""One snapshot's tensors to rows of statistics, per layer group or per tensor; pure.

A row is the same sum over one tensor or over many: norms add in squares, means are weighted by finite elements,
extremes are extremes. Only finite numbers leave this module.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from monitor.show.gradients import mean_squared_gradients
from monitor.show.grouping import group_members, layer_groups
from monitor.show.views import Measurement
from storage.records import TensorDrift, TensorKind, TensorSummary

STATISTICS: Mapping[str, str] = {
    "weight_norm": "L2 norm over the finite parameter elements.",
    "mean": "Mean of the finite parameter elements.",
    "std": "Population standard deviation of the finite parameter elements.",
    "abs_max": "Largest absolute value of the finite parameter elements.",
    "zero_ratio": "Share of the parameter elements that are zero.",
    "nonfinite_elements": "Number of NaN and infinite elements in parameters and buffers.",
    "update_ratio": "Relative L2 change per training step since the reference checkpoint.",
    "gradient_rms": "Root mean square gradient inferred from the saved Adam state.",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class StatisticRow:
    """The statistics of one group or tensor: names of STATISTICS to finite values; what is unknown is absent."""

    name: str
    values: Mapping[str, float]


def group_rows(measurement: Measurement, step: int | None) -> tuple[StatisticRow, ...]:
    """Return one row a layer group, at most grouping.GROUPS_MAX, in checkpoint order; tied tensors count once."""
    shown = {t.name: t for t in _shown(measurement.tensors) if t.tied_to is None}
    context = _Context.of(measurement, step)
    return tuple(
        context.row(group, [shown[name] for name in names]) for group, names in group_members(layer_groups(shown))
    )


def tensor_rows(measurement: Measurement, step: int | None) -> tuple[StatisticRow, ...]:
    """Return one row a parameter or buffer, in checkpoint order; optimizer state has no row of its own."""
    context = _Context.of(measurement, step)
    return tuple(context.row(tensor.name, [tensor]) for tensor in _shown(measurement.tensors))


def nonfinite_by_kind(tensors: Iterable[TensorSummary]) -> dict[TensorKind, int]:
    """Return the number of NaN and infinite elements in tensors of each kind, tied tensors counted once."""
    counts = dict.fromkeys(TensorKind, 0)
    for tensor in tensors:
        if tensor.tied_to is None:
            counts[tensor.kind] += tensor.n_nonfinite
    return counts


def _shown(tensors: Iterable[TensorSummary]) -> Iterable[TensorSummary]:
    return (t for t in tensors if t.kind in {TensorKind.PARAMETER, TensorKind.BUFFER} and t.problem is None)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Context:
    step: int | None
    drifts: Mapping[str, TensorDrift]
    mean_squared_gradients: Mapping[str, float]

    @classmethod
    def of(cls, measurement: Measurement, step: int | None) -> _Context:
        return cls(
            step=step,
            drifts={drift.name: drift for drift in measurement.drifts},
            mean_squared_gradients=mean_squared_gradients(measurement.tensors, measurement.scalars),
        )

    def row(self, name: str, tensors: Sequence[TensorSummary]) -> StatisticRow:
        parameters = [t for t in tensors if t.kind is TensorKind.PARAMETER]
        values: dict[str, float | None] = {"nonfinite_elements": float(sum(t.n_nonfinite for t in tensors))}
        values |= _moments(parameters)
        n_elements = sum(t.n_elements for t in parameters)
        values["zero_ratio"] = sum(t.n_zero for t in parameters) / n_elements if n_elements else None
        values["update_ratio"] = self._update_ratio(parameters)
        values["gradient_rms"] = self._gradient_rms(parameters)
        finite = {key: value for key, value in values.items() if value is not None and math.isfinite(value)}
        return StatisticRow(name=name, values={key: finite[key] for key in STATISTICS if key in finite})

    def _update_ratio(self, parameters: Sequence[TensorSummary]) -> float | None:
        differences: list[float] = []
        references: list[float] = []
        steps: int | None = None
        for tensor in parameters:
            drift = self.drifts.get(tensor.name)
            if drift is None or drift.difference_l2 is None or drift.reference_step is None or self.step is None:
                continue
            if drift.relative_l2:
                reference = drift.difference_l2 / drift.relative_l2
            elif drift.difference_l2 == 0 and tensor.norm_l2 is not None:
                reference = tensor.norm_l2  # nothing moved, so the norm is still what it was
            else:
                continue
            steps = self.step - drift.reference_step
            differences.append(drift.difference_l2)
            references.append(reference)
        reference_norm = math.hypot(*references)
        if steps is None or steps <= 0 or reference_norm == 0:
            return None
        return math.hypot(*differences) / reference_norm / steps

    def _gradient_rms(self, parameters: Sequence[TensorSummary]) -> float | None:
        known = [t for t in parameters if t.name in self.mean_squared_gradients]
        n_elements = sum(t.n_elements for t in known)
        if n_elements == 0:
            return None
        return math.sqrt(sum(self.mean_squared_gradients[t.name] * (t.n_elements / n_elements) for t in known))


def _moments(parameters: Sequence[TensorSummary]) -> dict[str, float | None]:
    counted = [
        (t.n_elements - t.n_nonfinite, t.mean, t.std, t.norm_l2, t.abs_max)
        for t in parameters
        if t.mean is not None and t.std is not None and t.norm_l2 is not None and t.abs_max is not None
    ]
    n_finite = sum(n for n, *_ in counted)
    if n_finite == 0:
        return {}
    mean = sum(m * (n / n_finite) for n, m, *_ in counted)
    # Chan's formula: variance inside the tensors plus variance between their means.
    std = math.hypot(*(math.hypot(s, m - mean) * math.sqrt(n / n_finite) for n, m, s, *_ in counted))
    return {
        "weight_norm": math.hypot(*(norm for *_, norm, _ in counted)),
        "mean": mean,
        "std": std,
        "abs_max": max(abs_max for *_, abs_max in counted),
    }
