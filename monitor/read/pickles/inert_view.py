"""Ways to look at inert nodes: as a dict, as an object with attributes, as part of a name.

Pure functions. Keys are compared only when they are text or numbers; nothing that a file made is hashed or formatted.
"""

from __future__ import annotations

from monitor.read.naming import printable
from monitor.read.pickles.inert_nodes import Items, Node, Pairs, Ref
from monitor.read.pytorch.torch_objects import bytes_of

MODULE_TABLES = frozenset({"_parameters", "_buffers", "_modules"})
_KEY_PARTS_MAX = 8


def entries_of(value: object) -> list[tuple[object, object]] | None:
    """Return the pairs of a dict, or of an object that is one in all but name; None for anything else."""
    if isinstance(value, Pairs):
        return value.pairs
    if not isinstance(value, Node) or not isinstance(value.function, Ref):
        return None
    if value.pairs is not None and not is_module(attributes_of(value)):
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


def attributes_of(node: Node) -> list[tuple[object, object]]:
    """Return what the state of an object sets: a dict, or a pair of dicts (attributes and slots)."""
    state = node.state
    if isinstance(state, Pairs):
        return state.pairs
    if isinstance(state, tuple) and len(state) == 2 and all(part is None or isinstance(part, Pairs) for part in state):
        return [entry for part in state if isinstance(part, Pairs) for entry in part.pairs]
    return [("state", state)] if state is not None else []


def is_module(attributes: list[tuple[object, object]]) -> bool:
    """Say whether attributes are those of a torch.nn.Module."""
    return {key for key, _ in attributes if type(key) is str} >= MODULE_TABLES


def text_keyed(entries: list[tuple[object, object]]) -> dict[str, object]:
    """Return the entries whose key is text, the first of each."""
    found: dict[str, object] = {}
    for key, value in entries:
        if type(key) is str:
            found.setdefault(key, value)
    return found


def size_of(value: object) -> int:
    """Return how many parts a visit to a container costs."""
    if isinstance(value, list | tuple):
        return len(value)
    if isinstance(value, Pairs):
        return len(value.pairs)
    if isinstance(value, Items):
        return len(value.items)
    if isinstance(value, Node):
        inner = sum(size_of(part) for part in (value.args, value.state) if isinstance(part, tuple | Pairs))
        return inner + len(value.pairs or ()) + len(value.items or ())
    return 0


def component(key: object, characters_max: int) -> str:
    """Return a dict's key as a part of a name; what is neither text nor number is named "(key)"."""
    if type(key) is str:
        return printable(key, characters_max) or "(empty)"
    if key is None or type(key) in (int, float, bool):
        return str(key)
    raw = bytes_of(key)
    if raw is not None:
        return printable(raw[:characters_max].decode("utf-8", "backslashreplace"), characters_max) or "(empty)"
    if type(key) is Ref:
        return printable(f"{key.module[:characters_max]}.{key.name[:characters_max]}", characters_max)
    if type(key) is tuple and len(key) <= _KEY_PARTS_MAX and all(type(part) in (str, int) for part in key):
        return printable("_".join(str(part)[:characters_max] for part in key), characters_max)
    return "(key)"
