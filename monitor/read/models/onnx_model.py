"""The initializers of an ONNX model: names, dtypes, shapes and where their values lie, values left in the file.

Own walker over the protocol buffer; only what leads to initializers is entered, everything else is passed over. It must
not open other files: values that lie in one are described by its name.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from math import prod

from monitor.read.access.byte_cursor import ByteCursor
from monitor.read.access.protobuf_wire import BYTES, FIXED32, FIXED64, VARINT, signed
from monitor.read.naming import printable
from monitor.read.reader import CorruptError, IncompleteError, LimitError, ReadLimits, UnsafeReferenceError

_DTYPES = {
    **{1: "float32", 2: "uint8", 3: "int8", 4: "uint16", 5: "int16", 6: "int32", 7: "int64", 9: "bool"},
    **{10: "float16", 11: "float64", 12: "uint32", 13: "uint64", 14: "complex64", 15: "complex128", 16: "bfloat16"},
    **{17: "float8_e4m3fn", 18: "float8_e4m3fnuz", 19: "float8_e5m2", 20: "float8_e5m2fnuz", 24: "float8_e8m0fnu"},
}
_UNREAD = {8: "string", 21: "uint4", 22: "int4", 23: "float4e2m1", 25: "uint2", 26: "int2"}
_VARINT_BYTES_MAX = 10
_TEXT_BYTES_MAX = 65535
_PROPERTIES_MAX = 4096
_SHOWN = 80

# Fields of ModelProto, GraphProto, TensorProto and StringStringEntryProto.
_IR_VERSION, _GRAPH, _OPSET_IMPORT, _METADATA = 1, 7, 8, 14
_INITIALIZER, _SPARSE_INITIALIZER = 5, 15
_GRAPH_FIELDS = frozenset({0, _INITIALIZER, _SPARSE_INITIALIZER})  # 0 is no field, and to be refused
_DIMS, _DATA_TYPE, _SEGMENT, _NAME, _RAW_DATA, _EXTERNAL_DATA, _DATA_LOCATION = 1, 2, 3, 8, 9, 13, 14
_FLOATS, _INT32S, _INT64S, _DOUBLES, _UINT64S = 4, 5, 7, 10, 11
_VARINT_FIELDS = frozenset({_INT32S, _INT64S, _UINT64S})


@dataclass(frozen=True, slots=True, kw_only=True)
class External:
    """Values in another file: its name, which leads nowhere else, and the place in it (length None: to its end)."""

    location: str
    offset: int
    n_bytes: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Initializer:
    """One initializer; values lie at `offset` of this file, as `varints` or as they are, or in another file.

    `is_raw` says that what has a problem is nevertheless there in one piece, as raw data.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int = 0
    n_bytes: int = 0
    varints: bool = False
    is_raw: bool = False
    external: External | None = None
    problem: str | None = None


@dataclass(slots=True)
class OnnxModel:
    """All initializers in the model's order, and its metadata."""

    initializers: list[Initializer] = field(default_factory=list)
    metadata: dict[str, str] = field(default_factory=dict)
    n_sparse: int = 0


@dataclass(slots=True)
class _TensorParts:
    """What the fields of one TensorProto said so far."""

    dims: list[int] = field(default_factory=list)
    data_type: int = 0
    name: str = ""
    places: list[tuple[int, int, int]] = field(default_factory=list)  # field, offset, bytes
    external: dict[str, str] = field(default_factory=dict)
    is_external: bool = False
    is_segment: bool = False
    is_unpacked: bool = False


def read_model(cursor: ByteCursor, limits: ReadLimits) -> OnnxModel:
    """Walk a whole model; raise IncompleteError where it ends early or lacks what every model has."""
    model, seen = OnnxModel(), set()
    for number, wire, offset, n in _fields(cursor, cursor.end, is_top=True):
        seen.add(number)
        if number == _GRAPH:
            cursor.position = _demand(wire, BYTES, offset)
            _read_graph(cursor, offset + n, model, limits)
        elif number == _METADATA and wire == BYTES and len(model.metadata) < _PROPERTIES_MAX:
            cursor.position = offset
            key, value = _entry(cursor, offset + n)
            model.metadata[key] = value
            cursor.position = offset + n
    missing = {_IR_VERSION: "its version", _GRAPH: "its graph", _OPSET_IMPORT: "its operator sets"}
    for number, what in missing.items():
        if number not in seen:
            raise IncompleteError(f"the model ends before {what}")
    return model


def _read_graph(cursor: ByteCursor, end: int, model: OnnxModel, limits: ReadLimits) -> None:
    for number, wire, offset, n in _fields(cursor, end, wanted=_GRAPH_FIELDS):
        if number == _SPARSE_INITIALIZER:
            model.n_sparse += 1
        if number != _INITIALIZER:
            continue
        if len(model.initializers) >= limits.tensors_max:
            raise LimitError(f"the model has more than {limits.tensors_max} initializers")
        cursor.position = _demand(wire, BYTES, offset)
        model.initializers.append(_initializer(_read_tensor(cursor, offset + n, limits)))


def _read_tensor(cursor: ByteCursor, end: int, limits: ReadLimits) -> _TensorParts:
    parts = _TensorParts()
    for number, wire, offset, n in _fields(cursor, end):
        if number == _DIMS and wire == VARINT:
            parts.dims.append(signed(n))
        elif number == _DIMS and wire == BYTES:
            cursor.position = offset
            while cursor.position < offset + n:
                parts.dims.append(signed(_varint(cursor, offset + n)))
                if len(parts.dims) > limits.dimensions_max:
                    break
            cursor.position = offset + n
        elif number == _DATA_TYPE and wire == VARINT:
            parts.data_type = n
        elif number == _NAME and wire == BYTES:
            parts.name = _text(cursor, offset, n)
        elif number == _EXTERNAL_DATA and wire == BYTES and len(parts.external) < _PROPERTIES_MAX:
            cursor.position = offset
            key, value = _entry(cursor, offset + n)
            parts.external[key] = value
            cursor.position = offset + n
        elif number == _DATA_LOCATION and wire == VARINT:
            parts.is_external = n == 1
        elif number == _SEGMENT:
            parts.is_segment = True
        elif number in (_RAW_DATA, _FLOATS, _INT32S, _INT64S, _DOUBLES, _UINT64S):
            parts.is_unpacked |= wire != BYTES
            parts.places = [*parts.places[:1], (number, offset, n)]
        if len(parts.dims) > limits.dimensions_max:
            raise LimitError(f"an initializer has more than {limits.dimensions_max} dimensions")
    return parts


def _initializer(parts: _TensorParts) -> Initializer:
    shown = printable(parts.name, _SHOWN)
    if any(size < 0 for size in parts.dims) or prod(parts.dims) >= 2**63:
        raise CorruptError(f"'{shown}' has a size that is none")
    shape = tuple(parts.dims)
    dtype = _DTYPES.get(parts.data_type, _UNREAD.get(parts.data_type, "unknown"))
    problem = None
    if parts.data_type not in _DTYPES:
        problem = f"elements of type {dtype} are not read"
    elif parts.is_segment or parts.is_unpacked:
        problem = "values in an old form, in segments or one by one, are not read"
    if parts.is_external:
        external = _external(parts.external, shown)
        return Initializer(
            name=parts.name, dtype=dtype, shape=shape, external=external, problem=problem, is_raw=not parts.is_segment
        )
    if len(parts.places) > 1 and problem is None:
        raise CorruptError(f"'{shown}' has its values twice")
    if not parts.places:
        if prod(shape) and problem is None:
            raise CorruptError(f"'{shown}' has no values")
        return Initializer(name=parts.name, dtype=dtype, shape=shape, problem=problem)
    number, offset, n = parts.places[0]
    return Initializer(
        name=parts.name,
        dtype=dtype,
        shape=shape,
        offset=offset,
        n_bytes=n,
        varints=number in _VARINT_FIELDS,
        is_raw=number == _RAW_DATA and len(parts.places) == 1 and not (parts.is_segment or parts.is_unpacked),
        problem=problem,
    )


def _external(entries: dict[str, str], shown: str) -> External:
    """Return where the values of an initializer lie; its file must be a sibling of the model."""
    location = entries.get("location", "")
    if not location or location in (".", "..") or any(c in location for c in "/\\\0:"):
        raise UnsafeReferenceError(
            f"'{shown}' keeps its values in '{printable(location, _SHOWN)}'; only a file beside the model is read"
        )
    places = [entries.get(key, "0") for key in ("offset", "length")]
    if not all(text.isascii() and text.isdecimal() and len(text) < 20 for text in places):
        raise CorruptError(f"'{shown}' has a place in another file that is none")
    n_bytes = int(places[1]) if "length" in entries else None
    return External(location=location, offset=int(places[0]), n_bytes=n_bytes)


def _entry(cursor: ByteCursor, end: int) -> tuple[str, str]:
    """Return key and value of a pair of texts."""
    texts = {1: "", 2: ""}
    for number, wire, offset, n in _fields(cursor, end):
        if number in texts and wire == BYTES:
            texts[number] = _text(cursor, offset, n)
    return texts[1], texts[2]


def _text(cursor: ByteCursor, offset: int, n: int) -> str:
    if n > _TEXT_BYTES_MAX:
        raise LimitError(f"a name in the model has {n} bytes, the limit is {_TEXT_BYTES_MAX}")
    cursor.position = offset
    return cursor.take(n).decode("utf-8", "backslashreplace")


def _demand(wire: int, wanted: int, offset: int) -> int:
    if wire != wanted:
        raise CorruptError("a part of the model is of another wire type than the format says")
    return offset


def _fields(
    cursor: ByteCursor, end: int, *, is_top: bool = False, wanted: frozenset[int] | None = None
) -> Iterator[tuple[int, int, int, int]]:
    """Yield (field number, wire type, offset, n) of a message: of bytes place and length, of a varint its value as n.

    Whatever the caller did in between, the walk goes on after the field. Where only some fields are `wanted`, others
    may be left out.
    """
    while cursor.position < end:
        if wanted is not None and _pass_small(cursor, end, wanted):
            continue
        key = _varint(cursor, end)
        number, wire = key >> 3, key & 7
        if number == 0:
            raise CorruptError("a message has a field of number 0")
        if wire == VARINT:
            n, offset = _varint(cursor, end), cursor.position
            after = offset
        elif wire in (BYTES, FIXED32, FIXED64):
            n = _varint(cursor, end) if wire == BYTES else 4 if wire == FIXED32 else 8
            offset = cursor.position
            after = offset + n
        else:
            raise CorruptError(f"a message has a field of the unknown wire type {wire}")
        if after > end:
            error = IncompleteError if is_top else CorruptError
            raise error(f"a field of {n} bytes runs over the end of its message")
        yield number, wire, offset, n
        cursor.position = after


def _pass_small(cursor: ByteCursor, end: int, wanted: frozenset[int]) -> bool:
    """Pass over small fields of bytes that are not wanted, such as the nodes of a graph, page by page; say if any."""
    page, start = cursor.window()
    at, n_fields = start, 0
    stop = start + end - cursor.position
    last = min(len(page), stop) - 1  # a field takes two bytes at least
    while at < last:
        key, after = page[at], at + 2 + page[at + 1]
        if key & 0x87 != BYTES or page[at + 1] > 0x7F or key >> 3 in wanted or after > stop:
            break
        at, n_fields = after, n_fields + 1
    if n_fields:
        cursor.advance(at - start, 2 * n_fields)
    return n_fields > 0


def _varint(cursor: ByteCursor, end: int) -> int:
    value = 0
    for i in range(_VARINT_BYTES_MAX):
        if cursor.position >= end and end != cursor.end:
            raise CorruptError("a number runs over the end of its message")
        byte = cursor.byte()
        value |= (byte & 0x7F) << (7 * i)
        if byte < 0x80:
            if value >= 2**64:
                break
            return value
    raise CorruptError("a number has more than 64 bits")
