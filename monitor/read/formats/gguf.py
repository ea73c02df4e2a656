"""GGUF: a header of keys and tensor descriptions, then the tensors, each padded to the alignment.

Own parser of the header; versions 2 and 3, either byte order. Elements of quantised types are sized and
hashed, not measured. It is whole when the file ends where the padding of the last tensor ends.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import isfinite, prod
from typing import ClassVar

from monitor.read.access.byte_cursor import ByteCursor
from monitor.read.access.sources import FileSource
from monitor.read.access.strided import ChunkReader, Layout, contiguous_strides
from monitor.read.bounded_file import BoundedFile
from monitor.read.dtypes import DTYPES
from monitor.read.naming import EPOCH_KEYS, STEP_KEYS, UniqueNames, as_epoch, as_step, kind_of_flat_name, printable
from monitor.read.notes import FormatNotes
from monitor.read.reader import (
    AmbiguousError,
    Chunk,
    CorruptError,
    IncompleteError,
    LimitError,
    ReadLimits,
    TensorSpec,
    UnsupportedError,
)

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_ALIGNMENT_KEY, _ALIGNMENT_DEFAULT, _ALIGNMENT_MAX = "general.alignment", 32, 2**20
_PLAIN = {0: "float32", 1: "float16", 24: "int8", 25: "int16", 26: "int32", 27: "int64", 28: "float64", 30: "bfloat16"}
_BLOCKS = {  # type number: name, elements and bytes of a block
    **{2: ("q4_0", 32, 18), 3: ("q4_1", 32, 20), 6: ("q5_0", 32, 22), 7: ("q5_1", 32, 24), 8: ("q8_0", 32, 34)},
    **{9: ("q8_1", 32, 40), 10: ("q2_k", 256, 84), 11: ("q3_k", 256, 110), 12: ("q4_k", 256, 144)},
    **{13: ("q5_k", 256, 176), 14: ("q6_k", 256, 210), 15: ("q8_k", 256, 292), 16: ("iq2_xxs", 256, 66)},
    **{17: ("iq2_xs", 256, 74), 18: ("iq3_xxs", 256, 98), 19: ("iq1_s", 256, 50), 20: ("iq4_nl", 32, 18)},
    **{21: ("iq3_s", 256, 110), 22: ("iq2_s", 256, 82), 23: ("iq4_xs", 256, 136), 29: ("iq1_m", 256, 56)},
    **{34: ("tq1_0", 256, 54), 35: ("tq2_0", 256, 66), 39: ("mxfp4", 32, 17), 40: ("nvfp4", 64, 36)},
    **{41: ("q1_0", 128, 18)},
}
_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_TEXT, _ARRAY = 8, 9
_LENGTH_BYTES = 8
_ENTRY_BYTES_MIN = 13  # a key of no length, its type, a value of one byte
_KEY_BYTES_MAX = 65535
_SHOWN = 80


class _Values:
    """What follows the header, as a file of its own: where it begins is known only when the header was read."""

    __slots__ = ("_file", "start")

    def __init__(self, file: BoundedFile) -> None:
        self._file = file
        self.start = 0

    @property
    def size_bytes(self) -> int:
        return self._file.size_bytes - self.start

    def head(self, n: int) -> bytes:
        return self.read(0, min(n, self.size_bytes))

    def read(self, offset: int, n: int) -> bytes:
        return self._file.read(self.start + offset, n)

    def read_into(self, offset: int, buffer: memoryview) -> None:
        self._file.read_into(self.start + offset, buffer)


@dataclass(frozen=True, slots=True)
class GgufCheckpoint:
    """An open GGUF file."""

    step: int | None
    epoch: float | None
    scalars: Mapping[str, float]
    tensors: tuple[TensorSpec, ...]
    values: _Values
    reader: ChunkReader
    big_endian: bool

    def chunks(self, spec: TensorSpec) -> Iterator[Chunk]:
        """Yield the values of one tensor in order."""
        if spec.problem is not None or spec.n_elements == 0:
            return iter(())
        offset = spec.key
        assert isinstance(offset, int)
        dtype = DTYPES[spec.dtype]
        strides = contiguous_strides(spec.shape)
        layout = Layout(dtype=dtype, shape=spec.shape, strides=strides, big_endian=self.big_endian)
        return self.reader.chunks(FileSource(self.values, offset, spec.n_elements * dtype.itemsize), layout)


class GgufReader:
    """The reader of `.gguf` files."""

    name: ClassVar[str] = "gguf"
    suffixes: ClassVar[tuple[str, ...]] = (".gguf",)
    notes: ClassVar[FormatNotes] = FormatNotes(
        files="`.gguf`",
        written_by="gguf, llama.cpp; plain types are measured, quantised types sized and hashed",
        optimizer_state="none",
        whole="the file ends where the padding of the last tensor ends",
        not_yet="fewer bytes",
        never="more bytes, gaps, overlaps, duplicate names",
        step="a key whose last part is a step's name",
        safety="every count in the header is checked against the bytes that are there before anything is taken",
        limits=("versions 2 and 3, either byte order",),
        tested_in="tests/monitor/read/formats/test_gguf.py",
        tested_with="gguf",
    )

    @classmethod
    def sniff(cls, head: bytes, path: str) -> bool:  # noqa: ARG003 - the contract gives both
        """Say whether the file begins with GGUF's magic."""
        return head.startswith(_MAGIC)

    def open(self, file: BoundedFile, limits: ReadLimits) -> GgufCheckpoint:
        """Read and check the header; raise IncompleteError while the file is shorter than the header says."""
        cursor = ByteCursor(file, taken_bytes_max=limits.header_bytes_max)
        if not _MAGIC.startswith(file.head(len(_MAGIC))):
            raise CorruptError("the file has the name of a GGUF but does not begin like one")
        cursor.skip(len(_MAGIC))
        raw_version = cursor.unsigned(4)
        big_endian = raw_version != 0 and raw_version & 0xFFFF == 0
        version = int.from_bytes(raw_version.to_bytes(4, "little"), "big") if big_endian else raw_version
        if version not in _VERSIONS:
            raise UnsupportedError(f"version {version} of GGUF is not read; 2 and 3 are")
        values = _Values(file)
        header = _Header(cursor, limits, values, big_endian=big_endian)
        n_tensors, n_keys = header.count(), header.count()
        if n_tensors > limits.tensors_max:
            raise LimitError(f"the header names {n_tensors} tensors, the limit is {limits.tensors_max}")
        if n_keys * _ENTRY_BYTES_MIN > cursor.n_left:
            raise IncompleteError(f"the header claims {n_keys} keys, for which the file is too short")
        numbers = header.numbers(n_keys)
        alignment = _alignment(numbers.get(_ALIGNMENT_KEY, _ALIGNMENT_DEFAULT))
        tensors = tuple(header.tensor(alignment) for _ in range(n_tensors))
        values.start = _padded(cursor.position, alignment)
        _check_end(values.start + header.end, file.size_bytes)
        by_last = {key.rpartition(".")[2]: number for key, number in numbers.items()}
        return GgufCheckpoint(
            step=next((step for key in STEP_KEYS if (step := as_step(by_last.get(key))) is not None), None),
            epoch=next((epoch for key in EPOCH_KEYS if (epoch := as_epoch(by_last.get(key))) is not None), None),
            scalars={printable(k, limits.name_characters_max): float(v) for k, v in numbers.items() if isfinite(v)},
            tensors=tensors,
            values=values,
            reader=ChunkReader(limits.chunk_bytes_max),
            big_endian=big_endian,
        )


class _Header:
    """Reads the parts of a header one after the other."""

    __slots__ = ("_cursor", "_described_by", "_escaped", "_limits", "_names", "_order", "_structs", "_values", "end")

    def __init__(self, cursor: ByteCursor, limits: ReadLimits, values: _Values, *, big_endian: bool) -> None:
        self._cursor = cursor
        self._limits = limits
        self._values = values
        self._names = UniqueNames(limits.name_characters_max)
        self._escaped: set[bytes] = set()  # names that are not shown as they are
        self.end = 0  # of the last tensor so far with its padding, counted from the end of the header
        self._order = ">" if big_endian else "<"
        self._described_by: dict[int, struct.Struct] = {}
        self._structs = {number: struct.Struct(self._order + code) for number, code in _NUMBERS.items()}

    def count(self, n_bytes: int = _LENGTH_BYTES) -> int:
        """Return the next unsigned integer."""
        return self._cursor.unsigned(n_bytes, big_endian=self._order == ">")

    def text(self) -> bytes:
        """Return the next text, a key or a name."""
        n = self.count()
        if n > _KEY_BYTES_MAX:
            raise LimitError(f"a name in the header has {n} bytes, the limit is {_KEY_BYTES_MAX}")
        return self._cursor.take(n)

    def numbers(self, n_keys: int) -> dict[str, int | float]:
        """Return the keys whose values are numbers, at most `scalars_max`; pass over all others."""
        kept: dict[str, int | float] = {}
        seen: set[bytes] = set()
        for _ in range(n_keys):
            key = self.text()
            if key in seen:
                raise AmbiguousError(f"the header has the key '{_shown(key)}' twice")
            seen.add(key)
            kind = self.count(4)
            if kind in self._structs:
                (value,) = self._cursor.unpack(self._structs[kind])
                if len(kept) < self._limits.scalars_max:
                    kept[key.decode("utf-8", "backslashreplace")] = value
            else:
                self._pass(kind, key)
        return kept

    def _pass(self, kind: int, key: bytes) -> None:
        """Pass over a text or an array."""
        if kind == _TEXT:
            self._cursor.skip(self.count())
            return
        if kind != _ARRAY:
            raise CorruptError(f"the key '{_shown(key)}' has a value of the unknown type {kind}")
        inner, n = self.count(4), self.count()
        if inner in self._structs:
            self._cursor.skip(n * self._structs[inner].size)
        elif inner == _TEXT:
            self._cursor.demand(n * _LENGTH_BYTES)
            for _ in range(n):
                self._cursor.skip(self.count())
        else:
            raise UnsupportedError(f"the key '{_shown(key)}' has an array of type {inner}, which is not read")

    def tensor(self, alignment: int) -> TensorSpec:
        """Return the next tensor, its shape in row-major order; it must lie where the one before ends."""
        raw_name = self.text()
        name = self._claimed(raw_name)
        n_dimensions = self.count(4)
        if n_dimensions > self._limits.dimensions_max:
            raise LimitError(
                f"'{_shown(raw_name)}' has {n_dimensions} dimensions, the limit is {self._limits.dimensions_max}"
            )
        described = [int(number) for number in self._cursor.unpack(self._described(n_dimensions))]
        shape, (number, offset) = tuple(described[-3::-1]), described[-2:]
        if prod(shape) >= 2**63:
            raise CorruptError(f"'{_shown(raw_name)}' has a shape of {prod(shape)} elements")
        dtype, n_bytes = _size(raw_name, number, shape)
        if offset != self.end:
            raise CorruptError(f"'{_shown(raw_name)}' is at {offset}, the tensor before ends at {self.end}")
        self.end = _padded(offset + n_bytes, alignment)
        is_plain = number in _PLAIN
        return TensorSpec(
            name=name,
            kind=kind_of_flat_name(name, dtype, n_dimensions),
            dtype=dtype,
            shape=shape,
            n_elements=prod(shape),
            key=offset,
            problem=None if is_plain else f"quantised ({dtype.upper()}): sized and hashed, not measured",
            content=None if is_plain else FileSource(self._values, offset, n_bytes),
        )

    def _described(self, n_dimensions: int) -> struct.Struct:
        """Return the structure of what follows a number of dimensions: the sizes, a type's number, a place."""
        if n_dimensions not in self._described_by:
            self._described_by[n_dimensions] = struct.Struct(f"{self._order}{n_dimensions}QIQ")
        return self._described_by[n_dimensions]

    def _claimed(self, raw_name: bytes) -> str:
        """Return a name as text; raise AmbiguousError for one that was there before."""
        text = raw_name.decode("utf-8", "backslashreplace")
        name = self._names.claim(text)
        if name == text:
            return name
        if raw_name in self._escaped or printable(text, self._limits.name_characters_max) == text:
            raise AmbiguousError(f"the header has two tensors named '{_shown(raw_name)}'")
        self._escaped.add(raw_name)
        return name


def _size(name: bytes, number: int, shape: tuple[int, ...]) -> tuple[str, int]:
    """Return the dtype of a type's number, and how many bytes a tensor of it and of this shape takes."""
    if number in _PLAIN:
        dtype = _PLAIN[number]
        return dtype, prod(shape) * DTYPES[dtype].itemsize
    if number not in _BLOCKS:
        raise UnsupportedError(f"'{_shown(name)}' has elements of type {number}, which is not known here")
    dtype, per_block, block_bytes = _BLOCKS[number]
    if (shape[-1] if shape else 1) % per_block:
        raise CorruptError(f"'{_shown(name)}' has rows that are no whole number of {dtype} blocks")
    return dtype, prod(shape) // per_block * block_bytes


def _alignment(value: int | float) -> int:
    if type(value) is not int or not 1 <= value <= _ALIGNMENT_MAX or value & (value - 1):
        raise CorruptError("the alignment in the header is no power of two")
    return value


def _padded(n: int, alignment: int) -> int:
    return -(-n // alignment) * alignment


def _check_end(end: int, size_bytes: int) -> None:
    if end > size_bytes:
        raise IncompleteError(f"the tensors need {end} bytes, the file has {size_bytes}")
    if end < size_bytes:
        raise CorruptError(f"{size_bytes - end} bytes follow the last tensor")


def _shown(name: bytes) -> str:
    return printable(name.decode("utf-8", "backslashreplace"), _SHOWN)
