"""Where the bytes of one tensor's storage come from: a stretch of the file, a deflated zip member, or memory.

A source answers positioned reads within its own length and nothing else. It must not know tensors.
"""

from __future__ import annotations

import zlib
from typing import Protocol

from monitor.read.reader import CorruptError, IncompleteError, LimitError

_INPUT_BYTES = 256 * 1024
_SKIP_BYTES = 256 * 1024
PASSES_MAX = 64  # how often a deflated member may be unpacked anew for reads that go backwards


class PositionedFile(Protocol):
    """A file, or a stretch of one that is looked at as if it were a file of its own."""

    @property
    def size_bytes(self) -> int:
        """Return the length."""

    def head(self, n: int) -> bytes:
        """Return the first `n` bytes, fewer where there are not as many."""

    def read(self, offset: int, n: int) -> bytes:
        """Return exactly `n` bytes from `offset`."""

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill `buffer` from `offset`."""


class ByteSource(Protocol):
    """A stretch of bytes of known length that can be read at any place."""

    @property
    def n_bytes(self) -> int:
        """Return the length."""

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill `buffer` from `offset`; raise a ReadError where the range is not there."""


class FileSource:
    """A stretch of a file, stored as it is."""

    __slots__ = ("_file", "_offset", "n_bytes")

    def __init__(self, file: PositionedFile, offset: int, n_bytes: int) -> None:
        self._file = file
        self._offset = offset
        self.n_bytes = n_bytes

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill `buffer` from `offset` of the stretch."""
        _check(offset, buffer.nbytes, self.n_bytes)
        self._file.read_into(self._offset + offset, buffer)


class FileWindow:
    """A stretch of a file, looked at as a file; the caller has made sure that it lies within."""

    __slots__ = ("_file", "_offset", "size_bytes")

    def __init__(self, file: PositionedFile, offset: int, size_bytes: int) -> None:
        self._file = file
        self._offset = offset
        self.size_bytes = size_bytes

    def head(self, n: int) -> bytes:
        """Return the first `n` bytes, fewer where there are not as many."""
        return self.read(0, min(n, self.size_bytes))

    def read(self, offset: int, n: int) -> bytes:
        """Return exactly `n` bytes from `offset` of the stretch."""
        _check(offset, n, self.size_bytes)
        return self._file.read(self._offset + offset, n)

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill `buffer` from `offset` of the stretch."""
        _check(offset, buffer.nbytes, self.size_bytes)
        self._file.read_into(self._offset + offset, buffer)


class MemorySource:
    """Bytes that were found inline, within a pickle."""

    __slots__ = ("_data", "n_bytes")

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.n_bytes = len(data)

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Copy into `buffer` from `offset`."""
        _check(offset, buffer.nbytes, self.n_bytes)
        buffer[:] = self._data[offset : offset + buffer.nbytes]


class DeflatedSource:
    """A deflated stretch of a file, unpacked as a stream; reading backwards starts again, at most PASSES_MAX times.

    `n_bytes` is the unpacked length that the archive states; a stream that ends before or goes on after is corrupt.
    """

    __slots__ = (
        "_file",
        "_inflater",
        "_offset",
        "_packed_bytes",
        "_packed_position",
        "_passes",
        "_position",
        "n_bytes",
    )

    def __init__(self, file: PositionedFile, offset: int, packed_bytes: int, n_bytes: int) -> None:
        self._file = file
        self._offset = offset
        self._packed_bytes = packed_bytes
        self.n_bytes = n_bytes
        self._passes = 0
        self._restart()

    def _restart(self) -> None:
        self._passes += 1
        if self._passes > PASSES_MAX:
            raise LimitError(f"a deflated member would have to be unpacked more than {PASSES_MAX} times")
        self._inflater = zlib.decompressobj(-zlib.MAX_WBITS)
        self._packed_position = 0
        self._position = 0

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill `buffer` from `offset` of the unpacked bytes."""
        _check(offset, buffer.nbytes, self.n_bytes)
        if offset < self._position:
            self._restart()
        while self._position < offset:
            self._position += len(self._unpack(min(_SKIP_BYTES, offset - self._position)))
        done = 0
        while done < buffer.nbytes:
            part = self._unpack(min(_SKIP_BYTES, buffer.nbytes - done))
            buffer[done : done + len(part)] = part
            done += len(part)
            self._position += len(part)

    def _unpack(self, n_max: int) -> bytes:
        """Return 1 to `n_max` unpacked bytes."""
        while True:
            packed = self._inflater.unconsumed_tail
            if not packed and not self._inflater.eof:
                n = min(_INPUT_BYTES, self._packed_bytes - self._packed_position)
                packed = self._file.read(self._offset + self._packed_position, n)
                self._packed_position += n
            try:
                part = self._inflater.decompress(packed, n_max)
            except zlib.error as error:
                raise CorruptError(f"a deflated member cannot be unpacked: {error}") from error
            if part:
                return part
            if self._inflater.eof or (
                not self._inflater.unconsumed_tail and self._packed_position == self._packed_bytes
            ):
                raise CorruptError(f"a deflated member unpacks to fewer than the {self.n_bytes} bytes it states")


def _check(offset: int, n: int, n_bytes: int) -> None:
    if offset < 0 or offset + n > n_bytes:
        raise IncompleteError(f"bytes {offset} to {offset + n} are needed, there are {n_bytes}")
