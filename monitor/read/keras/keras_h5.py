"""From the datasets of an HDF5 file to a checkpoint: Keras 3 weights, the older `.h5` of Keras, or any other file.

Which of these it is follows from the places of the datasets. Values are read for numbers without dimensions only.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import inf, isfinite, prod
from typing import Protocol

from monitor.read.keras.hdf5 import Hdf5Dataset, Hdf5Tree
from monitor.read.keras.keras_names import KerasVariable, kind_of, name_variables, split_place
from monitor.read.keras.keras_optimizer import (
    OptimizerConfig,
    Shape,
    Slot,
    class_of,
    match_slots,
    optimizer_scalars,
    own_shapes,
    parse_config,
    parse_json,
    role_in_path,
    role_of_suffix,
)
from monitor.read.naming import EPOCH_KEYS, STEP_KEYS, UniqueNames, as_epoch, as_step, kind_of_flat_name
from monitor.read.reader import Chunk, ReadLimits, TensorSpec
from storage.records import TensorKind

_OPTIMIZER = "optimizer"
_WEIGHTS, _OPTIMIZER_WEIGHTS = "model_weights", "optimizer_weights"
_TRAINING_CONFIG = "training_config"


class DatasetSource(Protocol):
    """What delivers the values of datasets: an HDF5 file, or several."""

    def chunks(self, dataset: Hdf5Dataset) -> Iterator[Chunk]:
        """Yield the values of one dataset in C order of its shape."""


@dataclass(frozen=True, slots=True)
class Hdf5Checkpoint:
    """An open HDF5 file."""

    step: int | None
    epoch: float | None
    scalars: Mapping[str, float]
    tensors: tuple[TensorSpec, ...]
    file: DatasetSource

    def chunks(self, spec: TensorSpec) -> Iterator[Chunk]:
        """Yield the values of one dataset in C order of its shape."""
        assert isinstance(spec.key, Hdf5Dataset)
        return self.file.chunks(spec.key)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Named:
    dataset: Hdf5Dataset
    name: str
    kind: TensorKind


@dataclass(frozen=True, slots=True, kw_only=True)
class _Found:
    """What a dialect made of the file; `numbers` are plain numbers under their own names."""

    tensors: Sequence[_Named]
    scalars: Mapping[str, float]
    step: int | None
    epoch: float | None = None


def open_hdf5(
    file: DatasetSource, tree: Hdf5Tree, limits: ReadLimits, config: OptimizerConfig | None = None
) -> Hdf5Checkpoint:
    """Make a checkpoint of a file's datasets; `config` is what a configuration beside the file says."""
    if tree.datasets and all(split_place(d.path) for d in tree.datasets):
        found = _keras3(file, tree, limits, config or OptimizerConfig())
    elif _WEIGHTS in tree.attributes or _texts(tree, "", "layer_names"):
        found = _legacy(file, tree, limits)
    else:
        found = _plain(file, tree, limits)
    names = UniqueNames(limits.name_characters_max)
    owners: dict[int, str] = {}
    specs = []
    for item in found.tensors:
        name = names.claim(item.name, item.dataset.path)
        owner = owners.setdefault(item.dataset.address, name)
        specs.append(
            TensorSpec(
                name=name,
                kind=item.kind,
                dtype=item.dataset.dtype or "unknown",
                shape=item.dataset.shape,
                n_elements=prod(item.dataset.shape),
                key=item.dataset,
                tied_to=None if owner == name else owner,
                problem=item.dataset.problem,
            )
        )
    return Hdf5Checkpoint(step=found.step, epoch=found.epoch, scalars=found.scalars, tensors=tuple(specs), file=file)


def _texts(tree: Hdf5Tree, path: str, name: str) -> tuple[str, ...]:
    """Return a list of texts, also where Keras had to spread it over several attributes."""
    attributes = tree.attributes.get(path, {})
    if name in attributes:
        return attributes[name]
    parts: list[str] = []
    number = 0
    while (part := attributes.get(f"{name}{number}")) is not None:
        parts.extend(part)
        number += 1
    return tuple(parts)


def _number(file: DatasetSource, dataset: Hdf5Dataset) -> int | float | None:
    """Return the value of a dataset without dimensions, None where it is no finite real number."""
    if dataset.shape != () or dataset.problem is not None or not dataset.dtype.startswith(("int", "uint", "float")):
        return None
    for chunk in file.chunks(dataset):
        value = chunk.values[0].item()
        if isinstance(value, int | float) and isfinite(value):
            return value
    return None


def _plain(file: DatasetSource, tree: Hdf5Tree, limits: ReadLimits) -> _Found:
    named: list[_Named] = []
    numbers: dict[str, int | float] = {}
    for dataset in tree.datasets:
        kind = kind_of_flat_name(dataset.path.replace("/", "."), dataset.dtype, len(dataset.shape))
        named.append(_Named(dataset=dataset, name=dataset.path, kind=kind))
        if len(numbers) < limits.scalars_max and (number := _number(file, dataset)) is not None:
            numbers[dataset.path] = number
    return _Found(
        tensors=named,
        scalars={name: float(number) for name, number in numbers.items()},
        step=next((step for key in STEP_KEYS if (step := as_step(numbers.get(key))) is not None), None),
        epoch=next((epoch for key in EPOCH_KEYS if (epoch := as_epoch(numbers.get(key))) is not None), None),
    )


def _keras3(file: DatasetSource, tree: Hdf5Tree, limits: ReadLimits, config: OptimizerConfig) -> _Found:
    layer_names = {path: text[0] for path in tree.attributes if (text := _texts(tree, path, "name"))}
    model = [d for d in tree.datasets if not d.path.startswith(f"{_OPTIMIZER}/")]
    variables = name_variables([d.path for d in model], [d.shape for d in model], [d.dtype for d in model], layer_names)
    named = [_Named(dataset=model[v.index], name=v.name, kind=v.kind) for v in variables.model]
    trained = [v for v in variables.model if v.kind is TensorKind.PARAMETER and not _is_frozen(v, config)]
    lists: dict[tuple[str, ...], list[Hdf5Dataset]] = {}
    for dataset in tree.datasets:
        place = split_place(dataset.path)
        if place is not None and dataset.path.startswith(f"{_OPTIMIZER}/"):
            lists.setdefault(place[0], []).append(dataset)
    if not lists:
        return _Found(tensors=named, scalars={}, step=None)
    main = max(lists, key=lambda place: (len(lists[place]), len(place)))  # not the wrapper that scales the loss
    rest = [d for place, group in lists.items() if place != main for d in group]
    named += [_optimizer_variable(d, d.path.replace("/", ".")) for d in rest]
    class_name = config.class_name or class_of(layer_names.get("/".join((*main, "vars")), ""))
    parameters = [(v.name, model[v.index].shape) for v in trained] if variables.is_order_known else None
    slots, scalars, step = _keras3_slots(file, lists[main], (class_name, parameters, config), limits)
    return _Found(tensors=[*named, *slots], scalars=scalars, step=step)


def _keras3_slots(
    file: DatasetSource,
    datasets: Sequence[Hdf5Dataset],
    model: tuple[str, Sequence[tuple[str, Shape]] | None, OptimizerConfig],
    limits: ReadLimits,
) -> tuple[list[_Named], dict[str, float], int | None]:
    """Name an optimizer's numbered variables; `model` is its class, the trained parameters if in order, its config."""
    class_name, parameters, config = model
    datasets = sorted(datasets, key=_position)
    iterations = as_step(_number(file, datasets[0])) if datasets[0].dtype.startswith("int") else None
    if iterations is None:
        return [_optimizer_variable(d, d.path.replace("/", ".")) for d in datasets], {}, None
    named = [_optimizer_variable(datasets[0], f"{_OPTIMIZER}.iteration")]
    has_rate = len(datasets) > 1 and datasets[1].shape == () and datasets[1].dtype.startswith("float")
    rate, slots, owners = None, None, None
    for n_head in (2, 1) if has_rate else (1,):
        shapes = [d.shape for d in datasets[n_head:]]
        slots, owners = _match(class_name, shapes, parameters, config)
        if slots is not None:
            break
    if has_rate and n_head == (2 if slots is not None else 1):
        rate = _number(file, datasets[1])
        named.append(_optimizer_variable(datasets[1], f"{_OPTIMIZER}.learning_rate"))
        n_head = 2
    states: list[tuple[str, str]] = []
    for i, dataset in enumerate(datasets[n_head:]):
        slot = slots[i] if slots is not None else None
        if slot is None or owners is None:
            named.append(_optimizer_variable(dataset, dataset.path.replace("/", ".")))
            continue
        states.append((owners[slot.parameter], slot.role))
        named.append(_optimizer_variable(dataset, f"{_OPTIMIZER}.state.{owners[slot.parameter]}.{slot.role}"))
    scalars = optimizer_scalars(states, iterations, rate, config, limits.scalars_max)
    return named, scalars, iterations


def _match(
    class_name: str,
    shapes: Sequence[Shape],
    parameters: Sequence[tuple[str, Shape]] | None,
    config: OptimizerConfig,
) -> tuple[tuple[Slot | None, ...] | None, Sequence[str] | None]:
    """Return the slots and the names of their parameters: by name where the whole sequence fits, else by number."""
    if parameters is not None:
        slots = match_slots(class_name, shapes, [shape for _, shape in parameters], config)
        if slots is not None:
            return slots, [name for name, _ in parameters]
    told = own_shapes(class_name, shapes)
    if told is None:
        return None, None
    return match_slots(class_name, shapes, told, config), [str(i) for i in range(len(told))]


def _position(dataset: Hdf5Dataset) -> tuple[float, str]:
    key = dataset.path.rpartition("/")[2]
    return (int(key) if key.isdecimal() and len(key) < 10 else inf, key)


def _is_frozen(variable: KerasVariable, config: OptimizerConfig) -> bool:
    return any(variable.name.startswith(f"{layer}/") for layer in config.frozen)


def _optimizer_variable(dataset: Hdf5Dataset, name: str) -> _Named:
    return _Named(dataset=dataset, name=name, kind=TensorKind.OPTIMIZER)


def _legacy(file: DatasetSource, tree: Hdf5Tree, limits: ReadLimits) -> _Found:
    root = f"{_WEIGHTS}/" if _WEIGHTS in tree.attributes else ""
    by_path = {d.path: d for d in tree.datasets}
    known_as: dict[str, str] = {}  # what the optimizer calls a parameter -> our name for it
    named: list[_Named] = []
    layers = (*_texts(tree, root.rstrip("/"), "layer_names"), "top_level_model_weights")
    for layer in layers:
        for weight in _texts(tree, f"{root}{layer}", "weight_names"):
            dataset = by_path.pop(f"{root}{layer}/{weight}", None)
            if dataset is None:
                continue
            plain = weight.removesuffix(":0")
            at = f"/{plain}".find(f"/{layer}/")
            name = plain[at:] if at > 0 else plain
            named.append(_Named(dataset=dataset, name=name, kind=kind_of(name, dataset.dtype, len(dataset.shape))))
            known_as[plain] = known_as[plain.replace("/", "_")] = name
    training = parse_json("".join(_texts(tree, "", _TRAINING_CONFIG)))
    config = parse_config(parse_json("".join(_texts(tree, "", "model_config"))), training if training else {})
    states: list[tuple[str, str]] = []
    numbers: dict[str, int | float | None] = {}
    for weight in _texts(tree, _OPTIMIZER_WEIGHTS, "weight_names"):
        dataset = by_path.pop(f"{_OPTIMIZER_WEIGHTS}/{weight}", None)
        if dataset is None:
            continue
        name = _legacy_slot(weight.removesuffix(":0"), config.class_name, known_as, states)
        numbers[name.rpartition(".")[2]] = _number(file, dataset) if dataset.shape == () else None
        named.append(_optimizer_variable(dataset, name))
    for path, dataset in by_path.items():
        kind = kind_of_flat_name(path.replace("/", "."), dataset.dtype, len(dataset.shape))
        named.append(_Named(dataset=dataset, name=path.removeprefix(root), kind=kind))
    step = as_step(numbers.get("iteration"))
    scalars = optimizer_scalars(states, step, numbers.get("learning_rate"), config, limits.scalars_max)
    return _Found(tensors=named, scalars=scalars, step=step)


def _legacy_slot(
    weight: str, class_name: str | None, known_as: Mapping[str, str], states: list[tuple[str, str]]
) -> str:
    """Return our name for a variable of an optimizer that is named after its parameter; note its role in `states`."""
    first, _, inner = weight.removeprefix("training/").partition("/")
    class_name = class_name or class_of(first)
    for found in (role_of_suffix(inner, class_name), role_in_path(weight.removeprefix("training/"), class_name)):
        if found is not None and found[0] in known_as:
            states.append((known_as[found[0]], found[1]))
            return f"{_OPTIMIZER}.state.{known_as[found[0]]}.{found[1]}"
    local = (inner or weight).replace("/", ".")
    return f"{_OPTIMIZER}.{'iteration' if local == 'iter' else local}"
