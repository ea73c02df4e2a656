"""The graph of objects that TensorFlow saves beside its variables: what they are called and which belong to optimizers.

Pure functions over a parsed message. Without a graph the keys themselves are the names.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush

from monitor.read.access.protobuf_wire import fields, message, number, text
from monitor.read.keras.keras_optimizer import class_of, torch_role
from monitor.read.naming import MODEL_CONTAINERS
from monitor.read.reader import CorruptError, LimitError

GRAPH_KEY = "_CHECKPOINTABLE_OBJECT_GRAPH"
VALUE_SUFFIX = "/.ATTRIBUTES/VARIABLE_VALUE"
_VALUE = "VARIABLE_VALUE"
_EXPORTED_TWICE = "_all_variables/"
_NODES_MAX = 1_000_000
_WAY_MAX = 64
_PRIVATE_COST = 10
_Names = tuple[dict[str, str], frozenset[str]]
_TRAINED = "_trainable_variables"
_ITERATIONS = ("_iterations", "iter")
# Lists of a Keras optimizer, one variable for each of its parameters.
_LISTS = {
    **{"_momentums": "momentum", "momentums": "momentum", "_velocities": "velocity", "_velocity_hats": "velocity_hat"},
    **{"adam_velocities": "velocity", "_m": "momentum", "_u": "norm", "_average_gradients": "average_gradient"},
    **{"_accumulators": "accumulator", "_linears": "linear", "_accumulated_grads": "accumulated_grad"},
    **{"_accumulated_delta_vars": "accumulated_delta_var", "_model_variables_moving_average": "average"},
    "_accumulated_gradients": "gradient_accumulator",
}
# The slots of the optimizers before Keras 3.
_SLOTS = {
    **{"m": "exp_avg", "v": "exp_avg_sq", "vhat": "max_exp_avg_sq", "momentum": "momentum_buffer"},
    **{"rms": "square_avg", "mg": "grad_avg", "accumulator": "sum", "average": "average"},
}


@dataclass(slots=True)
class Node:
    """One object: its parts by local name, and its own variable, if it is one."""

    children: dict[str, int] = field(default_factory=dict)
    key: str = ""
    full_name: str = ""
    slots: list[tuple[int, str, int]] = field(default_factory=list)  # (parameter, slot name, variable)


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphNames:
    """What the keys of a checkpoint are called.

    `model` and `optimizer` map keys to names; a key in neither has none but itself. `copies` are keys of the model that
    hold a second copy of what another key holds. `states` are the (parameter, role) of the optimizer's variables, by
    key. `iterations`, `learning_rate`, `beta1` and `beta2` are keys of numbers, or "".
    """

    model: Mapping[str, str]
    optimizer: Mapping[str, str]
    states: Mapping[str, tuple[str, str]]
    copies: frozenset[str] = frozenset()
    iterations: str = ""
    learning_rate: str = ""
    beta1: str = ""
    beta2: str = ""


def parse_graph(raw: bytes) -> list[Node]:
    """Return the nodes, the root first; raise CorruptError where one refers to none."""
    nodes: list[Node] = []
    for number_, value in fields(raw):
        if number_ == 1:
            nodes.append(_node(message(value)))
            if len(nodes) > _NODES_MAX:
                raise LimitError(f"the object graph has more than {_NODES_MAX} nodes")
    if not nodes:
        raise CorruptError("the object graph has no root")
    for node in nodes:
        for target in (*node.children.values(), *(i for slot in node.slots for i in (slot[0], slot[2]))):
            if target >= len(nodes):
                raise CorruptError("the object graph refers to a node that it does not have")
    return nodes


def _node(raw: memoryview) -> Node:
    node = Node()
    for kind, value in fields(raw):
        if kind == 1:
            target, name = 0, ""
            for inner, part in fields(message(value)):
                if inner == 1:
                    target = number(part)
                elif inner == 2:
                    name = text(part)
            node.children[name] = target
        elif kind == 2:
            parts = {inner: text(part) for inner, part in fields(message(value)) if inner in (1, 2, 3)}
            if parts.get(1) == _VALUE:
                node.full_name, node.key = parts.get(2, ""), parts.get(3, "")
        elif kind == 3:
            parameter, slot, variable = 0, "", 0
            for inner, part in fields(message(value)):
                if inner == 1:
                    parameter = number(part)
                elif inner == 2:
                    slot = text(part)
                elif inner == 3:
                    variable = number(part)
            node.slots.append((parameter, slot, variable))
    return node


def name_keys(nodes: Sequence[Node]) -> GraphNames:
    """Name the variables of a graph as Keras or the layer shows them, without the model's own name."""
    places = [i for i, node in enumerate(nodes) if any(name in node.children for name in _ITERATIONS)]
    optimizers = [nodes[i] for i in places]
    owned = frozenset(i for optimizer in optimizers for i in _owned(nodes, optimizer))
    model, copies = _model_names(nodes, owned, frozenset(places))
    states: dict[str, tuple[str, str]] = {}
    for optimizer in optimizers[:1]:
        states = _states(nodes, optimizer, model)
    names = {key: f"optimizer.state.{parameter}.{role}" for key, (parameter, role) in states.items()}
    for i in sorted(owned):
        if nodes[i].key and nodes[i].key not in names:
            local = nodes[i].key.removesuffix(VALUE_SUFFIX).split("/")
            names[nodes[i].key] = "optimizer." + ".".join(part.lstrip("._") for part in local[1:] or local)
    for optimizer in optimizers:
        for counter in (nodes[optimizer.children[name]] for name in _ITERATIONS if name in optimizer.children):
            if counter.key:
                names[counter.key] = "optimizer.iteration"  # as Keras itself calls it, and its own files do
    if not optimizers:
        return GraphNames(model=model, optimizer=names, states=states, copies=copies)
    children = optimizers[0].children

    def key(*local_names: str) -> str:
        return next((nodes[children[name]].key for name in local_names if name in children), "")

    return GraphNames(
        model=model,
        optimizer=names,
        states=states,
        copies=copies,
        iterations=key(*_ITERATIONS),
        learning_rate=key("_learning_rate", "learning_rate"),
        beta1=key("beta_1"),
        beta2=key("beta_2"),
    )


def _owned(nodes: Sequence[Node], optimizer: Node) -> Iterable[int]:
    """Return the variables that are an optimizer's own: in its lists and slots, and right below it."""
    parameters = _list(nodes, optimizer, _TRAINED)
    for name, target in optimizer.children.items():
        if nodes[target].key:
            yield target
        elif name in ("_variables", *_LISTS):
            yield from (i for i in nodes[target].children.values() if nodes[i].key and i not in parameters)
    yield from (variable for _, _, variable in optimizer.slots)


def _list(nodes: Sequence[Node], owner: Node, name: str) -> list[int]:
    """Return the members of a list in order."""
    if name not in owner.children:
        return []
    members = nodes[owner.children[name]].children
    return [members[key] for key in sorted((k for k in members if k.isdecimal() and len(k) < 10), key=int)]


def _states(nodes: Sequence[Node], optimizer: Node, model: Mapping[str, str]) -> dict[str, tuple[str, str]]:
    found: dict[str, tuple[str, str]] = {}
    iterations = next(nodes[optimizer.children[name]] for name in _ITERATIONS if name in optimizer.children)
    class_name = class_of(iterations.full_name.partition("/")[0])
    parameters = _list(nodes, optimizer, _TRAINED)
    for name, role in _LISTS.items():
        variables = _list(nodes, optimizer, name)
        if len(variables) == len(parameters):
            for parameter, variable in zip(parameters, variables, strict=True):
                if nodes[variable].key and nodes[parameter].key in model:
                    found[nodes[variable].key] = (model[nodes[parameter].key], torch_role(role, class_name))
    for parameter, slot, variable in optimizer.slots:
        if nodes[variable].key and nodes[parameter].key in model:
            found[nodes[variable].key] = (model[nodes[parameter].key], _SLOTS.get(slot, slot))
    return found


def _model_names(nodes: Sequence[Node], owned: frozenset[int], optimizers: frozenset[int]) -> _Names:
    """Return (names, copies): full names where all are distinct paths, else the shortest ways from the root.

    Keras' export saves every variable twice under one full name: the second is a copy.
    """
    variables = [i for i, node in enumerate(nodes) if node.key and i not in owned]
    bearers: dict[str, list[str]] = {}
    for i in variables:
        bearers.setdefault(nodes[i].full_name.removesuffix(":0").strip("/"), []).append(nodes[i].key)
    copies = {key for keys in bearers.values() if len(keys) == 2 for key in keys if key.startswith(_EXPORTED_TWICE)}
    paths: dict[str, str] = {}
    is_distinct = True
    for full, keys in bearers.items():
        first = [key for key in keys if key not in copies]
        if "/" in full:
            is_distinct &= len(first) == 1
            paths.update(dict.fromkeys(first, full))
    tops = {name.partition("/")[0] for name in paths.values()}
    if len(paths) > 1 and len(tops) == 1 and all(name.count("/") > 1 for name in paths.values()):
        paths = {key: name.partition("/")[2] for key, name in paths.items()}
    ways = _ways(nodes, optimizers)
    names = {}
    for i in variables:
        key = nodes[i].key
        names[key] = paths[key] if is_distinct and key in paths else ways.get(i) or _of_key(key)
    return names, frozenset(copies)


def _of_key(key: str) -> str:
    """Return a key as a name; what is only reached through its optimizer is named by its place among the trained."""
    name = key.removesuffix(VALUE_SUFFIX)
    _, found, place = name.rpartition(f"/{_TRAINED}/")
    return f"{_TRAINED.lstrip('_')}/{place}" if found else name


def _ways(nodes: Sequence[Node], optimizers: frozenset[int]) -> dict[int, str]:
    """Return how each object is reached from the root by the fewest names, of which private ones count for ten.

    Optimizers are not passed through; a container at the top that holds the model is left out.
    """
    found: dict[int, tuple[str, ...]] = {}
    waiting: list[tuple[int, tuple[str, ...], int]] = [(0, (), 0)]
    while waiting:
        cost, way, at = heappop(waiting)
        if at in found or at in optimizers or len(way) > _WAY_MAX:
            continue
        found[at] = way
        for name, target in nodes[at].children.items():
            if target not in found:
                heappush(waiting, (cost + (_PRIVATE_COST if name.startswith("_") else 1), (*way, name), target))
    return {i: "/".join(part.lstrip("_") or part for part in _within_model(way)) for i, way in found.items() if way}


def _within_model(way: tuple[str, ...]) -> tuple[str, ...]:
    return way[1:] if len(way) > 1 and way[0] in MODEL_CONTAINERS else way
