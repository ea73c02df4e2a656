"""Protocol buffers field by field, without their descriptions; every length is checked against what is there."""

from __future__ import annotations

from collections.abc import Iterator

from monitor.read.reader import CorruptError

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
_FIXED_BYTES = {FIXED64: 8, FIXED32: 4}
_VARINT_BYTES_MAX = 10


def varint(data: memoryview | bytes, at: int) -> tuple[int, int]:
    """Return (value, place after it) of the unsigned number at `at`; raise CorruptError for a broken one."""
    value = 0
    for i in range(_VARINT_BYTES_MAX):
        if at + i >= len(data):
            raise CorruptError("a number runs over the end of its message")
        byte = data[at + i]
        value |= (byte & 0x7F) << (7 * i)
        if byte < 0x80:
            if value >= 2**64:
                break
            return value, at + i + 1
    raise CorruptError("a number has more than 64 bits")


def fields(message: memoryview | bytes) -> Iterator[tuple[int, int | memoryview]]:
    """Yield (field number, value) of a message: a number for varints and fixed ones, the bytes for the rest.

    Groups, which nobody writes any more, and broken fields raise CorruptError.
    """
    data = memoryview(message)
    at = 0
    while at < len(data):
        key, at = varint(data, at)
        number, wire = key >> 3, key & 7
        if number == 0:
            raise CorruptError("a message has a field of number 0")
        if wire == VARINT:
            value, at = varint(data, at)
            yield number, value
            continue
        if wire in _FIXED_BYTES:
            n = _FIXED_BYTES[wire]
        elif wire == BYTES:
            n, at = varint(data, at)
        else:
            raise CorruptError(f"a message has a field of the unknown wire type {wire}")
        if at + n > len(data):
            raise CorruptError(f"a field of {n} bytes runs over the end of its message")
        part = data[at : at + n]
        yield number, part if wire == BYTES else int.from_bytes(part, "little")
        at += n


def signed(value: int) -> int:
    """Return a 64-bit number as the signed one that it stands for."""
    return value - 2**64 if value >= 2**63 else value


def text(value: int | memoryview) -> str:
    """Return the text of a field; raise CorruptError where it is a number."""
    return bytes(_as_bytes(value)).decode("utf-8", "replace")


def message(value: int | memoryview) -> memoryview:
    """Return the bytes of a field that holds a message; raise CorruptError where it is a number."""
    return _as_bytes(value)


def number(value: int | memoryview) -> int:
    """Return the number of a field; raise CorruptError where it holds bytes."""
    if not isinstance(value, int):
        raise CorruptError("a field holds bytes where a number belongs")
    return value


def _as_bytes(value: int | memoryview) -> memoryview:
    if isinstance(value, int):
        raise CorruptError("a field holds a number where bytes belong")
    return value
