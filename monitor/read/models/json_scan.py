"""JSON as XGBoost writes it, read page by page: long lists of numbers become arrays, or nothing where nobody asks.

What is held is counted, so that a file of any size takes bounded memory. Every rule of JSON that the file can break is
checked but one: of lists that nobody asks for only the characters are looked at.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping
from typing import NoReturn

import numpy as np

from monitor.read.access.byte_cursor import ByteCursor
from monitor.read.access.sources import MemorySource
from monitor.read.naming import printable
from monitor.read.reader import AmbiguousError, CorruptError, IncompleteError, LimitError

DEPTH_MAX = 100
PARTS_MAX = 3_000_000
HELD_BYTES_MAX = 96 * 2**20
_TEXT_BYTES_MAX = 2**20
_TOKEN_BYTES_MAX = 64
_NUMBER_BYTES_MAX = 4096  # of one number in a list, blanks included
_PART_BYTES = 200  # what a map, a list or a text takes beside its content, about
_SPACE = re.compile(rb"[ \t\r\n]*")
_TOKEN = re.compile(rb"[-+.0-9a-zA-Z]*")
_WORDS = {b"null": None, b"true": True, b"false": False}
_NUMBER_BEGINS = frozenset(b"-0123456789]")
_NUMBER_BYTES = b"0123456789+-.eE, \t\r\n"
_SHOWN = 60


class JsonScanner:
    """Reads one value; `kept` says as which dtype the lists of numbers under a key are wanted.

    Such a list becomes an array where the dtype is of integers, else the bytes of the values. Other lists of numbers,
    and what is under a key of `ignored`, are passed over; like nulls they are in no map. An empty list stays one.
    """

    __slots__ = ("_cursor", "_held_bytes", "_ignored", "_kept", "_n_parts")

    def __init__(
        self, cursor: ByteCursor, kept: Mapping[str, np.dtype[np.generic]], ignored: frozenset[str] = frozenset()
    ) -> None:
        self._ignored = ignored
        self._cursor = cursor
        self._kept = kept
        self._n_parts = 0
        self._held_bytes = 0

    def value(self, depth: int = 0, key: str = "") -> object:
        """Return the next value, whole; raise IncompleteError where the file ends within it."""
        self._n_parts += 1
        if depth > DEPTH_MAX or self._n_parts > PARTS_MAX:
            raise LimitError(f"the model has more than {PARTS_MAX} parts, or nests deeper than {DEPTH_MAX} levels")
        first = self._peek()
        if first == ord("{"):
            return self._map(depth)
        if first == ord("["):
            return self._list(depth, key)
        if first != ord('"'):
            return self._plain()
        text = self._text()
        self._hold(len(text))
        return text

    def finish(self) -> None:
        """Raise CorruptError where anything but blanks follows."""
        while self._cursor.n_left:
            page, at = self._cursor.window()
            end = _blanks_end(page, at)
            if end < len(page):
                raise CorruptError(f"{self._cursor.n_left - end + at} bytes follow the end of the model")
            self._cursor.advance(end - at, 0)

    def _peek(self) -> int:
        """Return the next byte that is no blank, without passing it."""
        while self._cursor.n_left:
            page, at = self._cursor.window()
            end = _blanks_end(page, at)
            self._cursor.advance(end - at, 0)
            if end < len(page):
                return page[end]
        raise IncompleteError("the model ends early")

    def _next(self) -> int:
        byte = self._peek()
        self._cursor.advance(1, 0)
        return byte

    def _hold(self, n_bytes: int) -> None:
        self._held_bytes += _PART_BYTES + n_bytes
        if self._held_bytes > HELD_BYTES_MAX:
            raise LimitError(f"what is read of the model takes more than {HELD_BYTES_MAX} bytes; save it as .ubj")

    def _map(self, depth: int) -> dict[str, object]:
        self._hold(0)
        made: dict[str, object] = {}
        seen: set[str] = set()
        self._next()
        if self._peek() == ord("}"):
            self._next()
            return made
        while True:
            if self._peek() != ord('"'):
                raise self._broken("a map has a key that is no text")
            key = sys.intern(self._text())
            if key in seen:
                raise AmbiguousError(f"the model has '{printable(key, _SHOWN)}' twice")
            seen.add(key)
            if self._next() != ord(":"):
                raise self._broken("a key has no value")
            held_bytes = self._held_bytes
            value = self.value(depth + 1, key)
            if key in self._ignored:
                self._held_bytes = held_bytes
            elif value is not None:
                made[key] = value
            after = self._next()
            if after == ord("}"):
                return made
            if after != ord(","):
                raise self._broken("a map goes on without a comma")

    def _list(self, depth: int, key: str) -> object:
        self._next()
        if self._peek() in _NUMBER_BEGINS:
            return self._numbers(key)
        self._hold(0)
        made: list[object] = []
        while True:
            made.append(self.value(depth + 1))
            after = self._next()
            if after == ord("]"):
                return made
            if after != ord(","):
                raise self._broken("a list goes on without a comma")

    def _text(self) -> str:
        self._next()
        raw = bytearray()
        while self._cursor.n_left:
            page, at = self._cursor.window()
            stop = page.find(b'"', at)
            raw += page[at : stop if stop >= 0 else len(page)]
            self._cursor.advance((stop + 1 if stop >= 0 else len(page)) - at, 0)
            if len(raw) > _TEXT_BYTES_MAX:
                raise LimitError(f"a text in the model has more than {_TEXT_BYTES_MAX} bytes")
            if stop >= 0 and _n_backslashes(raw) % 2 == 0:
                return str(self._parsed(b'"%s"' % raw))
            if stop >= 0:
                raw += b'"'
        raise IncompleteError("the model ends within a text")

    def _plain(self) -> object:
        token = b""
        while self._cursor.n_left and len(token) <= _TOKEN_BYTES_MAX:
            page, at = self._cursor.window()
            match = _TOKEN.match(page, at)
            end = at if match is None else match.end()
            token += page[at:end]
            self._cursor.advance(end - at, 0)
            if end < len(page):
                return _WORDS[token] if token in _WORDS else self._parsed(token)
        if self._cursor.n_left:
            raise self._broken("a number is too long")
        raise IncompleteError("the model ends early")

    def _numbers(self, key: str) -> object:
        """Return a list of numbers, of which the bracket that begins it was passed."""
        dtype = self._kept.get(key)
        parts: list[bytes] = []
        rest, n_pieces = b"", 0
        while self._cursor.n_left:
            page, at = self._cursor.window()
            stop = page.find(b"]", at)
            cut = stop if stop >= 0 else page.rfind(b",", at)
            piece = rest + page[at : cut if cut >= 0 else len(page)]
            rest = b"" if stop >= 0 or cut < 0 else page[cut + 1 :]
            self._cursor.advance((stop + 1 if stop >= 0 else len(page)) - at, 0)
            if cut < 0:
                rest = piece
                if len(rest) > _NUMBER_BYTES_MAX:
                    raise self._broken("a number is too long")
                continue
            if stop < 0 or n_pieces or piece.strip():
                parts += self._piece(piece, dtype)
            n_pieces += 1
            if stop >= 0 and dtype is None and n_pieces == 1 and not piece.strip():
                self._hold(0)
                return []
            if stop >= 0:
                return _joined(parts, dtype)
        raise IncompleteError("the model ends within a list")

    def _piece(self, piece: bytes, dtype: np.dtype[np.generic] | None) -> list[bytes]:
        """Return numbers between commas as bytes of the dtype; nothing where there is none, but they are looked at."""
        if not piece.strip() or piece.translate(None, _NUMBER_BYTES):
            raise self._broken("a list of numbers holds something else")
        if dtype is None:
            return []
        numbers = self._parsed(b"[%s]" % piece)
        assert isinstance(numbers, list)
        if dtype.kind == "i" and not all(type(number) is int for number in numbers):
            raise self._broken("a list of whole numbers holds others")
        made = np.array(numbers, dtype).tobytes()
        self._hold(len(made))
        return [made]

    def _parsed(self, raw: bytes) -> object:
        try:
            value: object = json.loads(raw.decode("utf-8"), parse_constant=_no_constant)
        except ValueError:
            raise self._broken(f"'{printable(raw[:_SHOWN].decode('utf-8', 'replace'), _SHOWN)}' is no value") from None
        return value

    def _broken(self, what: str) -> CorruptError:
        return CorruptError(f"the model is not valid JSON before byte {self._cursor.position}: {what}")


def _blanks_end(page: bytes, at: int) -> int:
    match = _SPACE.match(page, at)
    return at if match is None else match.end()


def _n_backslashes(raw: bytearray) -> int:
    """Return how many backslashes are at the end; looks at no more than these."""
    n = 0
    while n < len(raw) and raw[-1 - n] == ord("\\"):
        n += 1
    return n


def _joined(parts: list[bytes], dtype: np.dtype[np.generic] | None) -> object:
    if dtype is None:
        return None
    raw = b"".join(parts)
    return np.frombuffer(raw, dtype) if dtype.kind == "i" else MemorySource(raw)


def _no_constant(text: str) -> NoReturn:
    raise CorruptError(f"the model holds {text}, which is not JSON")
