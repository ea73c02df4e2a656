"""Tensors that come without a model: a variable, a list of them, a state dict, nested dicts of arrays."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import isfinite
from typing import Any

from monitor.live.leaves import is_leaf, leaf_tensor
from monitor.live.memory import LiveModel, LiveTensor
from monitor.read.keras.keras_names import kind_of
from monitor.read.naming import STEP_KEYS, as_step, is_optimizer_key, joined, kind_of_flat_name
from monitor.read.reader import LimitError, ReadLimits
from storage.records import TensorKind

_DEPTH_MAX = 64


def collection(values: Any, limits: ReadLimits) -> LiveModel:
    """Return the tensors in a dict, list or tuple, nested as may be; plain numbers in it become scalars.

    A variable in a list goes by its own name, where it has one; anything else by its place.
    """
    tensors: list[LiveTensor] = []
    scalars: dict[str, float] = {}
    for name, value in _leaves("", values, limits, 0):
        if is_leaf(value):
            if len(tensors) >= limits.tensors_max:
                raise LimitError(f"there are more than {limits.tensors_max} tensors")
            tensors.append(_named(name, value))
        elif len(scalars) < limits.scalars_max and isfinite(value):
            scalars[name] = float(value)
    steps = (as_step(scalars.get(key)) for key in STEP_KEYS)
    return LiveModel(
        framework="memory",
        tensors=tuple(tensors),
        scalars=scalars,
        step=next((step for step in steps if step is not None), None),
    )


def _leaves(name: str, value: Any, limits: ReadLimits, depth: int) -> Iterator[tuple[str, Any]]:
    if depth > _DEPTH_MAX:
        raise LimitError(f"the tensors are nested deeper than {_DEPTH_MAX} levels")
    if is_leaf(value):
        yield name or "tensor", value
    elif isinstance(value, bool | int | float):
        yield name or "number", value
    elif isinstance(value, Mapping):
        for key, part in value.items():
            yield from _leaves(joined(name, str(key), limits.name_characters_max), part, limits, depth + 1)
    elif isinstance(value, list | tuple):
        for index, part in enumerate(value):
            own = _own_name(part) if not name else None
            yield from _leaves(own or joined(name, str(index), limits.name_characters_max), part, limits, depth + 1)


def _own_name(value: Any) -> str | None:
    """Return what a variable calls itself, None for what has no name."""
    for attribute in ("path", "name"):
        name = getattr(value, attribute, None) if is_leaf(value) else None
        if isinstance(name, str) and name:
            return name.removesuffix(":0")
    return None


def _named(name: str, value: Any) -> LiveTensor:
    dtype = str(getattr(value.dtype, "name", value.dtype)).removeprefix("torch.")
    first, dot, _ = name.partition(".")
    kind = TensorKind.OPTIMIZER if dot and is_optimizer_key(first) else TensorKind.PARAMETER
    if kind is TensorKind.PARAMETER:
        judged = kind_of if "/" in name else kind_of_flat_name
        kind = judged(name, dtype, len(value.shape))
    return leaf_tensor(name, kind, value)
