"""Whatever TensorFlow tracks in memory: checkpoints, modules, optimizers. Variables go by their place among objects.

Models and optimizers of Keras within go by Keras' own names, as in the files that they are saved to.
"""

from __future__ import annotations

from collections import deque
from math import isfinite
from typing import Any

from monitor.live.keras_models import keras_model
from monitor.live.leaves import is_leaf, leaf_tensor, owners
from monitor.live.memory import LiveModel, LiveTensor
from monitor.read.keras.keras_names import kind_of
from monitor.read.naming import EPOCH_KEYS, STEP_KEYS, as_epoch, as_step, is_optimizer_key
from monitor.read.reader import LimitError, ReadLimits
from storage.records import TensorKind

_COUNTERS = frozenset({*STEP_KEYS, *EPOCH_KEYS, "save_counter"})
_OBJECTS_MAX = 1_000_000


def tensorflow_object(root: Any, optimizer: Any, limits: ReadLimits) -> LiveModel:
    """Return the variables that an object of TensorFlow tracks, nearest first.

    `optimizer` is one of Keras that is not tracked itself, None for none. Raises LimitError for a graph of very many
    objects.
    """
    plain, models, optimizers = _found(root)
    optimizer = optimizer or next(iter(optimizers), None)
    tensors: list[LiveTensor] = []
    scalars: dict[str, float] = {}
    step = None
    for place, model in enumerate(models):
        inner = keras_model(model, optimizer if place == 0 else None, limits)
        tensors += inner.tensors
        scalars |= inner.scalars
        step = step if step is not None else inner.step
    known = {tensor.identity for tensor in tensors}
    numbers: dict[str, float] = {}
    for name, variable in plain:
        tensor = leaf_tensor(name, _kind(name, variable), variable)
        if tensor.identity in known:
            continue
        tensors.append(tensor)
        if tensor.shape == () and tensor.take is not None and tensor.dtype.startswith(("int", "uint", "float")):
            number = float(tensor.take(0, 1)[0])
            if isfinite(number):
                numbers[name] = number
    steps = (as_step(numbers.get(key)) for key in STEP_KEYS)
    epochs = (as_epoch(numbers.get(key)) for key in EPOCH_KEYS)
    return LiveModel(
        framework="tensorflow",
        tensors=tuple(tensors),
        scalars=scalars | numbers,
        step=next((s for s in steps if s is not None), step),
        epoch=next((e for e in epochs if e is not None), None),
    )


def _found(root: Any) -> tuple[list[tuple[str, Any]], list[Any], list[Any]]:
    """Return (place, variable) of plain variables, and the models and optimizers of Keras, all nearest first."""
    import tensorflow as tf  # noqa: PLC0415 - whoever has such an object has loaded it

    view = tf.train.TrackableView(root)
    plain: list[tuple[str, Any]] = []
    models: list[Any] = []
    optimizers: list[Any] = []
    seen = {id(root)}
    waiting: deque[tuple[str, Any]] = deque([("", root)])
    while waiting:
        place, here = waiting.popleft()
        if is_keras(here) and hasattr(here, "variables"):
            (optimizers if hasattr(here, "apply_gradients") or hasattr(here, "apply") else models).append(here)
            continue
        if is_leaf(here):
            plain.append((place or "variable", here))
            continue
        for name, child in view.children(here).items():
            if id(child) in seen:
                continue
            if len(seen) > _OBJECTS_MAX:
                raise LimitError(f"the object tracks more than {_OBJECTS_MAX} others")
            seen.add(id(child))
            waiting.append((f"{place}/{name}" if place else name, child))
    return plain, models, optimizers


def is_keras(value: object) -> bool:
    """Say whether a value is a model, layer or optimizer of Keras."""
    return bool(owners(value) & {"keras", "tf_keras"})


def _kind(name: str, variable: Any) -> TensorKind:
    first, _, inner = name.partition("/")
    if inner and is_optimizer_key(first):
        return TensorKind.OPTIMIZER
    dimensions = len(variable.shape)
    if dimensions == 0 and name in _COUNTERS:
        return TensorKind.OTHER
    return kind_of(name, str(variable.dtype.name), dimensions)
