"""The inert nodes that stand for what a pickle holds; plain data, with identity but without behaviour."""

from __future__ import annotations

from dataclasses import dataclass


class Ref:
    """The name of something importable; never imported."""

    __slots__ = ("module", "name")

    def __init__(self, module: str, name: str) -> None:
        self.module = module
        self.name = name


class Pairs:
    """A dict: its key and value pairs in order of insertion, keys possibly repeated."""

    __slots__ = ("pairs",)

    def __init__(self) -> None:
        self.pairs: list[tuple[object, object]] = []


class Items:
    """A set or frozenset: its items, possibly repeated."""

    __slots__ = ("items",)

    def __init__(self, items: list[object]) -> None:
        self.items = items


class Node:
    """A call that was not made: `function(*args, **kwargs)`, then `state` set, `items` appended, `pairs` put in."""

    __slots__ = ("args", "function", "items", "kwargs", "pairs", "state")

    def __init__(self, function: object, args: object, kwargs: object = None) -> None:
        self.function = function
        self.args = args
        self.kwargs = kwargs
        self.state: object = None
        self.items: list[object] | None = None
        self.pairs: list[tuple[object, object]] | None = None


class Persistent:
    """A reference to something outside the pickle, by an id that only the archive around it can explain."""

    __slots__ = ("id",)

    def __init__(self, id_: object) -> None:
        self.id = id_


@dataclass(frozen=True, slots=True)
class PickleResult:
    """What one pickle holds.

    `root` is made of None, bool, int, float, str, bytes, list, tuple, Pairs, Items, Ref, Node and Persistent only; it
    may contain itself. `globals_seen` are the dotted names it refers to, sorted, at most GLOBALS_KEPT_MAX, not yet
    made printable. `persistents` are all persistent references. `n_objects` counts the calls that were not made.
    `n_bytes` is the length of the pickle up to and with STOP.
    """

    root: object
    globals_seen: tuple[str, ...]
    persistents: tuple[Persistent, ...]
    n_objects: int
    n_bytes: int
