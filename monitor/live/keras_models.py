"""Models of Keras in memory, over any of its backends: variables by the names that Keras shows.

The optimizer's variables go by the names of their parameters and the roles that files give them. Variables of a
TensorFlow checkpoint go by their place in the graph of objects.
"""

from __future__ import annotations

from math import isfinite
from typing import Any

from monitor.live.leaves import leaf_tensor
from monitor.live.memory import LiveModel, LiveTensor
from monitor.read.keras.keras_names import kind_of
from monitor.read.keras.keras_optimizer import OptimizerConfig, class_of, optimizer_scalars, role_of_suffix
from monitor.read.naming import as_step
from monitor.read.reader import ReadLimits
from storage.records import TensorKind

_SEED_STATE = "seed_generator_state"


def keras_model(model: Any, optimizer: Any, limits: ReadLimits) -> LiveModel:
    """Return the variables of a model or layer, and with `optimizer` those of the optimizer."""
    is_functional = any(base.__name__ == "Functional" for base in type(model).__mro__)
    tensors: list[LiveTensor] = []
    known_as: dict[str, str] = {}  # what the optimizer calls a variable -> our name for it
    for variable in model.variables:
        path = variable_path(variable)
        if path.endswith(_SEED_STATE):
            continue  # random state, which Keras' own files leave out
        name = path if is_functional else path.partition("/")[2] or path
        known_as[path.replace("/", "_")] = known_as[path] = name
        dtype, shape = str(getattr(variable.dtype, "name", variable.dtype)), tuple(variable.shape)
        tensors.append(leaf_tensor(name, kind_of(name, dtype, len(shape)), variable))
    if optimizer is None:
        return LiveModel(framework="keras", tensors=tuple(tensors))
    states, numbers = _optimizer(optimizer, known_as, tensors)
    step = as_step(numbers.get("iteration", numbers.get("iterations")))
    rate = numbers.get("learning_rate")
    config = _config(optimizer)
    scalars = optimizer_scalars(states, step, rate, config, limits.scalars_max)
    return LiveModel(framework="keras", tensors=tuple(tensors), scalars=scalars, step=step)


def variable_path(variable: Any) -> str:
    """Return the path of a variable of Keras, or the name of one of TensorFlow without its number of outputs."""
    path = getattr(variable, "path", None) or variable.name
    return str(path).removesuffix(":0")


def _optimizer(
    optimizer: Any, known_as: dict[str, str], tensors: list[LiveTensor]
) -> tuple[list[tuple[str, str]], dict[str, float]]:
    """Append the optimizer's variables; return (parameter, role) of each slot and the plain numbers by name."""
    inner = getattr(optimizer, "inner_optimizer", None) or optimizer
    class_name = class_of(type(inner).__name__)
    states: list[tuple[str, str]] = []
    numbers: dict[str, float] = {}
    for variable in optimizer.variables:
        path = variable_path(variable)
        last = path.rpartition("/")[2]
        found = role_of_suffix(last, class_name)
        if found is not None and found[0] in known_as:
            states.append((known_as[found[0]], found[1]))
            name = f"optimizer.state.{known_as[found[0]]}.{found[1]}"
        else:
            name = f"optimizer.{last}"
            if tuple(variable.shape) == ():
                number = float(variable.numpy())
                if isfinite(number):
                    numbers[last] = number
        tensors.append(leaf_tensor(name, TensorKind.OPTIMIZER, variable))
    return states, numbers


def _config(optimizer: Any) -> OptimizerConfig:
    beta1, beta2 = getattr(optimizer, "beta_1", None), getattr(optimizer, "beta_2", None)
    steps = getattr(optimizer, "gradient_accumulation_steps", None)
    return OptimizerConfig(
        beta1=beta1 if isinstance(beta1, float) else None,
        beta2=beta2 if isinstance(beta2, float) else None,
        accumulation_steps=steps if type(steps) is int and steps > 1 else None,
    )
