"""TensorBoard event files to points: TFRecord framing and the few protobuf fields that scalars need.

Own reader, since the writers' libraries are large and none of them is bounded. It reads only scalars, believes no
length before it has checked it, and stops quietly where a record is cut off. Never raises.

A record is: length (8 bytes, little-endian), masked CRC-32C of the length (4), the data, its CRC (4). Only the first
CRC is checked: it says where records begin, which is how the end of a long file is read without its beginning.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator

from monitor.logbook.points import STEP_MAX, LogPoint, key_of

POINTS_MAX = 50_000
RECORD_BYTES_MAX = 64 * 1024  # a scalar's record has about fifty; larger ones hold images or graphs
_HEADER = struct.Struct("<QI")
_FOOTER_BYTES = 4
_TAG_BYTES_MAX = 512
_MASK_DELTA = 0xA282EAD8
_POLYNOMIAL = 0x82F63B78  # CRC-32C, reflected
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
# A length below 2**32 has four zero bytes at its end: places worth the checksum.
_MAYBE_HEADER = re.compile(rb"(?=.{4}\x00\x00\x00\x00.{4})", re.DOTALL)

Field = tuple[int, int | bytes]


def event_points(content: bytes, *, whole: bool) -> list[LogPoint]:
    """Return the scalars that are a known quantity, in the order of the file; the end of a file is enough."""
    found: list[LogPoint] = []
    for record in _records(content, 0 if whole else _first_record(content)):
        found += _event(record)
    return found[-POINTS_MAX:]


def _crc32c_table() -> tuple[int, ...]:
    table = []
    for byte in range(256):
        crc = byte
        for _ in range(8):
            crc = (crc >> 1) ^ (_POLYNOMIAL if crc & 1 else 0)
        table.append(crc)
    return tuple(table)


_TABLE = _crc32c_table()


def masked_crc32c(data: bytes) -> int:
    """Return the CRC-32C of a few bytes, rotated and shifted as TFRecord has it."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = _TABLE[(crc ^ byte) & 0xFF] ^ (crc >> 8)
    crc ^= 0xFFFFFFFF
    return (((crc >> 15) | (crc << 17)) + _MASK_DELTA) & 0xFFFFFFFF


def _is_header(content: bytes, offset: int) -> bool:
    if offset + _HEADER.size > len(content):
        return False
    return bool(masked_crc32c(content[offset : offset + 8]) == _HEADER.unpack_from(content, offset)[1])


def _first_record(content: bytes) -> int:
    """Return where the first record begins in the end of a file, its length where there is none."""
    for match in _MAYBE_HEADER.finditer(content):
        if _is_header(content, match.start()):
            return match.start()
    return len(content)


def _records(content: bytes, offset: int) -> Iterator[bytes]:
    while _is_header(content, offset):
        length = _HEADER.unpack_from(content, offset)[0]
        begin = offset + _HEADER.size
        offset = begin + length + _FOOTER_BYTES
        if offset > len(content):
            return
        if length <= RECORD_BYTES_MAX:
            yield content[begin : begin + length]


def _event(record: bytes) -> list[LogPoint]:
    """Return the points of one Event: field 2 is the step, field 5 the Summary, whose field 1 are its Values."""
    step = 0
    values: list[bytes] = []
    for number, value in _fields(record):
        if number == 2 and isinstance(value, int):
            step = value
        elif number == 5 and isinstance(value, bytes):
            values += [v for n, v in _fields(value) if n == 1 and isinstance(v, bytes)]
    if not 0 <= step <= STEP_MAX:
        return []
    return [point for value in values if (point := _point(step, value)) is not None]


def _point(step: int, value: bytes) -> LogPoint | None:
    """Return the point of one Value: field 1 is the tag, field 2 a float, field 8 a tensor of one number."""
    key: str | None = None
    scalar: float | None = None
    for number, field in _fields(value):
        if not isinstance(field, bytes):
            continue
        if number == 1 and len(field) <= _TAG_BYTES_MAX:
            key = key_of(field.decode("utf-8", "replace"))
        elif number == 2 and len(field) == 4:
            scalar = struct.unpack("<f", field)[0]
        elif number == 8:
            scalar = _tensor(field)
    return LogPoint(step, key, scalar) if key is not None and scalar is not None else None


def _tensor(tensor: bytes) -> float | None:
    """Return the number in a TensorProto of one float (dtype 1) or double (dtype 2), None for any other."""
    dtype = 0
    content = b""
    for number, field in _fields(tensor):
        if number == 1 and isinstance(field, int):
            dtype = field
        elif number in (4, 5, 6) and isinstance(field, bytes):
            content = field
    form = {(1, 4): "<f", (2, 8): "<d"}.get((dtype, len(content)))
    return None if form is None else float(struct.unpack(form, content)[0])


def _fields(message: bytes) -> Iterator[Field]:
    """Yield (field number, value) of a message: varints as int, anything else as bytes; stop at what makes no sense."""
    offset = 0
    while offset < len(message):
        tag, offset = _varint(message, offset)
        if tag < 0:
            return
        number, kind = tag >> 3, tag & 7
        if kind == _VARINT:
            value, offset = _varint(message, offset)
            if offset < 0:
                return
            yield number, value
            continue
        if kind == _BYTES:
            length, offset = _varint(message, offset)
        else:
            length = {_FIXED64: 8, _FIXED32: 4}.get(kind, -1)
        if length < 0 or offset < 0 or offset + length > len(message):
            return
        yield number, message[offset : offset + length]
        offset += length


def _varint(message: bytes, offset: int) -> tuple[int, int]:
    """Return (value, next offset), (-1, -1) where there is none; 64 bits, two's complement as protobuf has it."""
    value = 0
    for place in range(10):
        if offset + place >= len(message):
            return -1, -1
        byte = message[offset + place]
        value |= (byte & 0x7F) << (7 * place)
        if not byte & 0x80:
            return value & (2**64 - 1), offset + place + 1
    return -1, -1
