"""A tree of inert nodes to a flat list of named tensors and plain numbers.

The walk keeps its own stack, cuts cycles, and charges for every visit, so that neither depth nor shared parts can
make it long. It must not read values.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from math import isfinite

from monitor.read.inert_nodes import Items, Node, Pairs, Ref
from monitor.read.naming import (
    AVERAGED_CONTAINERS,
    EPOCH_KEYS,
    MODEL_CONTAINERS,
    STEP_KEYS,
    TRAINER_CONTAINERS,
    UniqueNames,
    as_epoch,
    as_step,
    is_optimizer_key,
    is_side_key,
    joined,
    printable,
    refine_kind,
)
from monitor.read.reader import LimitError, ReadLimits
from monitor.read.torch_objects import FoundTensor, bytes_of, numpy_scalar, tensor_of
from storage.records import TensorKind

LIST_NUMBERS_MAX = 16  # of a longer list of plain numbers only the length is kept
REVISITS_MAX = 100_000  # visits to parts that were visited before, counted with what is in them
VISITS_MAX = 5_000_000
SEARCH_VISITS_MAX = 20_000
ROOT_TENSOR_NAME = "tensor"


@dataclass(frozen=True, slots=True)
class NamedTensor:
    """A tensor with its final name and kind."""

    name: str
    kind: TensorKind
    tensor: FoundTensor


@dataclass(slots=True)
class Flattened:
    """All tensors in order, all kept numbers by dotted path, and what the top level says of step and epoch.

    `step_tensors` and `epoch_tensors` are candidates whose value has to be read: tensors of one element, best first.
    """

    tensors: list[NamedTensor] = field(default_factory=list)
    scalars: dict[str, float] = field(default_factory=dict)
    step: int | None = None
    epoch: float | None = None
    step_tensors: list[FoundTensor] = field(default_factory=list)
    epoch_tensors: list[FoundTensor] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Place:
    """Where the walk stands: the name so far, what it was called before a container was dropped, and its role."""

    name: str
    kind: TensorKind
    longer: str = ""
    fixed: bool = False  # the kind was stated by a module and is not refined
    numbers: bool = True


def flatten(root: object, limits: ReadLimits) -> Flattened:
    """Walk everything reachable from `root`; raise LimitError beyond the limits of depth, visits or tensors."""
    walk = _Walk(limits)
    found = walk.found
    entries = _entries(root)
    if entries is None:
        walk.run([(_Place("", TensorKind.PARAMETER), root)])
    else:
        walk.run(_plan(entries, limits))
        _read_progress(entries, found, limits)
    found.scalars = dict(list((walk.optimizer_scalars | walk.scalars).items())[: limits.scalars_max])
    return found


class _Walk:
    """The walk itself: an explicit stack of iterators, one a level."""

    __slots__ = ("_limits", "_names", "_on_path", "_revisits", "_seen", "found", "optimizer_scalars", "scalars")

    def __init__(self, limits: ReadLimits) -> None:
        self._limits = limits
        self._names = UniqueNames(limits.name_characters_max)
        self._seen: set[int] = set()
        self._on_path: set[int] = set()
        self._revisits = 0
        self.found = Flattened()
        self.scalars: dict[str, float] = {}
        self.optimizer_scalars: dict[str, float] = {}

    def run(self, start: Iterable[tuple[_Place, object]]) -> None:
        """Visit everything below `start`, in order, depth first."""
        stack: list[tuple[int, Iterator[tuple[_Place, object]]]] = [(0, iter(start))]
        visits = 0
        while stack:
            identity, children = stack[-1]
            step = next(children, None)
            if step is None:
                stack.pop()
                self._on_path.discard(identity)
                continue
            visits += 1
            if visits > VISITS_MAX:
                raise LimitError(f"the checkpoint has more than {VISITS_MAX} parts")
            place, value = step
            below = self._visit(place, value)
            if below is not None:
                if len(stack) > self._limits.nesting_depth_max:
                    raise LimitError(f"the checkpoint is nested deeper than {self._limits.nesting_depth_max} levels")
                self._on_path.add(id(value))
                stack.append((id(value), below))

    def _visit(self, place: _Place, value: object) -> Iterator[tuple[_Place, object]] | None:
        """Keep a leaf, or return the children of a container that is to be entered."""
        kind = type(value)
        if kind in (int, float, bool):
            self._keep_number(place, value)
            return None
        if value is None or kind in (str, bytes, Ref):
            return None
        tensor = tensor_of(value, self._limits.dimensions_max)
        if tensor is not None:
            self._keep_tensor(place, tensor)
            return None
        if isinstance(value, Node):
            number = numpy_scalar(value)
            if number is not None:
                self._keep_number(place, number)
                return None
            if bytes_of(value) is not None:
                return None
        if not self._may_enter(value):
            return None
        return self._children(place, value)

    def _may_enter(self, value: object) -> bool:
        identity = id(value)
        if identity in self._on_path:
            return False  # a cycle
        if identity in self._seen:
            self._revisits += 1 + _size(value)
            return self._revisits <= REVISITS_MAX
        self._seen.add(identity)
        return True

    def _children(self, place: _Place, value: object) -> Iterator[tuple[_Place, object]]:
        if isinstance(value, list | tuple):
            return self._sequence(place, value)
        if isinstance(value, Items):
            return self._sequence(place, value.items)
        entries = _entries(value)
        if entries is not None:
            return self._mapping(place, entries)
        assert isinstance(value, Node)
        return self._object(place, value)

    def _mapping(self, place: _Place, entries: list[tuple[object, object]]) -> Iterator[tuple[_Place, object]]:
        for key, value in entries:
            yield self._below(place, component(key, self._limits.name_characters_max)), value

    def _sequence(self, place: _Place, values: list[object] | tuple[object, ...]) -> Iterator[tuple[_Place, object]]:
        if values and all(type(value) in (int, float, bool) for value in values):
            self._keep_number(self._below(place, "length"), len(values))
            if len(values) > LIST_NUMBERS_MAX:
                return
        for index, value in enumerate(values):
            yield self._below(place, str(index)), value

    def _object(self, place: _Place, node: Node) -> Iterator[tuple[_Place, object]]:
        """Walk an object: a module by its tables, anything else by arguments, state, items and pairs."""
        attributes = state_entries(node.state)
        tables = {key: value for key, value in attributes if type(key) is str} if is_module(attributes) else None
        if tables is not None:
            quiet = replace(place, numbers=False)
            yield from self._table(quiet, tables.get("_parameters"), TensorKind.PARAMETER)
            yield from self._table(quiet, tables.get("_buffers"), TensorKind.BUFFER)
            for key, module in _entries(tables.get("_modules")) or ():
                yield self._below(quiet, component(key, self._limits.name_characters_max)), module
            for key, value in attributes:
                if type(key) is str and key not in _MODULE_TABLES:
                    other = replace(quiet, kind=TensorKind.OTHER) if quiet.kind is TensorKind.PARAMETER else quiet
                    yield self._below(other, component(key, self._limits.name_characters_max)), value
            return
        if isinstance(node.args, tuple):
            for index, value in enumerate(node.args):
                yield (place if len(node.args) == 1 else self._below(place, str(index))), value
        for key, value in attributes:
            yield self._below(place, component(key, self._limits.name_characters_max)), value
        for key, value in node.pairs or ():
            yield self._below(place, component(key, self._limits.name_characters_max)), value
        for index, value in enumerate(node.items or ()):
            yield self._below(place, str(index)), value

    def _table(self, place: _Place, table: object, kind: TensorKind) -> Iterator[tuple[_Place, object]]:
        stated = place.kind if place.kind is not TensorKind.PARAMETER else kind
        for key, value in _entries(table) or ():
            below = self._below(place, component(key, self._limits.name_characters_max))
            yield replace(below, kind=stated, fixed=True), value

    def _below(self, place: _Place, name: str) -> _Place:
        longest = self._limits.name_characters_max
        longer = joined(place.longer, name, longest) if place.longer else ""
        return replace(place, name=joined(place.name, name, longest), longer=longer)

    def _keep_number(self, place: _Place, value: object) -> None:
        assert isinstance(value, int | float)
        if not place.numbers or not place.name or not isfinite(value):
            return
        kept = self.optimizer_scalars if place.kind is TensorKind.OPTIMIZER else self.scalars
        if len(kept) < self._limits.scalars_max:
            kept.setdefault(place.name, float(value))

    def _keep_tensor(self, place: _Place, tensor: FoundTensor) -> None:
        if len(self.found.tensors) >= self._limits.tensors_max:
            raise LimitError(f"the checkpoint has more than {self._limits.tensors_max} tensors")
        name = self._names.claim(place.name or ROOT_TENSOR_NAME, place.longer)
        kind = place.kind
        if not place.fixed:
            kind = refine_kind(name, tensor.dtype, len(tensor.shape), kind)
        self.found.tensors.append(NamedTensor(name, kind, tensor))


_MODULE_TABLES = frozenset({"_parameters", "_buffers", "_modules"})


def is_module(attributes: list[tuple[object, object]]) -> bool:
    """Say whether the state of an object is that of a torch.nn.Module."""
    return _MODULE_TABLES <= {key for key, _ in attributes if type(key) is str}


def state_entries(state: object) -> list[tuple[object, object]]:
    """Return the attributes that a state sets: a dict, or a pair of dicts (attributes and slots)."""
    if isinstance(state, Pairs):
        return state.pairs
    if isinstance(state, tuple) and len(state) == 2:
        return [entry for part in state if isinstance(part, Pairs) for entry in part.pairs]
    return [("state", state)] if state is not None else []


def component(key: object, characters_max: int) -> str:
    """Return a dict's key as a part of a name; what is neither text nor number is named by its type."""
    if type(key) is str:
        return printable(key, characters_max)
    if key is None or type(key) in (int, float, bool):
        return str(key)
    if type(key) is bytes:
        return printable(key[:characters_max].decode("utf-8", "backslashreplace"), characters_max)
    if type(key) is Ref:
        return printable(f"{key.module}.{key.name}", characters_max)
    if type(key) is tuple and len(key) <= 8 and all(type(part) in (str, int) for part in key):
        return printable("_".join(str(part)[:characters_max] for part in key), characters_max)
    return "(key)"


def _entries(value: object) -> list[tuple[object, object]] | None:
    """Return the pairs of a dict, or of an object that is one in all but name; None for anything else."""
    if isinstance(value, Pairs):
        return value.pairs
    if not isinstance(value, Node) or not isinstance(value.function, Ref):
        return None
    if value.pairs is not None and not is_module(state_entries(value.state)):
        return value.pairs
    args = value.args
    if (value.function.module, value.function.name) == ("collections", "OrderedDict") and isinstance(args, tuple):
        if not args:
            return []
        if len(args) == 1 and isinstance(args[0], list):
            return [(pair[0], pair[1]) for pair in args[0] if isinstance(pair, list | tuple) and len(pair) == 2]
    if isinstance(args, tuple) and len(args) == 1 and isinstance(args[0], Pairs) and value.state is None:
        return args[0].pairs  # a Counter, a mapping proxy
    return None


def _size(value: object) -> int:
    if isinstance(value, list | tuple):
        return len(value)
    if isinstance(value, Pairs):
        return len(value.pairs)
    if isinstance(value, Items):
        return len(value.items)
    if isinstance(value, Node):
        return sum(_size(part) for part in (value.args, value.state) if isinstance(part, tuple | Pairs)) + (
            len(value.pairs or ()) + len(value.items or ())
        )
    return 0


# What the keys at the top mean.


def _plan(entries: list[tuple[object, object]], limits: ReadLimits) -> list[tuple[_Place, object]]:
    """Return the start of the walk: each entry at the top with the name and the kind its key gives it."""
    keyed = [(component(key, limits.name_characters_max), value) for key, value in entries]
    wrapped = _wrapped(keyed)
    if wrapped is not None:
        inner = [(component(key, limits.name_characters_max), value) for key, value in wrapped[1]]
        keyed = [entry for key, value in keyed for entry in (inner if key == wrapped[0] else [(key, value)])]
    model = _model_key(keyed)
    plan: list[tuple[_Place, object]] = []
    n_optimizers = 0
    for key, value in keyed:
        if key == model:
            dropped, inner_value = _unwrapped(key, value)
            plan.append((_Place("", TensorKind.PARAMETER, longer=dropped), inner_value))
        elif is_optimizer_key(key) and (optimizers := _optimizers(value)):
            for optimizer in optimizers:
                name = "optimizer" if n_optimizers == 0 else f"optimizer.{n_optimizers}"
                plan.append((_Place(name, TensorKind.OPTIMIZER), optimizer))
                n_optimizers += 1
        elif is_optimizer_key(key) and _is_container(value):
            plan.append((_Place(key, TensorKind.OPTIMIZER), value))
        elif is_side_key(key) or (model is not None):
            plan.append((_Place(key, TensorKind.OTHER), value))
        else:
            plan.append((_Place(key, TensorKind.PARAMETER), value))
    return plan


def _wrapped(keyed: list[tuple[str, object]]) -> tuple[str, list[tuple[object, object]]] | None:
    """Return the key and entries of the one container that itself holds a model beside an optimizer, if there is one."""
    if _model_key(keyed) is not None:
        return None
    for key, value in keyed:
        entries = _entries(value)
        if entries is None or is_optimizer_key(key) or is_side_key(key):
            continue
        inner = [(component(name, 64), part) for name, part in entries[:64]]
        if any(is_optimizer_key(name) for name, _ in inner) and _model_key(inner) is not None:
            return key, entries
    return None


def _model_key(keyed: list[tuple[str, object]]) -> str | None:
    by_key: dict[str, object] = {}
    for key, value in keyed:
        by_key.setdefault(key, value)
    for key in (*MODEL_CONTAINERS, *AVERAGED_CONTAINERS):
        if key in by_key and _is_container(by_key[key]) and holds_tensors(by_key[key]):
            return key
    return None


def _unwrapped(key: str, value: object) -> tuple[str, object]:
    """Follow a model container that holds nothing but another one."""
    for _ in range(3):
        entries = _entries(value)
        if not isinstance(value, Pairs) or entries is None:
            break
        inner = _model_key([(component(name, 64), part) for name, part in entries[:64]])
        if inner is None or any(tensor_of(part, 64) is not None for _, part in entries[:64]):
            break
        key, value = f"{key}.{inner}", next(part for name, part in entries if component(name, 64) == inner)
    return key, value


def _is_container(value: object) -> bool:
    return isinstance(value, Pairs | Node | list | tuple) and tensor_of(value, 64) is None


def _optimizers(value: object) -> list[object]:
    """Return the optimizer states in a value: itself, or those in a list or dict of them."""
    entries = _entries(value)
    if entries is not None:
        if {"state", "param_groups"} & {key for key, _ in entries[:64] if type(key) is str}:
            return [value]
        parts = [part for _, part in entries[:64]]
    elif isinstance(value, list | tuple):
        parts = list(value[:64])
    else:
        return []
    found = [part for part in parts if _entries(part) is not None and _optimizers(part) == [part]]
    return found if len(found) == len(parts) else []


def holds_tensors(value: object) -> bool:
    """Say whether a tensor is within reach of the first SEARCH_VISITS_MAX parts."""
    todo: list[object] = [value]
    seen: set[int] = set()
    for _ in range(SEARCH_VISITS_MAX):
        if not todo:
            return False
        part = todo.pop()
        if tensor_of(part, 64) is not None:
            return True
        if id(part) in seen:
            continue
        seen.add(id(part))
        if isinstance(part, list | tuple):
            todo.extend(part[:1000])
        elif isinstance(part, Pairs):
            todo.extend(inner for _, inner in reversed(part.pairs[:1000]))
        elif isinstance(part, Node):
            todo.extend((part.args, part.state))
            todo.extend(inner for _, inner in reversed((part.pairs or [])[:1000]))
            todo.extend((part.items or [])[:1000])
    return False


def _read_progress(entries: list[tuple[object, object]], found: Flattened, limits: ReadLimits) -> None:
    """Look for step and epoch at the top, then inside the containers that trainers use."""
    levels = [entries] + [
        inner for key, value in entries if key in TRAINER_CONTAINERS and (inner := _entries(value)) is not None
    ]
    for level in levels:
        by_key: dict[str, object] = {}
        for key, value in level:
            if type(key) is str:
                by_key.setdefault(key, value)
        for key in STEP_KEYS:
            value = by_key.get(key)
            number = numpy_scalar(value) if isinstance(value, Node) else value
            if found.step is None:
                found.step = as_step(number)
            tensor = tensor_of(value, limits.dimensions_max)
            if tensor is not None:
                found.step_tensors.append(tensor)
        for key in EPOCH_KEYS:
            value = by_key.get(key)
            number = numpy_scalar(value) if isinstance(value, Node) else value
            if found.epoch is None:
                found.epoch = as_epoch(number)
            tensor = tensor_of(value, limits.dimensions_max)
            if tensor is not None:
                found.epoch_tensors.append(tensor)
