"""A whole file that is one compressed stream (zlib, gzip, bzip2, xz, lzma), unpacked as it is read.

The stream is unpacked once to learn its length and to check it, within a budget; then reads go forward, and a read
that goes back starts again, at most PASSES_MAX times. Memory is bounded by the decoder, whatever the stream.
"""

from __future__ import annotations

import bz2
import lzma
import zlib
from collections.abc import Callable
from typing import Protocol

from monitor.read.access.partial_sources import check_range
from monitor.read.access.sources import PASSES_MAX
from monitor.read.bounded_file import BoundedFile
from monitor.read.reader import CorruptError, IncompleteError, LimitError, ReadLimits

_INPUT_BYTES = 256 * 1024
_OUTPUT_BYTES = 256 * 1024
_DECODER_BYTES_MAX = 100 * 2**20  # what an xz stream may ask for; its strongest preset needs 65 MiB
_SNIFFED_BYTES = 64


class _Decoder(Protocol):
    """What the three libraries have in common, after _Zlib has made zlib like the others."""

    @property
    def eof(self) -> bool: ...
    @property
    def needs_input(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, max_length: int) -> bytes: ...


class _Zlib:
    """zlib's decoder with the manners of the others: it keeps the input that it has not used."""

    __slots__ = ("_decoder",)

    def __init__(self, window_bits: int) -> None:
        self._decoder = zlib.decompressobj(window_bits)

    @property
    def eof(self) -> bool:
        return self._decoder.eof

    @property
    def needs_input(self) -> bool:
        return not self._decoder.unconsumed_tail and not self._decoder.eof

    @property
    def unused_data(self) -> bytes:
        return self._decoder.unused_data

    def decompress(self, data: bytes, max_length: int) -> bytes:
        return self._decoder.decompress(self._decoder.unconsumed_tail + data, max_length)


def _xz() -> lzma.LZMADecompressor:
    return lzma.LZMADecompressor(format=lzma.FORMAT_XZ, memlimit=_DECODER_BYTES_MAX)


def _lzma() -> lzma.LZMADecompressor:
    return lzma.LZMADecompressor(format=lzma.FORMAT_ALONE, memlimit=_DECODER_BYTES_MAX)


_DECODERS: tuple[tuple[bytes, Callable[[], _Decoder]], ...] = (
    (b"\x1f\x8b\x08", lambda: _Zlib(16 + zlib.MAX_WBITS)),
    (b"BZh", bz2.BZ2Decompressor),
    (b"\xfd7zXZ\0", _xz),
    (b"\x5d\x00\x00", _lzma),
    (b"\x78", lambda: _Zlib(zlib.MAX_WBITS)),
)
_ERRORS = (zlib.error, lzma.LZMAError, OSError, EOFError, ValueError)  # OSError is what bz2 raises


def is_compressed(head: bytes) -> bool:
    """Say whether a file that begins with `head` looks like a stream that is unpacked here."""
    return _decoder(head) is not None


def unpacked_head(head: bytes) -> bytes:
    """Return the first bytes that the beginning of a stream unpacks to; none where there are none yet, or it fails."""
    make = _decoder(head)
    if make is None:
        return b""
    try:
        return make().decompress(head, _SNIFFED_BYTES)
    except _ERRORS:
        return b""


def _decoder(head: bytes) -> Callable[[], _Decoder] | None:
    for magic, make in _DECODERS:
        if head.startswith(magic):
            is_zlib = magic == b"\x78"
            if is_zlib and (len(head) < 2 or (head[0] * 256 + head[1]) % 31):
                return None
            return make
    return None


class CompressedSource:
    """The unpacked bytes of a file that is one compressed stream; `n_bytes` is their number."""

    __slots__ = ("_decoder", "_file", "_make", "_n_bytes_max", "_packed_position", "_passes", "_position", "n_bytes")

    def __init__(self, file: BoundedFile, limits: ReadLimits) -> None:
        make = _decoder(file.head(16))
        if make is None:
            raise CorruptError("the file does not begin like a compressed stream")
        self._file = file
        self._make = make
        self._n_bytes_max = max(limits.expanded_bytes_min, limits.expanded_ratio_max * file.size_bytes)
        self._passes = 0
        self._restart()
        self.n_bytes = self._measured()

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill `buffer` from `offset` of the unpacked bytes."""
        check_range(offset, buffer.nbytes, self.n_bytes)
        if offset < self._position:
            self._restart()
        while self._position < offset:
            self._position += len(self._unpacked(min(_OUTPUT_BYTES, offset - self._position)))
        done = 0
        while done < buffer.nbytes:
            part = self._unpacked(min(_OUTPUT_BYTES, buffer.nbytes - done))
            if not part:
                raise CorruptError("the compressed stream ends earlier than it did before")
            buffer[done : done + len(part)] = part
            done += len(part)
            self._position += len(part)

    def _measured(self) -> int:
        """Unpack everything once and return the number of bytes; the stream must end where the file ends."""
        while True:
            part = self._unpacked(_OUTPUT_BYTES)
            if not part:
                break
            self._position += len(part)
            if self._position > self._n_bytes_max:
                raise LimitError(f"the file unpacks to more than {self._n_bytes_max} bytes")
        if self._decoder.unused_data or self._packed_position != self._file.size_bytes:
            raise CorruptError("bytes follow the end of the compressed stream")
        return self._position

    def _restart(self) -> None:
        self._passes += 1
        if self._passes > PASSES_MAX:
            raise LimitError(f"the file would have to be unpacked more than {PASSES_MAX} times; save it uncompressed")
        self._decoder = self._make()
        self._packed_position = 0
        self._position = 0

    def _unpacked(self, n_max: int) -> bytes:
        """Return 1 to `n_max` bytes, none at the end of the stream."""
        while not self._decoder.eof:
            packed = b""
            if self._decoder.needs_input:
                n = min(_INPUT_BYTES, self._file.size_bytes - self._packed_position)
                if n == 0:
                    raise IncompleteError("the compressed stream has no end yet")
                packed = self._file.read(self._packed_position, n)
                self._packed_position += n
            try:
                part = self._decoder.decompress(packed, n_max)
            except lzma.LZMAError as error:
                if "emory" in str(error):
                    raise LimitError(f"the stream asks for more than {_DECODER_BYTES_MAX} bytes to unpack") from error
                raise CorruptError(f"the compressed stream is broken: {error}") from error
            except _ERRORS as error:
                raise CorruptError(f"the compressed stream is broken: {error}") from error
            if part:
                return part
        return b""
