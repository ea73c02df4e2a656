"""Byte sources made of other sources: a part of one, several in a row, one field of records.

They answer positioned reads in bounded memory. They must not know tensors.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate

import numpy as np

from monitor.read.access.sources import ByteSource
from monitor.read.reader import IncompleteError

_BLOCK_BYTES = 64 * 1024


class PartSource:
    """A stretch of another source."""

    __slots__ = ("_offset", "_source", "n_bytes")

    def __init__(self, source: ByteSource, offset: int, n_bytes: int) -> None:
        self._source = source
        self._offset = offset
        self.n_bytes = n_bytes

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill `buffer` from `offset` of the stretch."""
        check_range(offset, buffer.nbytes, self.n_bytes)
        self._source.read_into(self._offset + offset, buffer)


class JoinedSource:
    """Sources one after the other."""

    __slots__ = ("_begins", "_sources", "n_bytes")

    def __init__(self, sources: Sequence[ByteSource]) -> None:
        self._sources = tuple(sources)
        ends = list(accumulate(source.n_bytes for source in self._sources))
        self._begins = [0, *ends[:-1]]
        self.n_bytes = ends[-1] if ends else 0

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill `buffer` from `offset` of all of them together."""
        check_range(offset, buffer.nbytes, self.n_bytes)
        done = 0
        at = bisect_right(self._begins, offset) - 1
        while done < buffer.nbytes:
            source, inner = self._sources[at], offset + done - self._begins[at]
            n = min(buffer.nbytes - done, source.n_bytes - inner)
            if n > 0:
                source.read_into(inner, buffer[done : done + n])
                done += n
            at += 1


class FieldSource:
    """One field of records that lie back to back, as if its values lay back to back."""

    __slots__ = ("_field_bytes", "_field_offset", "_record_bytes", "_source", "n_bytes")

    def __init__(self, source: ByteSource, record_bytes: int, field_offset: int, field_bytes: int) -> None:
        self._source = source
        self._record_bytes = record_bytes
        self._field_offset = field_offset
        self._field_bytes = field_bytes
        self.n_bytes = source.n_bytes // record_bytes * field_bytes

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill `buffer` from `offset`; whole records are read, a block at a time."""
        check_range(offset, buffer.nbytes, self.n_bytes)
        out = np.frombuffer(buffer, np.uint8)
        first, skipped = divmod(offset, self._field_bytes)
        stop = -(-(offset + buffer.nbytes) // self._field_bytes)
        per_block = max(1, _BLOCK_BYTES // self._record_bytes)
        done = 0
        for start in range(first, stop, per_block):
            n = min(per_block, stop - start)
            block = bytearray(n * self._record_bytes)
            self._source.read_into(start * self._record_bytes, memoryview(block))
            records = np.frombuffer(block, np.uint8).reshape(n, self._record_bytes)
            field = records[:, self._field_offset : self._field_offset + self._field_bytes].reshape(-1)
            field = field[skipped : skipped + out.size - done]
            out[done : done + field.size] = field
            done += field.size
            skipped = 0


def read_bytes(source: ByteSource, offset: int, n: int) -> bytes:
    """Return `n` bytes from `offset` of a source; the range is checked before anything is allocated."""
    check_range(offset, n, source.n_bytes)
    buffer = bytearray(n)
    source.read_into(offset, memoryview(buffer))
    return bytes(buffer)


def check_range(offset: int, n: int, n_bytes: int) -> None:
    """Raise IncompleteError unless the range lies within `n_bytes`."""
    if offset < 0 or n < 0 or offset + n > n_bytes:
        raise IncompleteError(f"bytes {offset} to {offset + n} are needed, there are {n_bytes}")
