"""Universal Binary JSON as XGBoost writes it: a tree of maps and lists whose typed arrays stay in the file.

Own scanner; every count is checked against what is left before anything is made.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from monitor.read.access.byte_cursor import ByteCursor
from monitor.read.naming import printable
from monitor.read.reader import AmbiguousError, CorruptError, LimitError

DEPTH_MAX = 100
PARTS_MAX = 5_000_000
_TEXT_BYTES_MAX = 2**20
_STRUCTS = {
    code: struct.Struct(layout)
    for code, layout in (("i", ">b"), ("U", ">B"), ("I", ">h"), ("l", ">i"), ("L", ">q"), ("d", ">f"), ("D", ">d"))
}
NUMPY_CODES = {"i": ">i1", "U": ">u1", "I": ">i2", "l": ">i4", "L": ">i8", "d": ">f4", "D": ">f8"}
_CONSTANTS = {"Z": None, "T": True, "F": False}
_SHOWN = 60


@dataclass(frozen=True, slots=True)
class PackedNumbers:
    """Numbers of one type in the file, big-endian: NumPy's code of the type, where they begin, how many."""

    code: str
    offset: int
    n: int


class UbjsonScanner:
    """Reads one value after the other; typed arrays of numbers become PackedNumbers."""

    __slots__ = ("_cursor", "_n_parts")

    def __init__(self, cursor: ByteCursor) -> None:
        self._cursor = cursor
        self._n_parts = 0

    def value(self, depth: int = 0) -> object:
        """Return the next value, whole."""
        return self._value(self._marker(), depth)

    def _marker(self) -> str:
        marker = "N"
        while marker == "N":  # no-op
            marker = chr(self._cursor.byte())
        return marker

    def _value(self, marker: str, depth: int) -> object:
        self._n_parts += 1
        if depth > DEPTH_MAX or self._n_parts > PARTS_MAX:
            raise LimitError(f"the file has more than {PARTS_MAX} parts, or nests deeper than {DEPTH_MAX} levels")
        if marker in _CONSTANTS:
            return _CONSTANTS[marker]
        if marker in _STRUCTS:
            return self._cursor.unpack(_STRUCTS[marker])[0]
        if marker in ("S", "H"):
            return self._text()
        if marker == "C":
            return chr(self._cursor.byte())
        if marker == "[":
            return self._list(depth)
        if marker == "{":
            return self._map(depth)
        raise CorruptError(f"byte {ord(marker)} at {self._cursor.position - 1} begins nothing")

    def _length(self) -> int:
        marker = self._marker()
        if marker not in _STRUCTS or marker in "dD":
            raise CorruptError(f"a length before byte {self._cursor.position} is no whole number")
        length = self._cursor.unpack(_STRUCTS[marker])[0]
        if length < 0:
            raise CorruptError(f"a length before byte {self._cursor.position} is negative")
        return int(length)

    def _text(self) -> str:
        n = self._length()
        if n > _TEXT_BYTES_MAX:
            self._cursor.skip(n)
            return ""
        try:
            return self._cursor.take(n).decode("utf-8")
        except UnicodeDecodeError:
            raise CorruptError(f"a text before byte {self._cursor.position} is no UTF-8") from None

    def _list(self, depth: int) -> object:
        marker = self._marker()
        if marker == "$":
            kind = self._marker()
            if self._marker() != "#" or kind not in NUMPY_CODES:
                raise CorruptError(f"a typed array before byte {self._cursor.position} is broken")
            n = self._length()
            return PackedNumbers(NUMPY_CODES[kind], self._cursor.skip(n * _STRUCTS[kind].size), n)
        if marker == "#":
            n = self._length()
            self._cursor.demand(n)
            return [self.value(depth + 1) for _ in range(n)]
        items = []
        while marker != "]":
            items.append(self._value(marker, depth + 1))
            marker = self._marker()
        return items

    def _map(self, depth: int) -> dict[str, object]:
        made: dict[str, object] = {}
        n, marker = -1, ""
        while True:
            if n == len(made):
                return made
            at = self._cursor.position
            if n < 0:
                marker = self._marker()
                if marker == "}":
                    return made
                if marker == "#" and not made:
                    n = self._length()
                    self._cursor.demand(n)
                    continue
                self._cursor.position = at
            key = self._text()
            if key in made:
                raise AmbiguousError(f"the file has a map with the key '{printable(key, _SHOWN)}' twice")
            made[key] = self.value(depth + 1)
