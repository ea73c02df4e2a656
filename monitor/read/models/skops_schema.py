"""The schema of a skops file to inert nodes: its tree of states in the shapes that pickles have.

Pure: a state names classes, and none is looked up. Arrays are handed in by the names of their members.
"""

from __future__ import annotations

import json
from collections.abc import Callable

from monitor.read.arrays.found_arrays import FoundArray
from monitor.read.naming import printable
from monitor.read.pickles.inert_nodes import Items, Node, Pairs, Ref
from monitor.read.reader import CorruptError, LimitError

DEPTH_MAX = 200
_TEXT_CHARACTERS_MAX = 100_000
_SEQUENCES = frozenset({"ListNode", "TupleNode", "SetNode"})
_SHOWN = 60


def nodes_of(state: object, array: Callable[[str], FoundArray]) -> object:
    """Return what a state stands for; `array` gives the array that a member holds.

    Raises CorruptError for a state that is none, LimitError for one nested deeper than DEPTH_MAX.
    """
    return _Converter(array).convert(state, 0)


class _Converter:
    """The walk over states; one that was met before, by its number, gives the same node again."""

    __slots__ = ("_array", "_known")

    def __init__(self, array: Callable[[str], FoundArray]) -> None:
        self._array = array
        self._known: dict[int, object] = {}

    def convert(self, state: object, depth: int) -> object:
        """Return the node of one state."""
        if depth > DEPTH_MAX:
            raise LimitError(f"the schema is nested deeper than {DEPTH_MAX} levels")
        if not isinstance(state, dict) or type(state.get("__loader__")) is not str:
            raise CorruptError("the schema has a state without a loader")
        loader, number = state["__loader__"], state.get("__id__")
        if loader == "CachedNode":
            return self._known.get(number) if type(number) is int else None
        made = self._converted(state, loader, depth + 1)
        if type(number) is int and isinstance(made, Node | Pairs | list | FoundArray):
            self._known[number] = made
        return made

    def _converted(self, state: dict[str, object], loader: str, depth: int) -> object:
        content = state.get("content")
        if loader == "JsonNode":
            return _plain(content)
        if loader == "NdArrayNode":
            return self._converted_array(state, depth)
        if loader in _SEQUENCES:
            items = self._items(content, depth)
            return tuple(items) if loader == "TupleNode" else Items(items) if loader == "SetNode" else items
        if loader == "DictNode":
            return self._pairs(content, depth)
        if loader == "MaskedArrayNode" and isinstance(content, dict):
            return self.convert(content.get("data"), depth)
        node = Node(Ref(str(state.get("__module__")), str(state.get("__class__"))), ())
        if isinstance(content, dict) and "__loader__" in content:
            node.state = self.convert(content, depth)
        elif isinstance(content, dict):
            node.state = self._pairs({k: v for k, v in content.items() if isinstance(v, dict)}, depth)
        return node

    def _converted_array(self, state: dict[str, object], depth: int) -> object:
        name = state.get("file")
        if state.get("type") == "numpy" and type(name) is str:
            return self._array(name)
        if state.get("type") == "json":
            return self._items(state.get("content"), depth)
        raise CorruptError("the schema has an array that is neither a member nor a list")

    def _items(self, content: object, depth: int) -> list[object]:
        if not isinstance(content, list):
            raise CorruptError("the schema has a list without content")
        return [self.convert(item, depth) for item in content]

    def _pairs(self, content: object, depth: int) -> Pairs:
        if not isinstance(content, dict):
            raise CorruptError("the schema has a dict without content")
        made = Pairs()
        made.pairs = [(key, self.convert(value, depth)) for key, value in content.items()]
        return made


def _plain(content: object) -> object:
    """Return the number or text that a state holds as JSON; integers beyond 64 bits as text."""
    if type(content) is not str or len(content) > _TEXT_CHARACTERS_MAX:
        return None
    try:
        value = json.loads(content)
    except ValueError as error:  # broken JSON, or an integer of thousands of digits
        raise CorruptError(f"the schema holds a value that is no JSON: {printable(str(error), _SHOWN)}") from None
    if isinstance(value, bool | float | str) or value is None:
        return value
    return value if isinstance(value, int) and -(2**63) <= value < 2**63 else None
