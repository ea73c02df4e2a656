"""Amazon SageMaker Debugger's built-in rules with their published defaults, over what its hook would have seen.

Written from the definitions in Amazon's developer guide, for the comparison alone. They are given more than ckptwatch
gets: true gradients, the loss and the activity of units at each save. Left out are rules without a published default
(TensorVariance), those about other things than one training's health (SimilarAcrossRuns, class imbalance, trees) and
those that need a validation loss (Overfit, Overtraining), which these trainings do not compute.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise

import numpy as np

from benchmarks.detection.training import Arrays, Seen

VANISHING_THRESHOLD = 1e-7
RATIO_LARGE, RATIO_SMALL, RATIO_EPSILON = 10.0, 1e-8, 1e-9
UNCHANGED_STEPS, UNCHANGED_RTOL, UNCHANGED_ATOL = 3, 1e-5, 1e-8
LOSS_STEPS = 10
INIT_THRESHOLD, INIT_DISTANCE = 10.0, 0.001
INACTIVITY, LAYER_SHARE = 0.01, 0.5


def exploding_tensor(series: Sequence[Seen]) -> bool:
    """NaN or infinity in a weight or a gradient."""
    newest = series[-1]
    return any(not np.isfinite(a).all() for group in (newest.weights, newest.gradients) for a in group.values())


def vanishing_gradient(series: Sequence[Seen]) -> bool:
    """The mean magnitude of a gradient is below 1e-7."""
    return any(a.size and np.abs(a).mean() < VANISHING_THRESHOLD for a in series[-1].gradients.values())


def weight_update_ratio(series: Sequence[Seen]) -> bool:
    """The update of a weight since the save before is over 10 times or below 1e-8 of its size."""
    if len(series) < 2:
        return False
    old, new = _matrices(series[-2]), _matrices(series[-1])
    ratios = [_norm(new[n] - old[n]) / (_norm(old[n]) + RATIO_EPSILON) for n in new if n in old]
    return any(r > RATIO_LARGE or r < RATIO_SMALL for r in ratios)


def unchanged_tensor(series: Sequence[Seen]) -> bool:
    """A weight is the same, within np.allclose, over three saves."""
    if len(series) < UNCHANGED_STEPS:
        return False
    saves = [_matrices(seen) for seen in series[-UNCHANGED_STEPS:]]
    return any(
        all(np.allclose(a[name], b[name], UNCHANGED_RTOL, UNCHANGED_ATOL) for a, b in pairwise(saves))
        for name in saves[-1]
    )


def all_zero(series: Sequence[Seen]) -> bool:
    """A weight holds nothing but zeros."""
    return any(a.size and not a.any() for a in _matrices(series[-1]).values())


def poor_initialisation(series: Sequence[Seen]) -> bool:
    """At first, variances of layers differ by over 10 times, or 90 % of a gradient lies within 0.001."""
    if len(series) > 1:
        return False
    variances = [float(a.var()) for a in _matrices(series[0]).values()]
    if variances and (min(variances) == 0.0 or max(variances) / min(variances) > INIT_THRESHOLD):
        return True
    spreads = [np.subtract(*np.percentile(a, (95, 5))) for a in series[0].gradients.values() if a.size]
    return any(spread < INIT_DISTANCE for spread in spreads)


def loss_not_decreasing(series: Sequence[Seen]) -> bool:
    """The loss is no lower than at the last save at least 10 steps before."""
    newest = series[-1]
    earlier = [seen for seen in series if newest.step - seen.step >= LOSS_STEPS]
    return bool(earlier) and not newest.loss < earlier[-1].loss


def dead_relu(series: Sequence[Seen]) -> bool:
    """Over half of a layer's ReLUs are on for less than 1 % of the inputs."""
    return any((share < INACTIVITY).mean() > LAYER_SHARE for share in series[-1].activity.values())


def saturated_activation(series: Sequence[Seen]) -> bool:
    """Over half of a layer's tanh are at their ends for at least 99 % of the inputs."""
    return any((share > 1.0 - INACTIVITY).mean() > LAYER_SHARE for share in series[-1].saturation.values())


RULES: Mapping[str, Callable[[Sequence[Seen]], bool]] = {
    "ExplodingTensor": exploding_tensor,
    "VanishingGradient": vanishing_gradient,
    "WeightUpdateRatio": weight_update_ratio,
    "UnchangedTensor": unchanged_tensor,
    "AllZero": all_zero,
    "PoorWeightInitialization": poor_initialisation,
    "LossNotDecreasing": loss_not_decreasing,
    "DeadRelu": dead_relu,
    "SaturatedActivation": saturated_activation,
}


def alarms(series: Sequence[Seen]) -> list[tuple[str, int]]:
    """Return (rule, checkpoint counted from 1) where a rule fires and did not at the checkpoint before."""
    found = []
    with np.errstate(all="ignore"):
        for name, rule in RULES.items():
            before = False
            for place in range(len(series)):
                now = rule(series[: place + 1])
                if now and not before:
                    found.append((name, place + 1))
                before = now
    return sorted(found, key=lambda alarm: alarm[1])


def _matrices(seen: Seen) -> Arrays:
    return {name: a for name, a in seen.weights.items() if a.ndim >= 2}


def _norm(values: np.ndarray) -> float:
    return float(np.linalg.norm(values.reshape(-1).astype(np.float64)))
