"""The arguments of pickle opcodes that are written as text or in pairs; pure functions."""

from __future__ import annotations

import re
from typing import Protocol, SupportsIndex, overload

from monitor.read.reader import CorruptError

BIG_INTEGER = "<bigint>"  # stands for an integer outside of 64 bits
_INTEGER_MAX = 2**63

_ESCAPE = re.compile(r"\\(x[0-9a-fA-F]{2}|[0-7]{1,3}|.)", re.DOTALL)
_SIMPLE_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "a": "\a", "b": "\b", "f": "\f", "v": "\v"}


class Octets(Protocol):
    """What a pickle is read from: bytes, or something that is looked at as if it were."""

    def __len__(self) -> int: ...
    @overload
    def __getitem__(self, key: SupportsIndex, /) -> int: ...
    @overload
    def __getitem__(self, key: slice, /) -> bytes: ...
    def find(self, sub: bytes, start: int, end: int, /) -> int:
        """Return the first place of `sub` in a range, -1 where it is not there."""


def decimal(text: bytes) -> int:
    """Return the decimal integer in a text argument."""
    digits = text.removeprefix(b"-")
    if not digits.isdigit():
        raise CorruptError("the pickle has an integer that is none")
    return int(text)


def within_64_bits(value: int) -> int | str:
    """Return an integer of 64 bits as it is, BIG_INTEGER for a larger one."""
    return value if -_INTEGER_MAX <= value < _INTEGER_MAX else BIG_INTEGER


def in_pairs(items: list[object]) -> list[tuple[object, object]]:
    """Return keys and values that alternate as pairs."""
    if len(items) % 2:
        raise CorruptError("the pickle has a dict with a key that has no value")
    return list(zip(items[::2], items[1::2], strict=True))


def unescape(text: bytes) -> str:
    """Return the text of a quoted protocol 0 string, its escapes resolved."""

    def one(match: re.Match[str]) -> str:
        body = match[1]
        if body[0] == "x" and len(body) == 3:
            return chr(int(body[1:], 16))
        if body[0] in "01234567":
            return chr(int(body, 8) & 0xFF)
        return _SIMPLE_ESCAPES.get(body, body)

    return _ESCAPE.sub(one, text.decode("latin-1"))
