"""Modules and optimizers of PyTorch in memory.

Tensors stay where they are: a stretch at a time is copied from the device. Names are those of the state dict, the
optimizer's state goes by the names of the parameters it is for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import isfinite, prod
from typing import Any

import ml_dtypes
import numpy as np

from monitor.live.memory import Array, LiveModel, LiveTensor
from monitor.read.dtypes import DTYPES
from monitor.read.naming import as_step, refine_kind
from storage.records import TensorKind

# What NumPy does not know is seen through integers of the same width.
_SEEN_THROUGH = {"bfloat16": "int16"} | dict.fromkeys((name for name in DTYPES if name.startswith("float8")), "uint8")


def torch_model(model: Any, optimizer: Any = None) -> LiveModel:
    """Return the parameters and persistent buffers of a module, and with `optimizer` its state and settings."""
    parameters = {id(p): name for name, p in model.named_parameters(remove_duplicate=False)}
    first_names: dict[int, str] = {}
    tensors = []
    for name, value in model.state_dict(keep_vars=True).items():
        if not hasattr(value, "dim"):
            continue  # extra state of a module, of any type
        kind = TensorKind.PARAMETER if id(value) in parameters else TensorKind.BUFFER
        first_names.setdefault(id(value), name)
        tensors.append(torch_tensor(name, kind, value))
    scalars: dict[str, float] = {}
    steps: list[float] = []
    if optimizer is not None:
        tensors += _optimizer(optimizer, first_names, scalars, steps)
    return LiveModel(
        framework="torch",
        tensors=tuple(tensors),
        scalars=scalars,
        step=as_step(max(steps)) if steps else None,
    )


def torch_tensor(name: str, kind: TensorKind, value: Any) -> LiveTensor:
    """Return one tensor of PyTorch, with a problem where it has no plain values."""
    dtype = str(value.dtype).removeprefix("torch.")
    shape = tuple(int(size) for size in value.shape)
    problem = _problem(value)
    return LiveTensor(
        name=name,
        kind=refine_kind(name, dtype, len(shape), kind) if kind is TensorKind.OTHER else kind,
        dtype=dtype,
        shape=shape,
        take=None if problem else _taking(value.detach(), dtype),
        identity=None if problem else _identity(value),
        problem=problem,
    )


def _problem(value: Any) -> str | None:
    if type(value).__name__ == "DTensor":
        return "a distributed tensor is not gathered; measure the checkpoint that it is saved to"
    if value.is_meta:
        return "a tensor on the meta device has no values"
    if str(value.layout) != "torch.strided":
        return f"a tensor of layout {value.layout} is not measured"
    return "a quantised tensor is not measured" if value.is_quantized else None


def _identity(value: Any) -> tuple[object, ...] | None:
    if prod(value.shape) == 0:
        return None
    where = (str(value.device), value.data_ptr(), str(value.dtype))
    return (*where, tuple(value.shape), tuple(value.stride()))


def _taking(value: Any, dtype: str) -> Callable[[int, int], Array]:
    import torch  # noqa: PLC0415 - whoever has such a tensor has loaded it

    def take(start: int, stop: int) -> Array:
        part = _stretch(value, start, stop).resolve_conj().resolve_neg().contiguous()
        through = _SEEN_THROUGH.get(dtype)
        if through is None:
            found: Array = part.cpu().numpy()
            return found
        narrow: Array = part.view(getattr(torch, through)).cpu().numpy()
        return narrow.view(np.dtype(getattr(ml_dtypes, dtype)))

    return take


def _stretch(value: Any, start: int, stop: int) -> Any:
    """Return elements start..stop in C order, copying no more than the rows they are in."""
    if value.is_contiguous() or value.dim() <= 1:
        return value.reshape(-1)[start:stop]
    row = prod(value.shape[1:])
    first, last = start // row, -(-stop // row)
    if last - first == 1:
        return _stretch(value[first], start - first * row, stop - first * row)
    return value[first:last].reshape(-1)[start - first * row : stop - first * row]


def _optimizer(
    optimizer: Any, names: Mapping[int, str], scalars: dict[str, float], steps: list[float]
) -> list[LiveTensor]:
    """Return the state of each parameter, in the order of the groups, and note plain numbers and steps."""
    number = 0
    found = []
    for place, group in enumerate(optimizer.param_groups):
        above = f"optimizer.param_groups.{place}"
        for key, value in group.items():
            if key == "params":
                _note(scalars, f"{above}.params.length", len(value))
            elif isinstance(value, list | tuple):
                _note(scalars, f"{above}.{key}.length", len(value))
                for index, part in enumerate(value):
                    _note(scalars, f"{above}.{key}.{index}", part)
            else:
                _note(scalars, f"{above}.{key}", value)
        for parameter in group["params"]:
            base = f"optimizer.state.{names.get(id(parameter), str(number))}"
            number += 1
            for key, value in optimizer.state.get(parameter, {}).items():
                if hasattr(value, "dim"):
                    found.append(torch_tensor(f"{base}.{key}", TensorKind.OPTIMIZER, value))
                else:
                    _note(scalars, f"{base}.{key}", value)
                if key == "step":
                    steps.append(float(value))
    return found


def _note(scalars: dict[str, float], name: str, value: Any) -> None:
    if isinstance(value, int | float) and isfinite(value):
        scalars[name] = float(value)
