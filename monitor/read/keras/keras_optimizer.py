"""The variables of a Keras optimizer: which parameter each belongs to, and what it is called elsewhere.

Keras saves them as a list without names: the iterations, the learning rate, then one or more per trainable variable.
They are given to parameters only where exactly one layout of the optimizer's class fits the whole sequence of shapes.
The names are PyTorch's (`exp_avg`, `exp_avg_sq`), so that one mathematics serves both.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from monitor.read.bounded_json import check_json_cost
from monitor.read.naming import ASSUMED_BETA2, MOMENTUM_HOLDS_RATE
from monitor.read.reader import LimitError

Shape = tuple[int, ...]

_CONFIG_DEPTH_MAX = 64
_ADAM = {"momentum": "exp_avg", "velocity": "exp_avg_sq", "velocity_hat": "max_exp_avg_sq"}
_RMSPROP = {"velocity": "square_avg", "momentum": "momentum_buffer", "average_gradient": "grad_avg"}
_ROLES: dict[str, dict[str, str]] = {
    **dict.fromkeys(("adam", "adam_w", "adamw", "nadam", "lamb"), _ADAM),
    "adamax": {"momentum": "exp_avg", "norm": "exp_inf"},
    "sgd": {"momentum": "momentum_buffer"},
    "lion": {"momentum": "exp_avg"},
    "rm_sprop": _RMSPROP,
    "rmsprop": _RMSPROP,
    "adagrad": {"accumulator": "sum"},
    "adadelta": {"accumulated_grad": "square_avg", "accumulated_delta_var": "acc_delta"},
    "ftrl": {"accumulator": "accumulator", "linear": "linear"},
}
# By class, the layouts a list can have: each a sequence of blocks; a block holds its roles for one parameter after the
# other.
_PAIR = ("momentum", "velocity")
_Layout = tuple[tuple[str, ...], ...]
_LAYOUTS: dict[str, tuple[_Layout, ...]] = {
    **dict.fromkeys(("adam", "adam_w", "adamw"), ((_PAIR,), (_PAIR, ("velocity_hat",)))),
    **dict.fromkeys(("nadam", "lamb"), ((_PAIR,),)),
    "adamax": ((("momentum", "norm"),),),
    "sgd": ((), (("momentum",),)),
    "lion": ((("momentum",),),),
    **dict.fromkeys(
        ("rm_sprop", "rmsprop"),
        tuple(
            (("velocity",), *momentum, *average)
            for momentum in ((), (("momentum",),))
            for average in ((), (("average_gradient",),))
        ),
    ),
    "adagrad": ((("accumulator",),),),
    "adadelta": ((("accumulated_grad", "accumulated_delta_var"),),),
    "ftrl": ((("accumulator", "linear"),),),
}
_BEFORE: tuple[_Layout, ...] = (
    (),
    (("average",),),
    (("gradient_accumulator",),),
    (("average",), ("gradient_accumulator",)),
)
# The same in the paths of TF-Keras.
_PATH_ROLES = {
    "m": "exp_avg",
    "v": "exp_avg_sq",
    "vhat": "max_exp_avg_sq",
    "rms": "square_avg",
    "velocity": "square_avg",
    "momentum": "momentum_buffer",
    "mg": "grad_avg",
    "accumulator": "sum",
}
_OPTIONAL = frozenset({"average", "gradient_accumulator", "velocity_hat", "average_gradient"})
_MOMENTUM_IS_OPTIONAL = ("sgd", "rm_sprop", "rmsprop")
_SETTINGS = {  # under which setting of its configuration an optimizer has these
    "average": "use_ema",
    "gradient_accumulator": "gradient_accumulation_steps",
    "velocity_hat": "amsgrad",
    "average_gradient": "centered",
    "momentum": "momentum",
}
_COMMON = ("average", "gradient_accumulator")
_SECOND_MOMENT = "exp_avg_sq"
_BETA2_DEFAULT = 0.999  # of every optimizer of Keras that has one: Adam, AdamW, Nadam, Lamb, Muon
_NUMBER = re.compile(r"_\d+$")


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimizerConfig:
    """What a model's configuration says about its optimizer; None and empty where it says nothing."""

    class_name: str | None = None
    beta1: float | None = None
    beta2: float | None = None
    momentum: float | None = None  # of SGD, whose buffer holds the learning rate too
    rho: float | None = None
    optional: frozenset[str] | None = None  # which of the variables that not every optimizer of its class has it has
    accumulation_steps: int | None = None
    frozen: frozenset[str] = field(default_factory=frozenset)  # names of layers that are not trained


@dataclass(frozen=True, slots=True, kw_only=True)
class Slot:
    """What one variable of an optimizer is: `parameter` is the place of its parameter among those given."""

    parameter: int
    role: str


def snake_case(class_name: str) -> str:
    """Return the name under which Keras files an object of this class."""
    text = re.sub("(.)([A-Z][a-z]+)", r"\1_\2", re.sub(r"\W+", "", class_name))
    return re.sub("([a-z])([A-Z])", r"\1_\2", text).lower()


def class_of(name: str) -> str:
    """Return the class, in snake case, of an optimizer that bears this name."""
    return _NUMBER.sub("", snake_case(name.rpartition(">")[2]))


def match_slots(
    class_name: str, shapes: Sequence[Shape], parameters: Sequence[Shape], config: OptimizerConfig
) -> tuple[Slot | None, ...] | None:
    """Say what each of an optimizer's variables is, given the shapes of the trained parameters in order.

    `shapes` are those after the iterations and the learning rate. Returns None unless exactly one layout of the class
    fits the whole sequence; what few use (averages, accumulators of gradients) is only thought of when nothing else
    fits. Scalars that a class keeps behind the rest are None in it.
    """
    optional = _OPTIONAL | {"momentum"} if class_name in _MOMENTUM_IS_OPTIONAL else _OPTIONAL
    for before in _BEFORE:
        found: set[tuple[Slot | None, ...]] = set()
        for layout in _LAYOUTS.get(class_name, ()):
            blocks = (*before, *layout)
            roles = {role for block in blocks for role in block}
            if config.optional is not None and roles & optional != config.optional & optional:
                continue
            slots = [Slot(parameter=i, role=role) for block in blocks for i in range(len(parameters)) for role in block]
            if [parameters[slot.parameter] for slot in slots] != list(shapes[: len(slots)]):
                continue
            rest = shapes[len(slots) :]
            if not rest or (class_name == "nadam" and list(rest) == [()]):
                named = (Slot(parameter=s.parameter, role=torch_role(s.role, class_name)) for s in slots)
                found.add((*named, *(None for _ in rest)))
        if found:
            return found.pop() if len(found) == 1 else None
    return None


def own_shapes(class_name: str, shapes: Sequence[Shape]) -> tuple[Shape, ...] | None:
    """Return the shapes of the trained parameters as the optimizer's list tells them, None where it does not.

    For where the order of the parameters is not known: then the slots are told apart by number, not by name.
    """
    layout = _LAYOUTS.get(class_name, ())
    if not layout:
        return None
    n_roles = len(layout[0][0]) if layout[0] else 1
    if len(shapes) % n_roles:
        return None
    parameters = tuple(shapes[::n_roles])
    return parameters if all(tuple(shapes[i::n_roles]) == parameters for i in range(n_roles)) else None


def torch_role(role: str, class_name: str) -> str:
    """Return PyTorch's name for what a Keras optimizer of this class calls `role`, the same where it has none."""
    return _ROLES.get(class_name, {}).get(role, role)


def role_of_suffix(name: str, class_name: str) -> tuple[str, str] | None:
    """Return (parameter, role) of a variable named `<parameter>_<role>`, None for one that is named otherwise."""
    roles = {**_ROLES.get(class_name, {}), **{role: role for role in _COMMON}}
    for role in sorted(roles, key=len, reverse=True):
        if name.endswith(f"_{role}"):
            return name.removesuffix(f"_{role}"), roles[role]
    return None


def role_in_path(name: str, class_name: str) -> tuple[str, str] | None:
    """Return (parameter, role) of a variable of a TF-Keras optimizer, `Adam/m/<parameter>` or `Adam/<parameter>/m`."""
    roles = {part: role for part, role in _PATH_ROLES.items() if role in _ROLES.get(class_name, {}).values()}
    if class_name == "sgd":
        roles = {"m": "momentum_buffer", "momentum": "momentum_buffer"}
    _, _, inner = name.partition("/")
    for part, role in roles.items():
        if inner.startswith(f"{part}/"):
            return inner.removeprefix(f"{part}/"), role
        if inner.endswith(f"/{part}"):
            return inner.removesuffix(f"/{part}"), role
    return None


def optimizer_scalars(
    states: Sequence[tuple[str, str]],
    iterations: int | None,
    learning_rate: float | None,
    config: OptimizerConfig,
    n_max: int,
) -> dict[str, float]:
    """Return the numbers that go with an optimizer's states, given as (parameter, role), in PyTorch's names.

    Where a second moment is there but no beta2 is stated, the default of Keras is added as what it is: assumed.
    With more than `n_max` of them the steps of the single states are left out, all of them: half would mislead.
    """
    scalars: dict[str, float] = {}
    if learning_rate is not None and math.isfinite(learning_rate):
        scalars["optimizer.param_groups.0.lr"] = learning_rate
    for i, beta in enumerate((config.beta1, config.beta2)):
        if beta is not None:
            scalars[f"optimizer.param_groups.0.betas.{i}"] = beta
    if config.rho is not None:
        scalars["optimizer.param_groups.0.rho"] = config.rho
    if config.momentum:
        scalars |= {"optimizer.param_groups.0.momentum": config.momentum, MOMENTUM_HOLDS_RATE: 1.0}
    if config.beta2 is None and any(role == _SECOND_MOMENT for _, role in states):
        scalars[ASSUMED_BETA2] = _BETA2_DEFAULT
    if iterations is None:
        return scalars
    scalars["optimizer.step"] = iterations
    steps = iterations // (config.accumulation_steps or 1)
    names = [parameter for parameter, role in states if role == _SECOND_MOMENT]
    accumulates = any(role == "gradient_accumulator" for _, role in states) and config.accumulation_steps is None
    if len(scalars) + len(names) <= n_max and not accumulates:
        scalars.update({f"optimizer.state.{name}.step": float(steps) for name in names})
    return scalars


def parse_config(model: object, training: object = None) -> OptimizerConfig:
    """Return what a model's configuration says; `model` is `config.json`, `training` a legacy `training_config`.

    Both are data from a file: anything may be missing or of another kind.
    """
    described = _at(training, "optimizer_config") if training is not None else _at(model, "compile_config", "optimizer")
    settings = _at(described, "config")
    inner = _at(settings, "inner_optimizer")
    if inner is not None:
        described, settings = inner, _at(inner, "config")
    class_name = _at(described, "class_name")
    accumulation = _at(settings, "gradient_accumulation_steps")
    optional = frozenset(role for role, setting in _SETTINGS.items() if _at(settings, setting))
    return OptimizerConfig(
        class_name=class_of(class_name) if isinstance(class_name, str) else None,
        beta1=_fraction(_at(settings, "beta_1")),
        beta2=_fraction(_at(settings, "beta_2")),
        momentum=_fraction(_at(settings, "momentum")) if class_name == "SGD" else None,
        rho=_fraction(_at(settings, "rho")),
        optional=optional if isinstance(settings, dict) else None,
        accumulation_steps=accumulation if type(accumulation) is int and 1 < accumulation < 2**31 else None,
        frozen=frozenset(_frozen(model)),
    )


def parse_json(text: str | bytes) -> object:
    """Return a configuration's JSON, None where it is none or too large to be one."""
    try:
        raw = text.encode() if isinstance(text, str) else text
        check_json_cost(raw, "the configuration")
        value: object = json.loads(raw.decode("utf-8"))
    except (ValueError, RecursionError, LimitError):
        return None
    return value


def _at(value: object, *keys: str) -> object:
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return value


def _fraction(value: object) -> float | None:
    return float(value) if isinstance(value, float | int) and 0 <= value < 1 else None


def _frozen(model: object) -> list[str]:
    """Return the paths of names of layers that say `trainable: false`, outer before inner."""
    found: list[str] = []
    waiting: list[tuple[object, tuple[str, ...], int]] = [
        (layer, (), 0) for layer in _list(_at(model, "config", "layers"))
    ]
    while waiting:
        layer, outer, depth = waiting.pop()
        settings = _at(layer, "config")
        name = _at(settings, "name")
        if not isinstance(name, str) or depth > _CONFIG_DEPTH_MAX:
            continue
        path = (*outer, name)
        if _at(settings, "trainable") is False:
            found.append("/".join(path))
            continue
        waiting.extend((part, path, depth + 1) for part in _list(_at(settings, "layers")))
        waiting.extend((_at(settings, key), path, depth + 1) for key in ("layer", "forward_layer", "backward_layer"))
    return found


def _list(value: object) -> list[object]:
    return value if isinstance(value, list) else []
