"""What an optimizer's saved state looks like by its tensors' names, and what Adam's can and cannot be. Pure.

State tensors are named `optimizer.state.<key>.<part>` (`optimizer.1.` for a second one), numbers beside them
`optimizer.param_groups.<g>.<name>`. The key is the parameter's name where the reader could tell it, else its number in
the optimizer; so states are looked at on their own.
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from storage.records import Histogram, TensorSummary

_PART = re.compile(r"^(?P<optimizer>optimizer(?:\.\d+)?)\.state\.(?P<key>.+)\.(?P<part>\w+)$")
_ADAM_PARTS = frozenset({"step", "exp_avg", "exp_avg_sq", "max_exp_avg_sq", "mu_product"})
_MAGNITUDE_SHIFT = 49  # a histogram's bin is a float64's exponent and the top three bits of its mantissa
_MAGNITUDES = 2**14 - 8


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """One parameter's optimizer state: its tensors by part ("exp_avg", "step"), and its group's plain numbers."""

    name: str
    parts: Mapping[str, TensorSummary]
    options: Mapping[str, float]
    step: float | None

    @property
    def shape(self) -> tuple[int, ...]:
        """Return the shape of the largest tensor of the state, as a rule the parameter's own."""
        return max(self.parts.values(), key=lambda t: t.n_elements).shape


def states(tensors: Iterable[TensorSummary], scalars: Mapping[str, float]) -> list[State]:
    """Return the optimizer states among a checkpoint's tensors, in its own order."""
    found: dict[tuple[str, str], dict[str, TensorSummary]] = {}
    for tensor in tensors:
        match = _PART.match(tensor.name)
        if match is not None and tensor.problem is None:
            found.setdefault((match["optimizer"], match["key"]), {})[match["part"]] = tensor
    groups: dict[str, list[tuple[float, Mapping[str, float]]]] = {}
    result = []
    for (optimizer, key), parts in found.items():
        if optimizer not in groups:
            groups[optimizer] = _groups(optimizer, scalars)
        name = f"{optimizer}.state.{key}"
        step = parts.get("step")
        result.append(
            State(
                name=name,
                parts=parts,
                options=_options(key, groups[optimizer]),
                step=step.mean if step is not None and step.n_elements == 1 else scalars.get(f"{name}.step"),
            )
        )
    return result


def _groups(optimizer: str, scalars: Mapping[str, float]) -> list[tuple[float, Mapping[str, float]]]:
    """Return (number of parameters, plain numbers) of each parameter group, in order."""
    numbers: dict[int, dict[str, float]] = {}
    prefix = f"{optimizer}.param_groups."
    for name, value in scalars.items():
        if name.startswith(prefix):
            group, _, rest = name.removeprefix(prefix).partition(".")
            if group.isdecimal() and len(group) < 6:
                numbers.setdefault(int(group), {})[rest] = value
    return [(numbers[g].get("params.length", 0.0), numbers[g]) for g in sorted(numbers)]


def _options(key: str, groups: list[tuple[float, Mapping[str, float]]]) -> Mapping[str, float]:
    """Return the plain numbers of the group that holds a state: torch counts parameters group after group."""
    if len(groups) == 1 or not groups:
        return groups[0][1] if groups else {}
    if not key.isdecimal():  # named after its parameter: what all groups agree on holds for it
        first = groups[0][1]
        return {k: v for k, v in first.items() if all(options.get(k) == v for _, options in groups)}
    index = float(key)
    for length, options in groups:
        if index < length:
            return options
        index -= length
    return {}


def adam_states(tensors: Iterable[TensorSummary], scalars: Mapping[str, float]) -> list[State]:
    """Return the states that look like Adam's: both moments, two betas, and no part that Adam does not have."""
    return [
        s
        for s in states(tensors, scalars)
        if {"exp_avg", "exp_avg_sq"} <= set(s.parts) <= _ADAM_PARTS
        and s.parts["exp_avg"].shape == s.parts["exp_avg_sq"].shape
        and {"betas.0", "betas.1"} <= set(s.options)
        and "betas.2" not in s.options
    ]


def moment_ratio_max(beta1: float, beta2: float) -> float | None:
    """Return the highest |m| / sqrt(v) that Adam can reach for any gradients, None where there is no bound.

    By the Cauchy-Schwarz inequality over the two weighted sums: (1 - b1) / sqrt((1 - b2) (1 - b1^2 / b2)).
    """
    if not (0.0 <= beta1 < 1.0 and 0.0 < beta2 < 1.0 and beta1 * beta1 < beta2):
        return None
    return (1.0 - beta1) / math.sqrt((1.0 - beta2) * (1.0 - beta1 * beta1 / beta2))


def magnitude_bounds(index: int) -> tuple[float, float]:
    """Return the least and the highest magnitude that elements of a histogram's bin can have; (0, 0) for bin 0."""
    if index == 0:
        return 0.0, 0.0
    place = min(abs(index), _MAGNITUDES)
    low, high = (struct.unpack("<d", struct.pack("<q", m << _MAGNITUDE_SHIFT))[0] for m in (place - 1, place))
    return low, high


def share_below(histogram: Histogram, magnitude: float) -> float:
    """Return the share of the counted elements whose magnitude is surely below a value."""
    if histogram.n_sampled == 0:
        return 0.0
    below = sum(
        n
        for index, n in zip(histogram.bin_indices, histogram.counts, strict=True)
        if index == 0 or magnitude_bounds(index)[1] <= magnitude
    )
    return below / histogram.n_sampled


def share_beyond(moment: Histogram, second: Histogram, bound: float, *, at_least: float = 0.0) -> float:
    """Return the least share of elements whose |m| must be above bound * sqrt(v), judged by the histograms alone.

    If no element is above, then for every x there are at most as many elements with |m| > x as with
    bound * sqrt(v) > x. The largest excess over all x is the share that cannot be explained. Bins count with the end
    that is in favour of the state; both histograms must count the same elements. Only |m| of `at_least` this magnitude
    counts.
    """
    if moment.n_sampled == 0 or moment.n_sampled != second.n_sampled:
        return 0.0
    marks: list[tuple[float, int]] = []
    for index, n in zip(moment.bin_indices, moment.counts, strict=True):
        marks.append((magnitude_bounds(index)[0], n))
    for index, n in zip(second.bin_indices, second.counts, strict=True):
        marks.append((bound * math.sqrt(magnitude_bounds(index)[1]), -n))
    worst = excess = 0
    # From the largest magnitude down; of equal ones the second moment comes first, in favour of the state.
    for magnitude, n in sorted(marks, key=lambda mark: (-mark[0], mark[1])):
        if magnitude <= at_least:
            break
        excess += n
        worst = max(worst, excess)
    return worst / moment.n_sampled
