"""What the keys at the top of a checkpoint mean: which hold the model, which an optimizer, which count the steps.

Pure functions over inert nodes. It gives each entry a name and a kind to start from; walking down is for others.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from monitor.read.naming import (
    AVERAGED_CONTAINERS,
    EPOCH_KEYS,
    MODEL_CONTAINERS,
    STEP_KEYS,
    TRAINER_CONTAINERS,
    as_epoch,
    as_step,
    is_optimizer_key,
    is_side_key,
    printable,
)
from monitor.read.pickles.inert_nodes import Node, Pairs
from monitor.read.pickles.inert_view import component, entries_of, text_keyed
from monitor.read.pytorch.torch_objects import FoundTensor, numpy_scalar, tensor_of
from monitor.read.reader import ReadLimits
from storage.records import TensorKind

SEARCH_VISITS_MAX = 20_000
_SEARCH_WIDTH_MAX = 1000
_KEYS_LOOKED_AT_MAX = 256
_KEY_CHARACTERS = 64
_UNWRAP_MAX = 3

_CONTAINERS = tuple(dict.fromkeys((*MODEL_CONTAINERS, *AVERAGED_CONTAINERS)))  # in the order of preference
_COUNTERS = frozenset({*STEP_KEYS, *EPOCH_KEYS})

_Entries = list[tuple[object, object]]
_Wrapped = tuple[str, _Entries]


@dataclass(frozen=True, slots=True)
class Place:
    """Where a walk stands.

    `name` is the dotted path so far and `longer` the same with the dropped container's name, "" where none was
    dropped. A `fixed` kind was stated by a module and is not refined. `numbers` says whether plain numbers are kept.
    """

    name: str
    kind: TensorKind
    longer: str = ""
    fixed: bool = False
    numbers: bool = True


@dataclass(slots=True)
class Progress:
    """What the top level says of step and epoch; tensors of one element are candidates to be read, best first."""

    step: int | None = None
    epoch: float | None = None
    step_tensors: list[FoundTensor] = field(default_factory=list)
    epoch_tensors: list[FoundTensor] = field(default_factory=list)


def plan(root: object, limits: ReadLimits) -> Iterator[tuple[Place, object]]:
    """Yield where the walk of `root` starts: each entry at the top with the name and kind that its key gives it.

    One after the other, since a file may have a million of them.
    """
    entries = None if _is_optimizer(root) else _top_entries(root)
    if entries is None:
        is_state = _is_optimizer(root)
        yield (Place("optimizer", TensorKind.OPTIMIZER) if is_state else Place("", TensorKind.PARAMETER)), root
        return
    wrapped = _wrapper(entries, limits)
    model = _model_key(_keyed(entries, limits, wrapped))
    is_planned, n_optimizers = False, 0
    for key, value in _keyed(entries, limits, wrapped):
        optimizers = _optimizers(value) if is_optimizer_key(key) else [value] if _is_optimizer(value) else []
        if key == model and not is_planned:
            is_planned = True
            dropped, inner = _unwrapped(key, value)
            yield Place("", TensorKind.PARAMETER, longer=dropped), inner
        elif optimizers:
            for optimizer in optimizers:
                name = "optimizer" if n_optimizers == 0 else f"optimizer.{n_optimizers}"
                yield Place(name, TensorKind.OPTIMIZER), optimizer
                n_optimizers += 1
        else:
            yield Place(key, _kind(key, value, has_model=model is not None)), value


def stated_parameter_names(planned: Iterable[tuple[Place, object]], limits: ReadLimits) -> dict[tuple[str, int], str]:
    """Return the names that optimizers built from named parameters keep: (optimizer, number) to parameter name.

    A group whose names are not one text for each of its numbers gives none.
    """
    found: dict[tuple[str, int], str] = {}
    for place, value in planned:
        if place.kind is not TensorKind.OPTIMIZER or not _is_optimizer(value):
            continue
        groups = text_keyed(entries_of(value) or []).get("param_groups")
        for group in groups[:_KEYS_LOOKED_AT_MAX] if isinstance(groups, list) else ():
            entries = text_keyed(entries_of(group) or [])
            numbers, names = entries.get("params"), entries.get("param_names")
            if not isinstance(numbers, list) or not isinstance(names, list) or len(numbers) != len(names):
                continue
            for number, name in zip(numbers, names, strict=True):
                if type(number) is int and type(name) is str and len(found) < limits.tensors_max:
                    found[place.name, number] = printable(name, limits.name_characters_max // 2)
    return found


def find_progress(root: object, limits: ReadLimits) -> Progress:
    """Look for step and epoch at the top, then inside the containers that trainers use."""
    progress = Progress()
    entries = entries_of(root)
    if entries is None:
        return progress
    wrapped = _wrapper(entries, limits)
    inner_levels = [wrapped[1]] if wrapped is not None else []
    inner_levels += [
        inner
        for key, value in entries
        if type(key) is str and key in TRAINER_CONTAINERS and (inner := entries_of(value)) is not None
    ]
    for level in (entries, *inner_levels):
        values: dict[str, object] = {}
        for name, value in level:
            if type(name) is str and name in _COUNTERS:
                values.setdefault(name, value)
        for key in STEP_KEYS:
            if progress.step is None:
                progress.step = as_step(_number(values.get(key)))
            if (tensor := tensor_of(values.get(key), limits.dimensions_max)) is not None:
                progress.step_tensors.append(tensor)
        for key in EPOCH_KEYS:
            if progress.epoch is None:
                progress.epoch = as_epoch(_number(values.get(key)))
            if (tensor := tensor_of(values.get(key), limits.dimensions_max)) is not None:
                progress.epoch_tensors.append(tensor)
    return progress


def _number(value: object) -> object:
    return numpy_scalar(value) if isinstance(value, Node) else value


def _keyed(entries: _Entries, limits: ReadLimits, wrapped: _Wrapped | None = None) -> Iterator[tuple[str, object]]:
    """Yield entries with their keys as parts of names, and in place of the wrapper what is in it."""
    for key, value in entries:
        name = component(key, limits.name_characters_max)
        if wrapped is None or name != wrapped[0]:
            yield name, value
        else:
            yield from _keyed(wrapped[1], limits)


def _top_entries(root: object) -> _Entries | None:
    """Return the entries of a dict, or of a list or tuple of containers by their places; None for anything else."""
    entries = entries_of(root)
    if entries is not None:
        return entries
    if (
        isinstance(root, list | tuple)
        and len(root) <= _KEYS_LOOKED_AT_MAX
        and any(_is_container(part) for part in root)
    ):
        return [(str(index), part) for index, part in enumerate(root)]
    return None


def _kind(key: str, value: object, *, has_model: bool) -> TensorKind:
    if not _is_container(value):
        return TensorKind.OTHER if has_model or "rng" in key.lower() else TensorKind.PARAMETER
    if is_optimizer_key(key):
        return TensorKind.OPTIMIZER
    return TensorKind.OTHER if has_model or is_side_key(key) else TensorKind.PARAMETER


def _wrapper(entries: _Entries, limits: ReadLimits) -> _Wrapped | None:
    """Return key and entries of the one container that itself holds a model beside an optimizer, if there is one."""
    if _model_key(_keyed(entries, limits)) is not None:
        return None
    for key, value in _keyed(entries[:_KEYS_LOOKED_AT_MAX], limits):
        inner_entries = entries_of(value)
        if inner_entries is None or is_optimizer_key(key) or is_side_key(key):
            continue
        inner = _looked_at(inner_entries)
        if any(is_optimizer_key(name) for name, _ in inner) and _model_key(inner) is not None:
            return key, inner_entries
    return None


def _looked_at(entries: _Entries) -> list[tuple[str, object]]:
    return [(component(name, _KEY_CHARACTERS), part) for name, part in entries[:_KEYS_LOOKED_AT_MAX]]


def _model_key(keyed: Iterable[tuple[str, object]]) -> str | None:
    by_key: dict[str, object] = {}
    for key, value in keyed:
        if key in _CONTAINERS:
            by_key.setdefault(key, value)
    for key in _CONTAINERS:
        if key in by_key and _is_container(by_key[key]) and holds_tensors(by_key[key]):
            return key
    return None


def _unwrapped(key: str, value: object) -> tuple[str, object]:
    """Follow a model container that holds nothing but another one."""
    for _ in range(_UNWRAP_MAX):
        if not isinstance(value, Pairs):
            break
        inner = _looked_at(value.pairs)
        inner_key = _model_key(inner)
        if inner_key is None or any(tensor_of(part, _KEY_CHARACTERS) is not None for _, part in inner):
            break
        key, value = f"{key}.{inner_key}", next(part for name, part in inner if name == inner_key)
    return key, value


def _is_container(value: object) -> bool:
    return isinstance(value, Pairs | Node | list | tuple) and tensor_of(value, _KEY_CHARACTERS) is None


def _is_optimizer(value: object) -> bool:
    entries = entries_of(value)
    if entries is None:
        return False
    return {"state", "param_groups"} <= {key for key, _ in entries[:_KEYS_LOOKED_AT_MAX] if type(key) is str}


def _optimizers(value: object) -> list[object]:
    """Return the optimizer states in the value of an optimizer's key: itself, or those in a list or dict of them."""
    entries = entries_of(value)
    if entries is not None:
        if {"state", "param_groups"} & {key for key, _ in entries[:_KEYS_LOOKED_AT_MAX] if type(key) is str}:
            return [value]
        parts = [part for _, part in entries[:_KEYS_LOOKED_AT_MAX]]
    elif isinstance(value, list | tuple):
        parts = list(value[:_KEYS_LOOKED_AT_MAX])
    else:
        return []
    return parts if parts and all(_is_optimizer(part) for part in parts) else []


def holds_tensors(value: object) -> bool:
    """Say whether a tensor is among the first SEARCH_VISITS_MAX parts below `value`."""
    todo: list[object] = [value]
    seen: set[int] = set()
    for _ in range(SEARCH_VISITS_MAX):
        if not todo:
            return False
        part = todo.pop()
        if tensor_of(part, _KEY_CHARACTERS) is not None:
            return True
        if id(part) in seen:
            continue
        seen.add(id(part))
        if isinstance(part, list | tuple):
            todo.extend(part[:_SEARCH_WIDTH_MAX])
        elif isinstance(part, Pairs):
            todo.extend(inner for _, inner in reversed(part.pairs[:_SEARCH_WIDTH_MAX]))
        elif isinstance(part, Node):
            todo.extend((part.args, part.state))
            todo.extend(inner for _, inner in reversed((part.pairs or [])[:_SEARCH_WIDTH_MAX]))
            todo.extend((part.items or [])[:_SEARCH_WIDTH_MAX])
    return False
