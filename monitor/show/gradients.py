"""Mean squared gradients per parameter, inferred from the statistics of a saved Adam state; pure.

Checkpoints hold no gradients. Adam's second moment is a weighted mean of the squared gradient over about 1/(1-beta2)
steps, and its mean over a tensor is known from the tensor's statistics: no value is read again. Where the state
cannot be matched to the parameters without guessing, nothing is returned.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence

from storage.records import TensorKind, TensorSummary

_SECOND_MOMENT = re.compile(r"optimizer\.state\.(\d{1,9})\.exp_avg_sq")
_NAMED_SECOND_MOMENT = re.compile(r"optimizer\.state\.(.+)\.exp_avg_sq")
_GROUP_BETA2 = re.compile(r"optimizer\.param_groups\.\d+\.betas\.1")


def mean_squared_gradients(tensors: Sequence[TensorSummary], scalars: Mapping[str, float]) -> dict[str, float]:
    """Map parameter names to the mean over elements of their bias-corrected second moment.

    Where the reader could tell whose state it is, the state bears the parameter's name. Otherwise PyTorch numbers it by
    position in the optimizer. The numbers are matched with the parameters by their sequence of shapes: in the order of
    the model, or matrices before vectors, as trainers arrange them that exempt vectors from weight decay. Empty when
    neither sequence fits exactly, or when beta2 is unknown (with names: when groups differ in it).
    Formula: Kingma and Ba 2015, algorithm 1: v_hat = v / (1 - beta2^t).
    """
    steps = {**scalars, **{t.name: t.mean for t in tensors if t.name.endswith(".step")}}
    step_of = steps.get
    named = _named_second_moments(tensors)
    if named:
        return _corrected(list(named), list(named.values()), step_of, _only_beta2(scalars))
    moments = _second_moments(tensors)
    parameters = [t for t in tensors if t.kind is TensorKind.PARAMETER and t.tied_to is None]
    if not moments or len(moments) != len(parameters):
        return {}
    vectors_last = sorted(parameters, key=lambda t: len(t.shape) < 2)
    for candidate in (parameters, vectors_last):
        if all(p.shape == m.shape for p, (_, m) in zip(candidate, moments, strict=True)):
            beta2_of = _beta2_by_index(scalars)
            beta2s = {tensor.name: beta2_of(index) for index, tensor in moments}
            return _corrected([p.name for p in candidate], [tensor for _, tensor in moments], step_of, beta2s.get)
    return {}


def _named_second_moments(tensors: Sequence[TensorSummary]) -> dict[str, TensorSummary]:
    """Return the second moments that bear the name of a parameter, by that name."""
    names = {t.name for t in tensors if t.kind is TensorKind.PARAMETER}
    return {
        match[1]: tensor
        for tensor in tensors
        if tensor.kind is TensorKind.OPTIMIZER
        and (match := _NAMED_SECOND_MOMENT.fullmatch(tensor.name))
        and match[1] in names
    }


def _second_moments(tensors: Sequence[TensorSummary]) -> list[tuple[int, TensorSummary]]:
    found = [
        (int(match[1]), tensor)
        for tensor in tensors
        if tensor.kind is TensorKind.OPTIMIZER and (match := _SECOND_MOMENT.fullmatch(tensor.name))
    ]
    return sorted(found, key=lambda pair: pair[0])


def _corrected(
    names: Sequence[str],
    moments: Sequence[TensorSummary],
    step_of: Callable[[str], float | None],
    beta2_of: Callable[[str], float | None],
) -> dict[str, float]:
    """Return what is known of parameters; `moments` are in the same order, `beta2_of` takes the name of a moment."""
    result: dict[str, float] = {}
    for name, moment in zip(names, moments, strict=True):
        step = step_of(moment.name.removesuffix("exp_avg_sq") + "step")
        beta2 = beta2_of(moment.name)
        if beta2 is None or step is None or step < 1 or moment.mean is None or moment.mean < 0 or moment.n_nonfinite:
            continue
        value = moment.mean / -math.expm1(step * math.log(beta2))
        if math.isfinite(value):
            result[name] = value
    return result


def _only_beta2(scalars: Mapping[str, float]) -> Callable[[str], float | None]:
    """Return a function that gives the beta2 which all parameter groups have, None where they differ."""
    found = {value for name, value in scalars.items() if _GROUP_BETA2.fullmatch(name)}
    beta2 = found.pop() if len(found) == 1 else None
    return lambda _: beta2 if beta2 is not None and 0 < beta2 < 1 else None


def _beta2_by_index(scalars: Mapping[str, float]) -> Callable[[int], float | None]:
    """Return a function from a state number to the beta2 of the parameter group it lies in."""
    ends: list[tuple[float, float | None]] = []
    end = 0.0
    for group in range(len(scalars)):
        length = scalars.get(f"optimizer.param_groups.{group}.params.length")
        if length is None:
            break
        end += length
        beta2 = scalars.get(f"optimizer.param_groups.{group}.betas.1")
        ends.append((end, beta2 if beta2 is not None and 0 < beta2 < 1 else None))
    return lambda index: next((beta2 for end, beta2 in ends if index < end), None)
