"""What inert nodes say of NumPy dtypes and shapes, records with named fields included; nothing is built from them.

Pure functions. Where the values of an array lie is for others.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from monitor.read.dtypes import DTYPES
from monitor.read.pickles.inert_nodes import Node, Pairs, Ref

_FIELDS_MAX = 256
_ITEM_BYTES_MAX = 2**20
_CHARACTER_BYTES = {"U": 4, "S": 1, "V": 1, "a": 1}


@dataclass(frozen=True, slots=True, kw_only=True)
class ArrayDtype:
    """A dtype: the bytes of one item, and what they are.

    `plain` is the dtype with its byte order where items are single numbers or booleans, else None. `fields` are the
    plain fields of records: name, dtype, and place in bytes.
    """

    item_bytes: int
    plain: np.dtype[np.generic] | None
    fields: tuple[tuple[str, np.dtype[np.generic], int], ...] = ()


def dtype_of(value: object) -> ArrayDtype | None:
    """Return the dtype that a node stands for; None for Python objects and for what is no dtype."""
    if not isinstance(value, Node) or not isinstance(value.function, Ref) or not isinstance(value.args, tuple):
        return None
    if (value.function.module, value.function.name) != ("numpy", "dtype") or not value.args:
        return None
    code, state = value.args[0], value.state
    if type(code) is not str or len(code) < 2 or not code[1:].isdecimal() or len(code) > 10:
        return None
    kind, size = code[0], int(code[1:])
    order = state[1] if isinstance(state, tuple) and len(state) > 1 else "="
    if kind in "biufc":
        plain = _plain(code, order)
        return ArrayDtype(item_bytes=size, plain=plain) if 0 < size <= 32 else None
    if kind in "mM":
        return ArrayDtype(item_bytes=size, plain=None) if size == 8 else None
    if kind not in _CHARACTER_BYTES or size > _ITEM_BYTES_MAX:
        return None
    item_bytes = size * _CHARACTER_BYTES[kind]
    if kind != "V" or not isinstance(state, tuple) or len(state) < 8 or state[3] is None:
        return ArrayDtype(item_bytes=item_bytes, plain=None)
    fields = _fields(state[3], state[4], item_bytes)
    has_objects = type(state[7]) is not int or state[7] & 1
    return None if has_objects else ArrayDtype(item_bytes=item_bytes, plain=None, fields=fields)


def item_bytes_of(value: object) -> int | None:
    """Return the bytes of one item of a dtype, None for Python objects and for what is no dtype."""
    dtype = dtype_of(value)
    return dtype.item_bytes if dtype is not None else None


def sizes_of(value: object, dimensions_max: int) -> tuple[int, ...] | None:
    """Return a shape, None for anything else than a tuple of at most `dimensions_max` sizes."""
    if type(value) is not tuple or len(value) > dimensions_max:
        return None
    sizes = [size for size in value if type(size) is int and 0 <= size < 2**63]
    return tuple(sizes) if len(sizes) == len(value) else None


def _plain(code: str, order: object) -> np.dtype[np.generic] | None:
    try:
        dtype = np.dtype(code)
    except TypeError:
        return None
    if dtype.newbyteorder("=").name not in DTYPES:
        return None
    return dtype.newbyteorder(">" if order == ">" else "<")


def _fields(names: object, table: object, item_bytes: int) -> tuple[tuple[str, np.dtype[np.generic], int], ...]:
    if type(names) is not tuple or len(names) > _FIELDS_MAX or not isinstance(table, Pairs):
        return ()
    places = {name: place for name, place in table.pairs if type(name) is str}
    found = []
    for name in names:
        place = places.get(name) if type(name) is str else None
        if type(place) is not tuple or len(place) < 2 or type(place[1]) is not int:
            continue
        dtype = dtype_of(place[0])
        if dtype is None or dtype.plain is None or not 0 <= place[1] <= item_bytes - dtype.item_bytes:
            continue
        found.append((name, dtype.plain, place[1]))
    return tuple(found)
