"""The header of one array in NumPy's own format: dtype, shape, order, and where the values begin.

The header is a Python literal; it is parsed as one (never evaluated), is at most 10 000 bytes, and must have exactly
the three known keys.
"""

from __future__ import annotations

import ast
from dataclasses import dataclass
from math import prod

import numpy as np

from monitor.read.access.sources import ByteSource
from monitor.read.access.strided import Layout, contiguous_strides
from monitor.read.dtypes import DTYPES
from monitor.read.naming import printable
from monitor.read.reader import CorruptError, IncompleteError, LimitError, ReadLimits, UnsupportedError

MAGIC = b"\x93NUMPY"
HEADER_BYTES_MAX = 10_000
_PREFIX_BYTES = 10
_LENGTH_BYTES = {1: 2, 2: 4, 3: 4}
_KEYS = {"descr", "fortran_order", "shape"}
_SHOWN = 40
_FIELDS_MAX = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class NpyHeader:
    """One array's header.

    `dtype` is the delivered dtype's name. `layout` counts from `data_offset`; it is None when `problem` says why the
    values of this array are not read (Python objects, records, dates, text). `n_bytes` is the whole length, with
    header, that the array must have; None where the values have no fixed size. `record` is the dtype of records with
    named fields, None for others and for records that hold objects.
    """

    dtype: str
    shape: tuple[int, ...]
    data_offset: int
    layout: Layout | None
    n_bytes: int | None
    problem: str | None
    record: np.dtype[np.generic] | None = None
    is_fortran: bool = False


def read_npy_header(source: ByteSource, limits: ReadLimits) -> NpyHeader:
    """Parse the header at the beginning of `source`; raise a ReadError for one that breaks the format."""
    if source.n_bytes < _PREFIX_BYTES:
        raise IncompleteError(f"an array of {source.n_bytes} bytes has no room for its header")
    prefix = _read(source, 0, _PREFIX_BYTES)
    if not prefix.startswith(MAGIC):
        raise CorruptError("an array does not begin with NumPy's magic")
    n_length = _LENGTH_BYTES.get(prefix[6])
    if n_length is None or prefix[7] != 0:
        raise UnsupportedError(f"version {prefix[6]}.{prefix[7]} of NumPy's format is not read")
    start = 8 + n_length
    if source.n_bytes < start:
        raise IncompleteError("an array ends within its header")
    n_header = int.from_bytes(_read(source, 8, n_length), "little")
    if n_header > HEADER_BYTES_MAX:
        raise LimitError(f"an array has a header of {n_header} bytes, the limit is {HEADER_BYTES_MAX}")
    if source.n_bytes < start + n_header:
        raise IncompleteError("an array ends within its header")
    raw = _read(source, start, n_header)
    descr, fortran_order, shape = _parsed(raw, "utf-8" if prefix[6] == 3 else "latin-1")
    if len(shape) > limits.dimensions_max:
        raise LimitError(f"an array has {len(shape)} dimensions, the limit is {limits.dimensions_max}")
    return _header(descr, fortran_order, shape, start + n_header)


def array_source_problem(header: NpyHeader, source: ByteSource) -> None:
    """Raise IncompleteError or CorruptError unless `source` has exactly the bytes that the header asks for."""
    if header.n_bytes is None or header.n_bytes == source.n_bytes:
        return
    if source.n_bytes < header.n_bytes:
        raise IncompleteError(f"an array needs {header.n_bytes} bytes, there are {source.n_bytes}")
    raise CorruptError(f"{source.n_bytes - header.n_bytes} bytes follow the values of an array")


def _read(source: ByteSource, offset: int, n: int) -> bytes:
    buffer = bytearray(n)
    source.read_into(offset, memoryview(buffer))
    return bytes(buffer)


def _parsed(raw: bytes, encoding: str) -> tuple[object, bool, tuple[int, ...]]:
    try:
        value = ast.literal_eval(raw.decode(encoding).strip())
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        raise CorruptError("the header of an array is no Python literal") from None
    if not isinstance(value, dict) or value.keys() != _KEYS:
        raise CorruptError("the header of an array does not consist of descr, fortran_order and shape")
    descr, fortran_order, shape = value["descr"], value["fortran_order"], value["shape"]
    if type(fortran_order) is not bool:
        raise CorruptError("the header of an array has a fortran_order that is no truth value")
    if type(shape) is not tuple or not all(type(size) is int and 0 <= size < 2**63 for size in shape):
        raise CorruptError("the header of an array has a shape that is no tuple of sizes")
    return descr, fortran_order, shape


def _header(descr: object, fortran_order: bool, shape: tuple[int, ...], data_offset: int) -> NpyHeader:
    record = _record(descr)
    dtype = record if record is not None else _dtype(descr)
    name = printable(descr, _SHOWN) if isinstance(descr, str) else "record"
    if dtype is None or dtype.newbyteorder("=").name not in DTYPES:
        fixed = dtype is not None and not dtype.hasobject
        assert dtype is not None or not fixed
        return NpyHeader(
            dtype=name if dtype is None or dtype.hasobject else dtype.name,
            shape=shape,
            data_offset=data_offset,
            layout=None,
            n_bytes=data_offset + prod(shape) * dtype.itemsize if dtype is not None and fixed else None,
            problem=_problem(dtype, name),
            record=record,
            is_fortran=fortran_order,
        )
    strides = contiguous_strides(shape)
    if fortran_order:
        strides = tuple(reversed(contiguous_strides(tuple(reversed(shape)))))
    native = dtype.newbyteorder("=")
    layout = Layout(dtype=native, shape=shape, strides=strides, big_endian=dtype.byteorder == ">")
    return NpyHeader(
        dtype=native.name,
        shape=shape,
        data_offset=data_offset,
        layout=layout,
        n_bytes=data_offset + prod(shape) * dtype.itemsize,
        problem=None,
    )


def _record(descr: object) -> np.dtype[np.generic] | None:
    """Return the dtype of records of named fields; None for anything else, and for records that hold objects."""
    if not isinstance(descr, list) or len(descr) > _FIELDS_MAX:
        return None
    try:
        dtype: np.dtype[np.generic] = np.lib.format.descr_to_dtype(descr)
    except (TypeError, ValueError, KeyError, IndexError, SyntaxError, RecursionError):
        raise CorruptError("an array has records whose fields are none") from None
    return None if dtype.hasobject or dtype.itemsize == 0 else dtype


def _dtype(descr: object) -> np.dtype[np.generic] | None:
    """Return the dtype of a plain type code, None for records and for what NumPy does not know."""
    if not isinstance(descr, str):
        return None
    try:
        return np.dtype(descr)
    except (TypeError, ValueError, SyntaxError):
        raise CorruptError(f"an array has the unknown dtype '{printable(descr, _SHOWN)}'") from None


def _problem(dtype: np.dtype[np.generic] | None, name: str) -> str:
    if dtype is not None and dtype.hasobject:
        return "an array of Python objects is a pickle; it is not read"
    if dtype is not None and dtype.names is not None:
        return "records are no plain numbers; they are not read"
    if dtype is not None and dtype.kind == "V":
        return f"values of dtype {name} have lost their type (NumPy writes bfloat16 so); they are not read"
    return f"values of dtype {name} are no plain numbers; they are not read"
