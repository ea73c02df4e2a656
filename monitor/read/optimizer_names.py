"""Optimizer state to parameter names: `optimizer.state.3.exp_avg` becomes `optimizer.state.fc.weight.exp_avg`.

PyTorch numbers the state through the parameter groups, and nothing says which parameter a number is. The order is
rebuilt by the rules that training code uses, and believed only where the shapes of the whole sequence fit one
assignment and no other; else the numbers stay. Pure; a name is never guessed.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

from monitor.read.reader import TensorSpec
from storage.records import TensorKind

_NUMBERED = re.compile(r"(?P<optimizer>optimizer(?:\.\d+)?)\.state\.(?P<index>\d{1,9})\.(?P<key>.+)", re.DOTALL)
# What optimizers keep in the shape of the parameter.
_MOMENTS = frozenset(
    {
        "exp_avg", "exp_avg_sq", "max_exp_avg_sq", "exp_inf", "momentum_buffer", "square_avg", "grad_avg", "acc_delta",
        "sum", "prev", "step_size", "ax", "mu_product", "exp_avg_diff", "previous_grad", "d",
    }
)  # fmt: skip
# Which parameters Hugging Face's Trainer leaves without weight decay, by name.
_NO_DECAY = re.compile(
    r"bias|layernorm|rmsnorm|(?:^|\.)norm(?:$|\.)|_norm(?:$|\.)|ln_|(?:^|\.)ln(?:$|\.|\d)", re.IGNORECASE
)
_GROUPS_MAX = 1000


@dataclass(frozen=True, slots=True)
class _Parameter:
    name: str
    shape: tuple[int, ...]


_Order = list[list[_Parameter]]  # group after group


def named_states(
    tensors: Sequence[TensorSpec], scalars: Mapping[str, float], *, in_module_order: bool
) -> tuple[tuple[TensorSpec, ...], dict[str, float]]:
    """Return tensors and scalars with every numbered state under its parameter's name, where that is certain.

    `in_module_order` says that the parameters among `tensors` come in the order of the model's modules, as torch.save
    keeps it and safetensors does not; without it only shapes that no other parameter of the group has are certain.
    The groups' beta2 must agree, because a name no longer tells the group.
    """
    names: dict[tuple[str, int], str] = {}
    parameters = [_Parameter(s.name, s.shape) for s in tensors if s.kind is TensorKind.PARAMETER and s.tied_to is None]
    for optimizer, shapes in _state_shapes(tensors).items():
        lengths = _group_lengths(optimizer, scalars)
        if shapes is None or not lengths or not _betas_agree(optimizer, scalars, len(lengths)):
            continue
        found = [
            assigned
            for order in _orders(parameters, lengths, in_order=in_module_order)
            if (assigned := _assigned(order, shapes, in_order=in_module_order)) is not None
        ]
        if found and all(other == found[0] for other in found):
            names.update({(optimizer, index): name for index, name in found[0].items()})
    return _with_names(tensors, scalars, names)


def stated_states(
    tensors: Sequence[TensorSpec], scalars: Mapping[str, float], names: Mapping[tuple[str, int], str]
) -> tuple[tuple[TensorSpec, ...], dict[str, float]]:
    """Return tensors and scalars with every numbered state under the name that the checkpoint itself states for it.

    `names` has the name for each (optimizer, number). The groups' beta2 must agree, as for `named_states`.
    """
    agreeing = {
        optimizer: _betas_agree(optimizer, scalars, len(_group_lengths(optimizer, scalars)))
        for optimizer in {optimizer for optimizer, _ in names}
    }
    return _with_names(tensors, scalars, {key: name for key, name in names.items() if agreeing[key[0]]})


def _with_names(
    tensors: Sequence[TensorSpec], scalars: Mapping[str, float], names: Mapping[tuple[str, int], str]
) -> tuple[tuple[TensorSpec, ...], dict[str, float]]:
    if not names:
        return tuple(tensors), dict(scalars)
    renamed = tuple(
        replace(spec, name=_renamed(spec.name, names), tied_to=spec.tied_to and _renamed(spec.tied_to, names))
        for spec in tensors
    )
    if len({spec.name for spec in renamed}) != len(renamed):
        return tuple(tensors), dict(scalars)
    return renamed, {_renamed(key, names): value for key, value in scalars.items()}


def _renamed(name: str, names: Mapping[tuple[str, int], str]) -> str:
    match = _NUMBERED.fullmatch(name)
    found = names.get((match["optimizer"], int(match["index"]))) if match else None
    return name if match is None or found is None else f"{match['optimizer']}.state.{found}.{match['key']}"


def _state_shapes(tensors: Sequence[TensorSpec]) -> dict[str, dict[int, tuple[int, ...]] | None]:
    """Return, for each optimizer, index to parameter shape; None where the moments of one index differ in shape."""
    found: dict[str, dict[int, tuple[int, ...]] | None] = {}
    for spec in tensors:
        match = _NUMBERED.fullmatch(spec.name) if spec.kind is TensorKind.OPTIMIZER else None
        if match is None or match["key"] not in _MOMENTS:
            continue
        shapes = found.setdefault(match["optimizer"], {})
        if shapes is not None and shapes.setdefault(int(match["index"]), spec.shape) != spec.shape:
            found[match["optimizer"]] = None
    return found


def _group_lengths(optimizer: str, scalars: Mapping[str, float]) -> list[int]:
    lengths: list[int] = []
    while len(lengths) < _GROUPS_MAX:
        length = scalars.get(f"{optimizer}.param_groups.{len(lengths)}.params.length")
        if length is None:
            break
        lengths.append(int(length))
    return lengths


def _betas_agree(optimizer: str, scalars: Mapping[str, float], n_groups: int) -> bool:
    return len({scalars.get(f"{optimizer}.param_groups.{group}.betas.1") for group in range(n_groups)}) == 1


def _orders(parameters: Sequence[_Parameter], lengths: Sequence[int], *, in_order: bool) -> Iterator[_Order]:
    """Yield the orders that training code uses and whose groups are as long as the optimizer's."""
    if sum(lengths) != len(parameters):
        return
    if in_order or len(lengths) == 1:
        ends = list(accumulate(lengths))
        yield [list(parameters[end - length : end]) for length, end in zip(lengths, ends, strict=True)]
    if len(lengths) != 2:
        return
    for decays in (_decays_by_dimensions, _decays_by_name):
        split = [[p for p in parameters if decays(p)], [p for p in parameters if not decays(p)]]
        for order in (split, split[::-1]):
            if [len(group) for group in order] == list(lengths):
                yield order


def _decays_by_dimensions(parameter: _Parameter) -> bool:
    return len(parameter.shape) >= 2


def _decays_by_name(parameter: _Parameter) -> bool:
    return _NO_DECAY.search(parameter.name) is None


def _assigned(order: _Order, shapes: Mapping[int, tuple[int, ...]], *, in_order: bool) -> dict[int, str] | None:
    """Return index to name when every shape fits, None otherwise; without order each shape must be its group's own."""
    names: dict[int, str] = {}
    first = 0
    for group in order:
        counts = Counter(parameter.shape for parameter in group)
        by_shape = {parameter.shape: parameter.name for parameter in group}
        for place, parameter in enumerate(group):
            shape = shapes.get(first + place)
            if shape is None:  # a parameter that never had a gradient has no state
                continue
            if in_order:
                if shape != parameter.shape:
                    return None
                names[first + place] = parameter.name
            else:
                if counts.get(shape) != 1 or by_shape[shape] in names.values():
                    return None
                names[first + place] = by_shape[shape]
        first += len(group)
    return names if names and max(shapes) < first else None
