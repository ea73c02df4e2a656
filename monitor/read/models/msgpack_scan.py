"""MessagePack as flax writes it: a tree of maps and lists whose arrays stay in the file, known by their places.

Own scanner: it takes keys and small numbers, and passes over values. Every count is checked against what is left.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from math import prod

from monitor.read.access.byte_cursor import ByteCursor
from monitor.read.naming import printable
from monitor.read.reader import AmbiguousError, CorruptError, LimitError, ReadLimits, UnsupportedError

DEPTH_MAX = 200
PARTS_MAX = 5_000_000
_KEY_BYTES_MAX = 65535
_NDARRAY, _COMPLEX, _SCALAR = 1, 2, 3
_NUMBERS = {
    **{0xCA: ">f", 0xCB: ">d", 0xCC: ">B", 0xCD: ">H", 0xCE: ">I", 0xCF: ">Q"},
    **{0xD0: ">b", 0xD1: ">h", 0xD2: ">i", 0xD3: ">q"},
}
_STRUCTS = {code: struct.Struct(layout) for code, layout in _NUMBERS.items()}
_TEXTS = {0xD9: 1, 0xDA: 2, 0xDB: 4}
_BYTES = {0xC4: 1, 0xC5: 2, 0xC6: 4}
_LISTS = {0xDC: 2, 0xDD: 4}
_MAPS = {0xDE: 2, 0xDF: 4}
_EXTENSIONS = {0xC7: 1, 0xC8: 2, 0xC9: 4}
_FIXED_EXTENSIONS = {0xD4: 1, 0xD5: 2, 0xD6: 4, 0xD7: 8, 0xD8: 16}
_CONSTANTS = {0xC0: None, 0xC2: False, 0xC3: True}
_SHOWN = 60


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedArray:
    """An array in the file: the writer's name of its dtype, its shape, and where its values lie."""

    dtype: str
    shape: tuple[int, ...]
    offset: int
    n_bytes: int
    is_scalar: bool


class Skipped:
    """Stands for bytes and for extensions of no meaning here."""

    __slots__ = ()


SKIPPED = Skipped()


class MsgpackScanner:
    """Reads one value after the other from a cursor.

    Values are None, bool, int, float, str, list, dict (keys are text; numbers as keys become text), PackedArray and
    SKIPPED.
    """

    __slots__ = ("_cursor", "_limits", "_n_arrays", "_n_parts")

    def __init__(self, cursor: ByteCursor, limits: ReadLimits) -> None:
        self._cursor = cursor
        self._limits = limits
        self._n_parts = 0
        self._n_arrays = 0

    def value(self, depth: int = 0) -> object:
        """Return the next value, whole."""
        if depth > DEPTH_MAX:
            raise LimitError(f"the file is nested deeper than {DEPTH_MAX} levels")
        self._n_parts += 1
        if self._n_parts > PARTS_MAX:
            raise LimitError(f"the file has more than {PARTS_MAX} parts")
        code = self._cursor.byte()
        if code in _CONSTANTS:
            return _CONSTANTS[code]
        if code <= 0x7F:
            return code
        if code >= 0xE0:
            return code - 0x100
        if code in _STRUCTS:
            return self._cursor.unpack(_STRUCTS[code])[0]
        if code <= 0x8F or code in _MAPS:
            return self._map(self._count(code, 0x80, _MAPS), depth)
        if code <= 0x9F or code in _LISTS:
            return self._list(self._count(code, 0x90, _LISTS), depth)
        if code <= 0xBF or code in _TEXTS:
            return self._text(self._count(code, 0xA0, _TEXTS))
        if code in _BYTES:
            self._cursor.skip(self._length(_BYTES[code]))
            return SKIPPED
        if code in _EXTENSIONS or code in _FIXED_EXTENSIONS:
            n = self._length(_EXTENSIONS[code]) if code in _EXTENSIONS else _FIXED_EXTENSIONS[code]
            return self._extension(self._cursor.byte(), n)
        raise CorruptError(f"byte 0x{code:02x} at {self._cursor.position - 1} begins nothing")

    def _length(self, n_bytes: int) -> int:
        return self._cursor.unsigned(n_bytes, big_endian=True)

    def _count(self, code: int, first: int, longer: dict[int, int]) -> int:
        return self._length(longer[code]) if code in longer else code - first

    def _text(self, n: int) -> str:
        if n > _KEY_BYTES_MAX:
            self._cursor.skip(n)
            return ""
        try:
            return self._cursor.take(n).decode("utf-8")
        except UnicodeDecodeError:
            raise CorruptError(f"a text before byte {self._cursor.position} is no UTF-8") from None

    def _list(self, n: int, depth: int) -> list[object]:
        self._cursor.demand(n)
        return [self.value(depth + 1) for _ in range(n)]

    def _map(self, n: int, depth: int) -> dict[str, object]:
        self._cursor.demand(2 * n)
        made: dict[str, object] = {}
        for _ in range(n):
            key = self.value(depth + 1)
            if type(key) not in (str, int):
                raise UnsupportedError("the file has a map with keys that are neither text nor numbers")
            name = str(key)
            if name in made:
                raise AmbiguousError(f"the file has a map with the key '{printable(name, _SHOWN)}' twice")
            made[name] = self.value(depth + 1)
        return made

    def _extension(self, code: int, n: int) -> object:
        """Return the array or number in an extension of flax; pass over any other."""
        end = self._cursor.position + n
        self._cursor.demand(n)
        if code not in (_NDARRAY, _SCALAR):
            self._cursor.skip(n)
            return SKIPPED
        self._n_arrays += 1
        if self._n_arrays > self._limits.tensors_max:
            raise LimitError(f"the file has more than {self._limits.tensors_max} arrays")
        if self._cursor.byte() != 0x93:
            raise CorruptError("an array does not consist of shape, dtype and values")
        shape, dtype = self.value(DEPTH_MAX - 1), self.value(DEPTH_MAX)
        if not isinstance(shape, list) or not all(type(size) is int and size >= 0 for size in shape):
            raise CorruptError("an array has a shape that is no list of sizes")
        if len(shape) > self._limits.dimensions_max:
            raise LimitError(f"an array has {len(shape)} dimensions, the limit is {self._limits.dimensions_max}")
        if type(dtype) is not str:
            raise CorruptError("an array has a dtype that is no text")
        kind = self._cursor.byte()
        n_values = self._length(_BYTES[kind]) if kind in _BYTES else -1
        if n_values < 0 or self._cursor.position + n_values != end or prod(shape) >= 2**63:
            raise CorruptError("an array has values that do not fill it")
        offset = self._cursor.skip(n_values)
        sizes = tuple(int(size) for size in shape)
        return PackedArray(dtype=dtype, shape=sizes, offset=offset, n_bytes=n_values, is_scalar=code == _SCALAR)
