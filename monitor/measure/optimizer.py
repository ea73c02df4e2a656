"""Optimizer state to gradient estimates: what Adam's second moment says about the steps between two checkpoints.

Pure, standard library only. A checkpoint holds no gradients, so everything here is an estimate and carries its source.
The gradients are those the optimizer saw: after clipping, unscaling and averaging, and with coupled weight decay.

With v = beta2 * v + (1 - beta2) * g**2 and S the sum of v over all elements, k steps later
    W = (S_new - beta2**k * S_old) / (1 - beta2**k)
is the weighted mean of |g|**2 over just those k steps (weights (1 - beta2) * beta2**j / (1 - beta2**k), newest first).
Without a usable older state, S / (1 - beta2**t) is the same over the optimizer's whole memory.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from storage.records import GradientEstimate, TensorSummary

_STATE = re.compile(r"^(?P<optimizer>optimizer(?:\.\d+)?)\.state\.(?P<key>.+)\.exp_avg_sq$")
_NEGATIVE_SLACK = 1e-5  # W below -slack * S_old is a replaced state; above, it is rounding


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
        beta2 = _beta2(match["optimizer"], match["key"], scalars)
        found.append(AdamState(name=prefix, second_moment=total, step=step, beta2=beta2))
    return tuple(found)


def _step(name: str, by_name: Mapping[str, TensorSummary], scalars: Mapping[str, float]) -> int | None:
    value = scalars.get(name)
    tensor = by_name.get(name)
    if tensor is not None and tensor.n_elements == 1:
        value = tensor.mean
    return int(value) if value is not None and value >= 0.0 and value == math.floor(value) else None


def _beta2(optimizer: str, key: str, scalars: Mapping[str, float]) -> float | None:
    """Return the beta2 of the parameter group that holds state `key`: torch numbers parameters group after group."""
    groups = f"{optimizer}.param_groups"
    lengths: list[float] = []
    while (length := scalars.get(f"{groups}.{len(lengths)}.params.length")) is not None:
        lengths.append(length)
    group: int | None = None
    if key.isdecimal() and lengths:
        index = int(key)
        for number, length in enumerate(lengths):
            if index < length:
                group = number
                break
            index -= int(length)
    else:  # named states: the groups must agree
        values = {b for g in range(1000) if (b := _valid(scalars.get(f"{groups}.{g}.betas.1"))) is not None}
        return values.pop() if len(values) == 1 else None
    return None if group is None else _valid(scalars.get(f"{groups}.{group}.betas.1"))


def _valid(beta2: float | None) -> float | None:
    return beta2 if beta2 is not None and 0.0 <= beta2 < 1.0 else None


def gradient_estimate(
    tensors: Iterable[TensorSummary],
    scalars: Mapping[str, float],
    reference_tensors: Iterable[TensorSummary] = (),
    reference_scalars: Mapping[str, float] | None = None,
) -> GradientEstimate | None:
    """Estimate the global gradient norm between the reference and now, over all parameters with Adam state.

    Source "adam_window" when every state has an older self that is fewer steps old, under the same beta2, and nothing
    says it was reset between; else "adam_ema". None when there is no Adam state, when a state is not finite, when a
    beta2 is not stated, or when no step was taken.
    """
    states = [s for s in adam_states(tensors, scalars) if s.step > 0]
    if not states or any(s.second_moment is None or s.beta2 is None for s in states):
        return None
    old = {s.name: s for s in adam_states(reference_tensors, reference_scalars or {})}
    windows = [_window(state, old.get(state.name)) for state in states]
    beta2s = {s.beta2 for s in states}
    beta2 = beta2s.pop() if len(beta2s) == 1 else None
    known = [w for w in windows if w is not None]
    if len(known) == len(states) and (steps := {k for _, k in known}) and max(steps) > 0:
        norm = math.sqrt(math.fsum(w for w, _ in known))
        return GradientEstimate(norm=norm, source="adam_window", window_steps=max(steps), beta2=beta2)
    ema = math.fsum(_memory(state) for state in states)
    return GradientEstimate(norm=math.sqrt(ema), source="adam_ema", window_steps=None, beta2=beta2)


def _memory(state: AdamState) -> float:
    assert state.second_moment is not None and state.beta2 is not None  # noqa: PT018 - the caller has looked
    return state.second_moment / -math.expm1(state.step * math.log(state.beta2)) if state.beta2 else state.second_moment


def _window(new: AdamState, old: AdamState | None) -> tuple[float, int] | None:
    """Return (W, k) for one parameter, None when the older state is not an earlier one of the same history.

    A parameter that got its first gradient since the reference has an implicit older state of zeros at step 0.
    """
    if old is None or old.second_moment is None or old.beta2 != new.beta2:
        return None
    k = new.step - old.step
    assert new.second_moment is not None and new.beta2 is not None  # noqa: PT018 - the caller has looked
    if k <= 0:
        return None
    kept = new.beta2**k
    fresh = new.second_moment - kept * old.second_moment
    if fresh < -_NEGATIVE_SLACK * old.second_moment:
        return None
    forgotten = -math.expm1(k * math.log(new.beta2)) if new.beta2 else 1.0
    return max(fresh, 0.0) / forgotten, k
