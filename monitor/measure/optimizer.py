"""Optimizer state to gradient estimates: what Adam's second moment says about the steps between two checkpoints.

Pure. A checkpoint holds no gradients, so everything here is an estimate and carries its source.
The gradients are those the optimizer saw: after clipping, unscaling and averaging, and with coupled weight decay.

With v = beta2 * v + (1 - beta2) * g**2 and S the sum of v over all elements, k steps later
    W = (S_new - beta2**k * S_old) / (1 - beta2**k)
is the weighted mean of |g|**2 over just those k steps (weights (1 - beta2) * beta2**j / (1 - beta2**k), newest first).
Without a usable older state, S / (1 - beta2**t) is the same over the optimizer's whole memory.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cache

from monitor.measure.other_optimizers import other_estimate
from monitor.read.naming import ASSUMED_BETA2
from storage.records import GradientEstimate, TensorSummary

_STATE = re.compile(r"^(?P<optimizer>optimizer(?:\.\d+)?)\.state\.(?P<key>.+)\.exp_avg_sq$")
GROUPS_MAX = 1000
_SLACK = 1e-5  # times S_old: what rounding can do; below minus that, the state was replaced


@dataclass(frozen=True, slots=True, kw_only=True)
class AdamState:
    """Adam's second moment of one parameter: `name` is the state's path without its last part.

    `second_moment` is the sum of exp_avg_sq over all elements, None when an element is not finite. `step` counts the
    optimizer's steps. `beta2` is None when the checkpoint does not state it.
    """

    name: str
    second_moment: float | None
    step: int
    beta2: float | None


def adam_states(tensors: Iterable[TensorSummary], scalars: Mapping[str, float]) -> tuple[AdamState, ...]:
    """Find the Adam states among a checkpoint's tensors, in its own order.

    Looks for `optimizer.state.<i>.exp_avg_sq` with a step beside it (a one-element tensor or a scalar of the name
    `optimizer.state.<i>.step`); states without a step are left out, ties too.
    """
    by_name = {t.name: t for t in tensors}
    agreed = cache(lambda optimizer: _agreed_beta2(optimizer, scalars))  # asked once, not for every state
    found: list[AdamState] = []
    for tensor in by_name.values():
        match = _STATE.match(tensor.name)
        if match is None or tensor.tied_to is not None or tensor.problem is not None:
            continue
        prefix = tensor.name.removesuffix(".exp_avg_sq")
        step = _step(f"{prefix}.step", by_name, scalars)
        if step is None:
            continue
        total = tensor.norm_l1 if tensor.n_elements else 0.0
        if tensor.n_nonfinite or (tensor.min is not None and tensor.min < 0.0):
            total = None
        optimizer, key = match["optimizer"], match["key"]
        beta2 = agreed(optimizer) if not key.isdecimal() else _beta2_of_group(optimizer, int(key), scalars, agreed)
        found.append(AdamState(name=prefix, second_moment=total, step=step, beta2=beta2))
    return tuple(found)


def _step(name: str, by_name: Mapping[str, TensorSummary], scalars: Mapping[str, float]) -> int | None:
    value = scalars.get(name)
    tensor = by_name.get(name)
    if tensor is not None and tensor.n_elements == 1:
        value = tensor.mean
    return int(value) if value is not None and value >= 0.0 and value == math.floor(value) else None


def _beta2_of_group(
    optimizer: str, index: int, scalars: Mapping[str, float], agreed: Callable[[str], float | None]
) -> float | None:
    """Return the beta2 of the parameter group that holds state `index`: torch numbers parameters group after group."""
    groups = f"{optimizer}.param_groups"
    number = 0
    while (length := scalars.get(f"{groups}.{number}.params.length")) is not None:
        if index < length:
            return _valid(scalars.get(f"{groups}.{number}.betas.1"))
        index -= int(length)
        number += 1
    return None if number else agreed(optimizer)


def _agreed_beta2(optimizer: str, scalars: Mapping[str, float]) -> float | None:
    """Return the beta2 of all parameter groups where they agree, None otherwise; for states that have names."""
    groups = f"{optimizer}.param_groups"
    values = {b for g in range(GROUPS_MAX) if (b := _valid(scalars.get(f"{groups}.{g}.betas.1"))) is not None}
    return values.pop() if len(values) == 1 else None


def _valid(beta2: float | None) -> float | None:
    return beta2 if beta2 is not None and 0.0 <= beta2 < 1.0 else None


def gradient_estimate(
    tensors: Iterable[TensorSummary],
    scalars: Mapping[str, float],
    reference_tensors: Iterable[TensorSummary] = (),
    reference_scalars: Mapping[str, float] | None = None,
) -> GradientEstimate | None:
    """Estimate the global gradient norm between the reference and now, from whatever optimizer state there is.

    Where there is Adam state, over all parameters that have it:

    source "adam_window" when every state has an older self in the reference under the same beta2, and nothing says
    that it was reset between; window_steps is the largest number of steps that a parameter took. A state that is new
    since the reference has its whole memory in the window. Otherwise "adam_ema". None when an Adam state is not finite.
    Where a format states no beta2 at all, and the reader knows the framework's default, the estimate is made with that
    and its source ends in "_assumed". Without Adam state that took a step, `other_estimate` says what there is.
    """
    tensors, reference_tensors = tuple(tensors), tuple(reference_tensors)
    states = [s for s in adam_states(tensors, scalars) if s.step > 0]
    old_states = adam_states(reference_tensors, reference_scalars or {})
    assumed = _valid(scalars.get(ASSUMED_BETA2))
    suffix = ""
    if assumed is not None and states and all(s.beta2 is None for s in states):
        suffix = "_assumed"
        states = [replace(s, beta2=assumed) for s in states]
        old_states = tuple(replace(s, beta2=assumed) for s in old_states if s.beta2 is None)
    if not states or any(s.beta2 is None for s in states):
        return other_estimate(tensors, scalars, reference_tensors, reference_scalars)
    if any(s.second_moment is None for s in states):
        return None
    beta2s = {s.beta2 for s in states}
    beta2 = beta2s.pop() if len(beta2s) == 1 else None
    old = {s.name: s for s in old_states}
    window = _window_norm(states, old)
    if window is not None:
        return GradientEstimate(norm=window[0], source=f"adam_window{suffix}", window_steps=window[1], beta2=beta2)
    norm = math.sqrt(math.fsum(_memory(state) for state in states))
    source = f"adam_ema{suffix}"
    return GradientEstimate(norm=norm, source=source, window_steps=None, beta2=beta2) if norm < math.inf else None


def _memory(state: AdamState) -> float:
    """Return the weighted mean of |g|**2 over the optimizer's whole memory of one parameter."""
    assert state.second_moment is not None and state.beta2 is not None  # noqa: PT018 - the caller has looked
    return state.second_moment / _weights(state.beta2, state.step)


def _weights(beta2: float, steps: int) -> float:
    """Return 1 - beta2**steps without cancellation."""
    return -math.expm1(steps * math.log(beta2)) if beta2 > 0.0 else 1.0


def _window_norm(states: list[AdamState], old: Mapping[str, AdamState]) -> tuple[float, int] | None:
    """Return (norm, steps) over the window, None when a state is not the continuation of its older self."""
    squares: list[float] = []
    steps = 0
    for state in states:
        before = old.get(state.name)
        if before is None:
            continue
        square = _window(state, before)
        if square is None:
            return None
        squares.append(square)
        steps = max(steps, state.step - before.step)
    for state in states:
        if state.name not in old:
            if state.step > steps:  # older than the window, yet the reference does not know it
                return None
            squares.append(_memory(state))
    norm = math.sqrt(math.fsum(squares))
    return (norm, steps) if steps > 0 and norm < math.inf else None


def _window(new: AdamState, old: AdamState) -> float | None:
    """Return W for one parameter, None when the older state is not an earlier one of the same history."""
    assert new.second_moment is not None and new.beta2 is not None  # noqa: PT018 - the caller has looked
    if old.second_moment is None or old.beta2 != new.beta2:
        return None
    k = new.step - old.step
    fresh = new.second_moment - new.beta2**k * old.second_moment if k >= 0 else -math.inf
    if fresh < -_SLACK * old.second_moment or (k == 0 and fresh > _SLACK * old.second_moment):
        return None
    return max(fresh, 0.0) / _weights(new.beta2, k) if k > 0 else 0.0
