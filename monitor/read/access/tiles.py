"""A tensor that lies in tiles, each with a place of its own, as one stretch of bytes in C order of the whole.

The tiles of a sharded tensor are boxes that may be cut along any axis. A range of the whole is put together from the
parts of the tiles that fall into it; memory is bounded by that range, whatever the size of tensor and tiles.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
import numpy.typing as npt

from monitor.read.access.partial_sources import check_range
from monitor.read.access.sources import ByteSource
from monitor.read.access.strided import WORDS, ChunkReader, Layout
from monitor.read.reader import CorruptError, LimitError

TILES_MAX = 16_384  # of one tensor: as many as there are ranks

Box = tuple[tuple[int, ...], tuple[int, ...]]  # where it begins along each axis, and its sizes


@dataclass(frozen=True, slots=True)
class Tile:
    """A box of a tensor; `key` is for whoever knows where its values lie."""

    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    key: object


class TiledSource:
    """The bytes of the whole tensor, in native order.

    `open_tile` returns where the values of a tile lie: their source, and a layout of the tile's own sizes and dtype.
    """

    __slots__ = ("_begins", "_dtype", "_ends", "_gatherer", "_open_tile", "_shape", "_tiles", "n_bytes")

    def __init__(
        self,
        dtype: np.dtype[np.generic],
        shape: tuple[int, ...],
        tiles: Sequence[Tile],
        open_tile: Callable[[Tile], tuple[ByteSource, Layout]],
        gatherer: ChunkReader,
    ) -> None:
        self._dtype = dtype
        self._shape = shape
        self._tiles = check_tiling(shape, tiles)
        self._open_tile = open_tile
        self._gatherer = gatherer
        rows = (len(self._tiles), len(shape))
        self._begins = np.array([tile.offsets for tile in self._tiles], np.int64).reshape(rows)
        self._ends = self._begins + np.array([tile.sizes for tile in self._tiles], np.int64).reshape(rows)
        self.n_bytes = prod(shape) * dtype.itemsize

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill `buffer`, a whole number of elements, from `offset` bytes of the whole."""
        check_range(offset, buffer.nbytes, self.n_bytes)
        itemsize = self._dtype.itemsize
        words = np.frombuffer(buffer, np.uint8).view(WORDS[itemsize])
        done = 0
        for begins, sizes in boxes(self._shape, offset // itemsize, words.size):
            n = prod(sizes)
            self._fill(begins, sizes, words[done : done + n].reshape(sizes))
            done += n

    def _fill(self, begins: tuple[int, ...], sizes: tuple[int, ...], out: npt.NDArray[np.generic]) -> None:
        first = np.array(begins, np.int64)
        low = np.maximum(self._begins, first)
        high = np.minimum(self._ends, first + np.array(sizes, np.int64))
        for at in np.flatnonzero((low < high).all(axis=1)).tolist():
            tile = self._tiles[at]
            source, layout = self._open_tile(tile)
            inner = (low[at] - self._begins[at]).tolist()
            part = Layout(
                dtype=layout.dtype,
                shape=tuple((high[at] - low[at]).tolist()),
                strides=layout.strides,
                offset=layout.offset + sum(i * stride for i, stride in zip(inner, layout.strides, strict=True)),
            )
            where = (low[at] - first).tolist()
            view = out
            for axis, (begin, size) in enumerate(zip(where, part.shape, strict=True)):
                view = view[(slice(None),) * axis + (slice(begin, begin + size),)]
            self._gatherer.fill(source, part, view)


def check_tiling(shape: tuple[int, ...], tiles: Sequence[Tile]) -> tuple[Tile, ...]:
    """Return the tiles that hold anything; raise CorruptError unless they cover the tensor without gap or overlap."""
    if len(tiles) > TILES_MAX:
        raise LimitError(f"a tensor is in {len(tiles)} parts, the limit is {TILES_MAX}")
    kept = tuple(tile for tile in tiles if prod(tile.sizes))
    for tile in kept:
        if not len(tile.offsets) == len(tile.sizes) == len(shape):
            raise CorruptError("a part of a tensor has another number of dimensions than the tensor")
        if any(o < 0 or o + n > size for o, n, size in zip(tile.offsets, tile.sizes, shape, strict=True)):
            raise CorruptError("a part of a tensor lies outside of the tensor")
    covered = sum(prod(tile.sizes) for tile in kept)
    if covered != prod(shape):
        raise CorruptError(f"the parts of a tensor of {prod(shape)} elements have {covered}")
    if len(kept) > 1 and _overlap(kept):
        raise CorruptError("two parts of a tensor overlap")
    return kept


def _overlap(tiles: tuple[Tile, ...]) -> bool:
    """Say whether any two tiles overlap, by a sweep along the axis that cuts them most."""
    begins = np.array([tile.offsets for tile in tiles], np.int64)
    ends = begins + np.array([tile.sizes for tile in tiles], np.int64)
    axis = max(range(begins.shape[1]), key=lambda i: len(np.unique(begins[:, i])))
    order = np.argsort(begins[:, axis], kind="stable")
    begins, ends = begins[order], ends[order]
    for at in range(len(tiles) - 1):
        stop = int(np.searchsorted(begins[:, axis], ends[at, axis]))
        later = slice(at + 1, stop)
        if ((begins[later] < ends[at]) & (ends[later] > begins[at])).all(axis=1).any():
            return True
    return False


def boxes(shape: tuple[int, ...], start: int, n: int) -> Iterator[Box]:
    """Cut the elements `start` to `start + n`, in C order, into boxes that follow each other; few, and large ones."""
    inner = [1] * (len(shape) + 1)  # elements of one step along each axis
    for axis in range(len(shape) - 1, -1, -1):
        inner[axis] = inner[axis + 1] * shape[axis]
    stop = start + n
    while start < stop:
        # The outermost axis along which whole steps can be taken from here.
        axis = next(
            (i for i in range(len(shape)) if start % inner[i + 1] == 0 and stop - start >= inner[i + 1]), len(shape)
        )
        index, rest = [], start
        for i in range(len(shape)):
            index.append(rest // inner[i + 1])
            rest %= inner[i + 1]
        if axis == len(shape):  # a tensor without dimensions
            yield (), ()
            return
        steps = min((stop - start) // inner[axis + 1], shape[axis] - index[axis])
        sizes = (*(1 for _ in range(axis)), steps, *shape[axis + 1 :])
        yield tuple(index), sizes
        start += steps * inner[axis + 1]
