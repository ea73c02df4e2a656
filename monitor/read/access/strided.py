"""Deliver a strided tensor in C order of its shape, in bounded chunks, from a source that is read by offset.

Memory is bounded by two buffers of one chunk each, whatever the tensor's size and strides. Views are made by
numpy.ndarray over a buffer that was filled, which checks its bounds; nothing steps outside of what was read.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from math import prod

import numpy as np
import numpy.typing as npt

from monitor.read.access.sources import ByteSource
from monitor.read.dtypes import to_native
from monitor.read.reader import Chunk

_SPAN_SHARE_MIN = 0.125  # a stretch is read as a whole when at least this share of it is wanted
_SPAN_BYTES_MIN = 16 * 1024  # and always when it is this small

# Values are moved as plain words, which NumPy copies faster than its own or foreign types.
WORDS = {1: "u1", 2: "u2", 4: "u4", 8: "u8", 16: "c16"}

_IDLE_MAX = 3  # buffers kept for the next tensor: a checkpoint of a hundred files must not hold a hundred of them

_Bytes = npt.NDArray[np.uint8]
_Axes = tuple[tuple[int, int], ...]  # (size, stride) from the outermost to the innermost, in elements

_idle: list[_Bytes] = []


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """How a tensor lies in its storage: offset and strides in elements, strides not negative.

    `conjugate` and `negative` say that the values are the complex conjugate or the negative of what is stored.
    """

    dtype: np.dtype[np.generic]
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int = 0
    big_endian: bool = False
    conjugate: bool = False
    negative: bool = False

    @property
    def n_elements(self) -> int:
        """Return the product of the shape."""
        return prod(self.shape)

    @property
    def is_contiguous(self) -> bool:
        """Say whether the elements lie back to back in C order."""
        return 0 in self.shape or _merged(self) in ((), ((self.n_elements, 1),))

    @property
    def stop(self) -> int:
        """Return the number of storage elements needed: one more than the place of the last element, 0 when empty."""
        if 0 in self.shape:
            return 0
        return self.offset + sum((size - 1) * stride for size, stride in zip(self.shape, self.strides, strict=True)) + 1


def contiguous_strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the strides in elements of a C-contiguous array of this shape."""
    strides, step = [], 1
    for size in reversed(shape):
        strides.append(step)
        step *= max(size, 1)
    return tuple(reversed(strides))


class ChunkReader:
    """Reads tensors chunk by chunk; the buffers are used again and again, by whichever reader needs one next."""

    __slots__ = ("_chunk_bytes",)

    def __init__(self, chunk_bytes_max: int) -> None:
        self._chunk_bytes = max(chunk_bytes_max, 16)  # one complex128

    def chunks(self, source: ByteSource, layout: Layout) -> Iterator[Chunk]:
        """Yield the elements of one tensor in C order; each chunk is valid until the next is asked for."""
        n_elements = layout.n_elements
        if n_elements == 0:
            return
        step = self._chunk_bytes // layout.dtype.itemsize
        buffer = _borrowed(min(step, n_elements) * layout.dtype.itemsize)
        try:
            yield from self._chunks(source, layout, buffer)
        finally:
            _give_back(buffer)

    def _chunks(self, source: ByteSource, layout: Layout, buffer: _Bytes) -> Iterator[Chunk]:
        n_elements, itemsize = layout.n_elements, layout.dtype.itemsize
        step = self._chunk_bytes // itemsize
        if layout.is_contiguous:
            for first in range(0, n_elements, step):
                n = min(step, n_elements - first)
                raw = buffer[: n * itemsize]
                source.read_into((layout.offset + first) * itemsize, raw.data)
                yield Chunk(first, _finished(raw, layout))
            return
        axes = _merged(layout)
        scratch = _borrowed(min(self._chunk_bytes, (layout.stop - layout.offset) * itemsize))
        try:
            first = 0
            for offset, block in _blocks(axes, layout.offset, step):
                n = prod(size for size, _ in block)
                raw = buffer[: n * itemsize]
                out = raw.view(WORDS[itemsize]).reshape([size for size, _ in block])
                self._gather(source, offset, block, out, scratch)
                yield Chunk(first, _finished(raw, layout))
                first += n
        finally:
            _give_back(scratch)

    def fill(self, source: ByteSource, layout: Layout, out: npt.NDArray[np.generic]) -> None:
        """Copy a tensor into `out`, a view of its shape whose elements are WORDS of its item size, as it is stored."""
        if layout.n_elements == 0:
            return
        axes = tuple(zip(layout.shape, layout.strides, strict=True))
        itemsize = layout.dtype.itemsize
        scratch = _borrowed(min(self._chunk_bytes, (layout.stop - layout.offset) * itemsize))
        try:
            self._gather(source, layout.offset, axes or ((1, 1),), out.reshape(out.shape or (1,)), scratch)
        finally:
            _give_back(scratch)

    def _gather(
        self, source: ByteSource, offset: int, axes: _Axes, out: npt.NDArray[np.generic], scratch: _Bytes
    ) -> None:
        """Fill `out` with the block of storage elements that `axes` describe from `offset` on."""
        itemsize = out.dtype.itemsize
        span = sum((size - 1) * stride for size, stride in axes) + 1
        wanted = prod(size for size, stride in axes if stride)
        span_bytes = span * itemsize
        if span_bytes <= scratch.nbytes and (span_bytes <= _SPAN_BYTES_MIN or wanted >= span * _SPAN_SHARE_MIN):
            raw = scratch[:span_bytes]
            source.read_into(offset * itemsize, raw.data)
            view: npt.NDArray[np.generic] = np.ndarray(
                out.shape, out.dtype, buffer=raw, strides=[stride * itemsize for _, stride in axes]
            )
            np.copyto(out, view)
            return
        widest = max(range(len(axes)), key=lambda i: (axes[i][0] - 1) * axes[i][1])
        size, stride = axes[widest]
        rest = (span - (size - 1) * stride) * itemsize  # what one step along the widest axis spans
        per_part = max(1, (scratch.nbytes - rest) // (stride * itemsize) + 1)
        if wanted < span * _SPAN_SHARE_MIN or per_part >= size:
            per_part = (
                1 if rest + stride * itemsize > _SPAN_BYTES_MIN else max(1, _SPAN_BYTES_MIN // (stride * itemsize))
            )
        per_part = min(per_part, max(1, size // 2))
        where: list[slice] = [slice(None)] * len(axes)
        for start in range(0, size, per_part):
            stop = min(start + per_part, size)
            where[widest] = slice(start, stop)
            part = (*axes[:widest], (stop - start, stride), *axes[widest + 1 :])
            self._gather(source, offset + start * stride, part, out[tuple(where)], scratch)


def _merged(layout: Layout) -> _Axes:
    """Return the axes without those of size 1, neighbours that lie back to back joined into one."""
    axes: list[tuple[int, int]] = []
    for size, stride in zip(layout.shape, layout.strides, strict=True):
        if size == 1:
            continue
        if axes and axes[-1][1] == size * stride:
            axes[-1] = (axes[-1][0] * size, stride)
        else:
            axes.append((size, stride))
    return tuple(axes)


def _blocks(axes: _Axes, offset: int, n_max: int) -> Iterator[tuple[int, _Axes]]:
    """Cut the axes into blocks of at most `n_max` elements that follow each other in C order."""
    inner = 1
    cut = len(axes)
    while cut > 0 and inner * axes[cut - 1][0] <= n_max:
        cut -= 1
        inner *= axes[cut][0]
    if cut == 0:
        yield offset, axes
        return
    cut -= 1  # the axis of which a block takes a range
    size, stride = axes[cut]
    per_block = max(1, n_max // inner)
    for index in product(*(range(outer) for outer, _ in axes[:cut])):
        base = offset + sum(i * axis[1] for i, axis in zip(index, axes, strict=False))
        for start in range(0, size, per_block):
            n = min(per_block, size - start)
            yield base + start * stride, ((n, stride), *axes[cut + 1 :])


def _finished(raw: npt.NDArray[np.uint8], layout: Layout) -> npt.NDArray[np.generic]:
    values = to_native(raw, layout.dtype, big_endian=layout.big_endian)
    if layout.conjugate:
        np.conjugate(values, out=values)
    if layout.negative:
        np.negative(values, out=values)
    return values


def _borrowed(n_bytes: int) -> _Bytes:
    """Return a buffer of at least `n_bytes` that nobody else uses."""
    found = _idle.pop() if _idle else None
    return found if found is not None and found.nbytes >= n_bytes else np.empty(n_bytes, np.uint8)


def _give_back(buffer: _Bytes) -> None:
    if len(_idle) < _IDLE_MAX:
        _idle.append(buffer)
