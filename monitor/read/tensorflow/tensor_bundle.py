"""TensorFlow's tensor bundle: a sorted table of entries in `.index`, values in `.data-00000-of-00001` and so on.

The table's checksums are verified, and those of small tensors, which tells an index from values that were written after
it. It must not know layers or optimizers; object_graph.py does.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

from monitor.read.access.protobuf_wire import fields, message, number, signed, varint
from monitor.read.bounded_file import BoundedFile
from monitor.read.bounded_unit import BoundedUnit
from monitor.read.dtypes import DTYPES
from monitor.read.naming import printable
from monitor.read.reader import (
    CorruptError,
    IncompleteError,
    LimitError,
    ReadLimits,
    UnsupportedError,
)

_MAGIC = 0xDB4775248B80FB57
_FOOTER_BYTES = 48
_TRAILER_BYTES = 5  # type and checksum behind every block
_BLOCK_BYTES_MAX = 64 * 2**20
_MASK_DELTA = 0xA282EAD8
_CHECKED_BYTES_MAX = 256 * 1024  # of values, smallest tensors first
_SHARDS_MAX = 100_000
_SHOWN = 80

STRING = "string"
_DTYPES = {
    **{1: "float32", 2: "float64", 3: "int32", 4: "uint8", 5: "int16", 6: "int8", 7: STRING, 8: "complex64"},
    **{9: "int64", 10: "bool", 14: "bfloat16", 17: "uint16", 18: "complex128", 19: "float16", 20: "resource"},
    **{21: "variant", 22: "uint32", 23: "uint64", 24: "float8_e5m2", 25: "float8_e4m3fn"},
}


@dataclass(frozen=True, slots=True, kw_only=True)
class BundleEntry:
    """One tensor: where its bytes are. `problem` is None, or says why its values are not read."""

    key: str
    dtype: str
    shape: tuple[int, ...]
    shard: int
    offset: int
    n_bytes: int
    checksum: int
    problem: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Bundle:
    """All entries in the order of their keys, and the files that hold the values."""

    entries: dict[str, BundleEntry]
    shards: tuple[BoundedFile, ...]
    big_endian: bool

    def read(self, entry: BundleEntry, bytes_max: int) -> bytes:
        """Return the raw bytes of one tensor; raise LimitError when there are more than `bytes_max`."""
        if entry.n_bytes > bytes_max:
            raise LimitError(f"'{printable(entry.key, _SHOWN)}' has {entry.n_bytes} bytes, the limit is {bytes_max}")
        return self.shards[entry.shard].read(entry.offset, entry.n_bytes)

    def text(self, entry: BundleEntry, bytes_max: int) -> bytes:
        """Return the value of a tensor that holds one text."""
        raw = self.read(entry, bytes_max)
        n, at = varint(raw, 0)
        if at + 4 + n != len(raw):
            raise CorruptError(f"the text '{printable(entry.key, _SHOWN)}' has another length than it states")
        return raw[at + 4 :]


def shard_name(prefix: str, shard: int, n_shards: int) -> str:
    """Return the name of a file of values."""
    return f"{prefix}.data-{shard:05d}-of-{n_shards:05d}"


def open_bundle(unit: BoundedUnit, prefix: str, limits: ReadLimits) -> Bundle:
    """Read and check the index, and that every value it names is there.

    Raises IncompleteError while the index, a file of values, or the end of one is missing.
    """
    index = unit.open(f"{prefix}.index")
    header: memoryview | None = None
    entries: dict[str, BundleEntry] = {}
    for key, value in _table(index, limits):
        if not key:
            header = value
            continue
        if len(entries) >= limits.tensors_max:
            raise LimitError(f"the index names more than {limits.tensors_max} tensors")
        entry = _entry(key.decode("utf-8", "surrogateescape"), value, limits)
        entries[entry.key] = entry
    if header is None:
        raise CorruptError("the index has no header entry")
    n_shards, is_big_endian = _header(header)
    missing = [n for i in range(n_shards) if (n := shard_name(prefix, i, n_shards)) not in unit]
    if missing:
        raise IncompleteError(f"'{printable(missing[0], _SHOWN)}' is not there (yet)")
    shards = tuple(unit.open(shard_name(prefix, i, n_shards)) for i in range(n_shards))
    for entry in entries.values():
        if entry.shard >= n_shards:
            raise CorruptError(f"'{printable(entry.key, _SHOWN)}' is in file {entry.shard} of {n_shards}")
        if entry.offset + entry.n_bytes > shards[entry.shard].size_bytes:
            raise IncompleteError(
                f"the values of '{printable(entry.key, _SHOWN)}' end at byte {entry.offset + entry.n_bytes}, the file "
                f"has {shards[entry.shard].size_bytes}"
            )
    bundle = Bundle(entries=entries, shards=shards, big_endian=is_big_endian)
    _check_values(bundle, index)
    return bundle


def _check_values(bundle: Bundle, index: BoundedFile) -> None:
    """Hold the smallest tensors against their checksums."""
    left = _CHECKED_BYTES_MAX
    for entry in sorted(bundle.entries.values(), key=lambda e: e.n_bytes):
        left -= entry.n_bytes
        if left < 0:
            return
        if entry.problem is not None or entry.dtype == STRING:
            continue
        if _masked(crc32c(bundle.read(entry, _CHECKED_BYTES_MAX))) != entry.checksum:
            shown = printable(entry.key, _SHOWN)
            if bundle.shards[entry.shard].stat.mtime_ns > index.stat.mtime_ns:
                raise IncompleteError(f"the values of '{shown}' are newer than the index, which is written last")
            raise CorruptError(f"the values of '{shown}' do not match their checksum")


def _header(raw: memoryview) -> tuple[int, bool]:
    n_shards, is_big_endian = 1, False
    for field, value in fields(raw):
        if field == 1:
            n_shards = number(value)
        elif field == 2:
            is_big_endian = number(value) == 1
    if not 0 < n_shards <= _SHARDS_MAX:
        raise LimitError(f"the index states {n_shards} files of values, 1 to {_SHARDS_MAX} are read")
    return n_shards, is_big_endian


def _entry(key: str, raw: memoryview, limits: ReadLimits) -> BundleEntry:
    shown = printable(key, _SHOWN)
    numbers = {1: 0, 3: 0, 4: 0, 5: 0, 6: 0}
    shape: tuple[int, ...] = ()
    problem = None
    for field, value in fields(raw):
        if field in numbers:
            numbers[field] = number(value)
        elif field == 2:
            shape = _shape(message(value), shown, limits)
        elif field == 7:
            problem = "it is saved in slices, which are not read"
    dtype = _DTYPES.get(numbers[1])
    offset, n_bytes = signed(numbers[4]), signed(numbers[5])
    if offset < 0 or n_bytes < 0:
        raise CorruptError(f"'{shown}' has a negative place or size")
    if dtype not in DTYPES and dtype != STRING and problem is None:
        problem = f"elements of the type {dtype or numbers[1]} are no numbers that are read"
    if dtype in DTYPES and problem is None and prod(shape) * DTYPES[dtype].itemsize != n_bytes:
        raise CorruptError(f"'{shown}' has {n_bytes} bytes, its shape and type need another number")
    return BundleEntry(
        key=key,
        dtype=dtype or "unknown",
        shape=shape,
        shard=signed(numbers[3]) if signed(numbers[3]) >= 0 else _SHARDS_MAX,
        offset=offset,
        n_bytes=n_bytes,
        checksum=numbers[6],
        problem=problem,
    )


def _shape(raw: memoryview, shown: str, limits: ReadLimits) -> tuple[int, ...]:
    sizes: list[int] = []
    for field, value in fields(raw):
        if field != 2:
            continue
        size = 0
        for inner, inner_value in fields(message(value)):
            size = signed(number(inner_value)) if inner == 1 else size
        if size < 0:
            raise CorruptError(f"'{shown}' has a dimension of negative size")
        sizes.append(size)
        if len(sizes) > limits.dimensions_max:
            raise LimitError(f"'{shown}' has more than {limits.dimensions_max} dimensions")
    return tuple(sizes)


def _table(file: BoundedFile, limits: ReadLimits) -> Iterator[tuple[bytes, memoryview]]:
    """Yield all (key, value) of a sorted table; the keys must rise."""
    if file.size_bytes > limits.header_bytes_max:
        raise LimitError(f"the index has {file.size_bytes} bytes, the limit is {limits.header_bytes_max}")
    if file.size_bytes < _FOOTER_BYTES:
        raise IncompleteError(f"the index has {file.size_bytes} bytes, fewer than its last record")
    data = file.read(0, file.size_bytes)
    footer = data[-_FOOTER_BYTES:]
    if int.from_bytes(footer[40:], "little") != _MAGIC:
        raise IncompleteError("the index does not end as TensorFlow ends one: it is still being written, or cut short")
    _, at = varint(footer, 0)
    _, at = varint(footer, at)
    offset, at = varint(footer, at)
    n_bytes, _ = varint(footer, at)
    last: bytes | None = None
    for _, handle in _block(data, offset, n_bytes):
        inner_offset, at = varint(handle, 0)
        inner_bytes, _ = varint(handle, at)
        for key, value in _block(data, inner_offset, inner_bytes):
            if last is not None and key <= last:
                raise CorruptError("the keys of the index are not in order")
            last = key
            yield key, value


def _block(data: bytes, offset: int, n_bytes: int) -> Iterator[tuple[bytes, memoryview]]:
    end = offset + n_bytes
    if n_bytes > _BLOCK_BYTES_MAX or end + _TRAILER_BYTES > len(data):
        raise CorruptError("a block of the index lies outside of it")
    if data[end] != 0:
        raise UnsupportedError("the index is compressed, which TensorFlow itself never does")
    stored = int.from_bytes(data[end + 1 : end + 5], "little")
    if stored != _masked(crc32c(data[offset : end + 1])):
        raise CorruptError("a block of the index does not match its checksum")
    block = memoryview(data)[offset:end]
    if n_bytes < 4:
        raise CorruptError("a block of the index is too short")
    n_restarts = int.from_bytes(block[-4:], "little")
    stop = n_bytes - 4 - 4 * n_restarts
    if stop < 0:
        raise CorruptError("a block of the index has more restarts than bytes")
    at, key = 0, b""
    while at < stop:
        shared, at = varint(block, at)
        unshared, at = varint(block, at)
        value_bytes, at = varint(block, at)
        if shared > len(key) or at + unshared + value_bytes > stop:
            raise CorruptError("an entry of the index is longer than its block")
        key = key[:shared] + bytes(block[at : at + unshared])
        at += unshared
        yield key, block[at : at + value_bytes]
        at += value_bytes


def _table_of_remainders() -> tuple[int, ...]:
    table = []
    for byte in range(256):
        remainder = byte
        for _ in range(8):
            remainder = (remainder >> 1) ^ (0x82F63B78 if remainder & 1 else 0)
        table.append(remainder)
    return tuple(table)


_REMAINDERS = _table_of_remainders()


def crc32c(data: bytes | memoryview) -> int:
    """Return the Castagnoli checksum."""
    table, remainder = _REMAINDERS, 0xFFFFFFFF
    for byte in data:
        remainder = table[(remainder ^ byte) & 0xFF] ^ (remainder >> 8)
    return remainder ^ 0xFFFFFFFF


def _masked(checksum: int) -> int:
    """Return a checksum as it is stored beside data that may hold checksums itself."""
    return (((checksum >> 15) | (checksum << 17)) + _MASK_DELTA) & 0xFFFFFFFF
