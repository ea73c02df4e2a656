"""How single values become fit for a database, and how small structures become one value of it.

Pure. Integers are clamped to 64 bits, NaN and infinity become None or are left out, texts become valid UTF-8. What
cannot be decoded is called a damaged database.
"""

from __future__ import annotations

import json
import math
import struct
import sys
from array import array
from collections.abc import Iterable, Mapping
from typing import Final

from storage.errors import CorruptDatabaseError
from storage.models import printable_text
from storage.records import Histogram

INT64_MAX: Final = 2**63 - 1
DETAILS_MAX: Final = 20
SCALARS_MAX: Final = 4096

_HISTOGRAM_VERSION: Final = 1
_HISTOGRAM_HEADER: Final = struct.Struct("<BBccIQ")  # version, exact, codes of indices and counts, length, n_sampled
_CODES: Final = (("b", 7), ("h", 15), ("i", 31), ("q", 63))  # array type codes and their bits, all signed


def integer(value: int) -> int:
    """Return an integer clamped to what 64 bits hold."""
    return max(-INT64_MAX, min(INT64_MAX, value))


def optional_integer(value: int | None) -> int | None:
    """Return an integer clamped to what 64 bits hold, None as None."""
    return None if value is None else max(-INT64_MAX, min(INT64_MAX, value))


def finite(value: float | None) -> float | None:
    """Return a number as it is, None when it is None, NaN or infinite."""
    return value if value is not None and math.isfinite(value) else None


def encode_histogram(histogram: Histogram) -> bytes:
    """Return a histogram as compact bytes: a header, then indices and counts in the narrowest width that holds them.

    Little-endian: version (u8), exact (u8), array codes of indices and of counts (one of b, h, i, q each), number of
    bins (u32), n_sampled (u64), the indices, the counts.
    """
    indices, index_code = _pack(histogram.bin_indices)
    counts, count_code = _pack(histogram.counts)
    header = _HISTOGRAM_HEADER.pack(
        _HISTOGRAM_VERSION, histogram.exact, index_code, count_code, len(histogram.counts), integer(histogram.n_sampled)
    )
    return header + indices + counts


def decode_histogram(blob: bytes) -> Histogram:
    """Return the histogram that `encode_histogram` was given; raise CorruptDatabaseError for bytes it never makes."""
    try:
        version, exact, index_code, count_code, n_bins, n_sampled = _HISTOGRAM_HEADER.unpack_from(blob)
        index_array, count_array = array(index_code.decode("ascii")), array(count_code.decode("ascii"))
        middle = _HISTOGRAM_HEADER.size + n_bins * index_array.itemsize
        index_array.frombytes(blob[_HISTOGRAM_HEADER.size : middle])
        count_array.frombytes(blob[middle:])
    except (struct.error, ValueError, TypeError) as error:
        raise _damaged("histogram", error) from error
    if version != _HISTOGRAM_VERSION:
        raise _damaged("histogram", f"version {version}")
    if sys.byteorder == "big":
        index_array.byteswap()
        count_array.byteswap()
    if len(index_array) != n_bins or len(count_array) != n_bins:
        raise _damaged("histogram", "cut short")
    return Histogram(bin_indices=tuple(index_array), counts=tuple(count_array), n_sampled=n_sampled, exact=bool(exact))


def _pack(values: tuple[int, ...]) -> tuple[bytes, bytes]:
    largest = max(max(values, default=0), -min(values, default=0))
    code = next(code for code, bits in _CODES if largest < 2**bits)
    packed = array(code, values)
    if sys.byteorder == "big":
        packed.byteswap()
    return packed.tobytes(), code.encode("ascii")


def encode_numbers(numbers: Mapping[str, float]) -> str | None:
    """Return a mapping of names to numbers as JSON, its non-finite values left out; None when nothing is left."""
    kept = {name: value for name, value in numbers.items() if math.isfinite(value)}
    return json.dumps(kept, allow_nan=False, separators=(",", ":")) if kept else None


def decode_numbers(text: str | None) -> dict[str, float]:
    """Return the mapping that `encode_numbers` was given; empty for None."""
    if text is None:
        return {}
    try:
        numbers: dict[str, float] = json.loads(text)
    except ValueError as error:
        raise _damaged("list of numbers", error) from error
    return numbers


def encode_details(details: Iterable[tuple[str, str]]) -> str:
    """Return label and text pairs as JSON, at most 20."""
    return json.dumps([[printable_text(label), printable_text(text)] for label, text in details][:DETAILS_MAX])


def decode_details(text: str) -> tuple[tuple[str, str], ...]:
    """Return the pairs that `encode_details` was given."""
    try:
        return tuple((label, value) for label, value in json.loads(text))
    except (ValueError, TypeError) as error:
        raise _damaged("list of details", error) from error


def _damaged(what: str, reason: object) -> CorruptDatabaseError:
    return CorruptDatabaseError(
        f"database: a stored {what} is damaged ({reason}); check the disk, and if there are more of these, "
        "move the database aside and start again"
    )
