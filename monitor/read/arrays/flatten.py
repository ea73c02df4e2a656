"""A tree of inert nodes to a flat list of named tensors and plain numbers.

The walk keeps its own stack, cuts cycles, and charges for every visit, so that neither depth nor shared parts can
make it long. It must not read values.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from math import isfinite

from monitor.read.naming import UniqueNames, joined, refine_kind
from monitor.read.pickles.inert_nodes import Items, Node, Ref
from monitor.read.pickles.inert_view import MODULE_TABLES, attributes_of, component, entries_of, is_module, size_of
from monitor.read.pytorch.root_plan import Place, Progress, find_progress, plan, stated_parameter_names
from monitor.read.pytorch.torch_objects import FoundTensor, bytes_of, numpy_scalar, tensor_of
from monitor.read.reader import LimitError, ReadLimits
from storage.records import TensorKind

LIST_NUMBERS_MAX = 16  # of a longer list of plain numbers only the length is kept
REVISITS_MAX = 100_000  # visits to parts that were visited before, counted with what is in them
VISITS_MAX = 5_000_000
ROOT_TENSOR_NAME = "tensor"


@dataclass(frozen=True, slots=True)
class NamedTensor:
    """A tensor with its final name and kind."""

    name: str
    kind: TensorKind
    tensor: FoundTensor


@dataclass(frozen=True, slots=True)
class Flattened:
    """All tensors in order, the kept numbers by dotted path, and what the top level says of step and epoch.

    `state_names` are the parameter names that optimizers state themselves, by (optimizer, number).
    """

    tensors: list[NamedTensor]
    scalars: dict[str, float]
    progress: Progress
    state_names: dict[tuple[str, int], str]


def flatten(root: object, limits: ReadLimits) -> Flattened:
    """Walk everything reachable from `root`; raise LimitError beyond the limits of depth, visits or tensors.

    The numbers of an optimizer go before all others where there are more than `scalars_max`.
    """
    walk = _Walk(limits)
    walk.run(plan(root, limits))
    scalars = walk.optimizer_scalars | walk.scalars
    kept = dict(list(scalars.items())[: limits.scalars_max])
    return Flattened(
        walk.tensors, kept, find_progress(root, limits), stated_parameter_names(plan(root, limits), limits)
    )


class _Walk:
    """The walk itself: an explicit stack of iterators, one a level."""

    __slots__ = ("_limits", "_names", "_on_path", "_revisits", "_seen", "optimizer_scalars", "scalars", "tensors")

    def __init__(self, limits: ReadLimits) -> None:
        self._limits = limits
        self._names = UniqueNames(limits.name_characters_max)
        self._seen: set[int] = set()
        self._on_path: set[int] = set()
        self._revisits = 0
        self.tensors: list[NamedTensor] = []
        self.scalars: dict[str, float] = {}
        self.optimizer_scalars: dict[str, float] = {}

    def run(self, start: Iterable[tuple[Place, object]]) -> None:
        """Visit everything below `start`, in order, depth first."""
        stack: list[tuple[int, Iterator[tuple[Place, object]]]] = [(0, iter(start))]
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

    def _visit(self, place: Place, value: object) -> Iterator[tuple[Place, object]] | None:
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
            self._revisits += 1 + size_of(value)
            return self._revisits <= REVISITS_MAX
        self._seen.add(identity)
        return True

    def _children(self, place: Place, value: object) -> Iterator[tuple[Place, object]]:
        if isinstance(value, list | tuple):
            return self._sequence(place, value)
        if isinstance(value, Items):
            return self._sequence(place, value.items)
        entries = entries_of(value)
        if entries is not None:
            return self._mapping(place, entries)
        assert isinstance(value, Node)
        return self._object(place, value)

    def _mapping(self, place: Place, entries: list[tuple[object, object]]) -> Iterator[tuple[Place, object]]:
        for key, value in entries:
            yield self._below(place, component(key, self._limits.name_characters_max)), value

    def _sequence(self, place: Place, values: list[object] | tuple[object, ...]) -> Iterator[tuple[Place, object]]:
        if values and all(type(value) in (int, float, bool) for value in values):
            self._keep_number(self._below(place, "length"), len(values))
            if len(values) > LIST_NUMBERS_MAX:
                return
        for index, value in enumerate(values):
            yield self._below(place, str(index)), value

    def _object(self, place: Place, node: Node) -> Iterator[tuple[Place, object]]:
        """Walk an object: a module by its tables, anything else by arguments, state, items and pairs."""
        attributes = attributes_of(node)
        tables = {key: value for key, value in attributes if type(key) is str} if is_module(attributes) else None
        if tables is not None:
            quiet = replace(place, numbers=False)
            yield from self._table(quiet, tables.get("_parameters"), TensorKind.PARAMETER)
            yield from self._table(quiet, tables.get("_buffers"), TensorKind.BUFFER)
            for key, module in entries_of(tables.get("_modules")) or ():
                yield self._below(quiet, component(key, self._limits.name_characters_max)), module
            for key, value in attributes:
                if type(key) is str and key not in MODULE_TABLES:
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

    def _table(self, place: Place, table: object, kind: TensorKind) -> Iterator[tuple[Place, object]]:
        stated = place.kind if place.kind is not TensorKind.PARAMETER else kind
        for key, value in entries_of(table) or ():
            below = self._below(place, component(key, self._limits.name_characters_max))
            yield replace(below, kind=stated, fixed=True), value

    def _below(self, place: Place, name: str) -> Place:
        longest = self._limits.name_characters_max
        longer = joined(place.longer, name, longest) if place.longer else ""
        return replace(place, name=joined(place.name, name, longest), longer=longer)

    def _keep_number(self, place: Place, value: object) -> None:
        assert isinstance(value, int | float)
        if not place.numbers or not place.name or not isfinite(value):
            return
        kept = self.optimizer_scalars if place.kind is TensorKind.OPTIMIZER else self.scalars
        if len(kept) < self._limits.scalars_max:
            kept.setdefault(place.name, float(value))

    def _keep_tensor(self, place: Place, tensor: FoundTensor) -> None:
        if len(self.tensors) >= self._limits.tensors_max:
            raise LimitError(f"the checkpoint has more than {self._limits.tensors_max} tensors")
        name = self._names.claim(place.name or ROOT_TENSOR_NAME, place.longer)
        kind = place.kind
        if not place.fixed:
            kind = refine_kind(name, tensor.dtype, len(tensor.shape), kind)
        self.tensors.append(NamedTensor(name, kind, tensor))
