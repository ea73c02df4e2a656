"""The values of a tensor in another order of its axes, in bounded memory, out of a stream in C order.

A block of the result is filled by one pass over the stream; there are as many passes as the result has blocks. Runs
wherever values are read; it must not know checkpoints.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from math import prod

import numpy as np
import numpy.typing as npt

from monitor.measure.axis_order import AxisOrder, Positions
from monitor.read.reader import Chunk

BLOCK_BYTES = 40 * 2**20
_CHUNK_BYTES = 2**20

_Array = npt.NDArray[np.generic]
_Box = tuple[tuple[int, int], ...]  # for each axis, from where to where


def reordered(
    stream: Callable[[], Iterable[Chunk]], order: AxisOrder, dtype: np.dtype[np.generic], block_bytes: int = BLOCK_BYTES
) -> Iterator[Chunk]:
    """Yield the elements of a tensor in the target's order; `stream` begins to read the source anew, in C order.

    `dtype` is that of the values; a chunk is valid until the next is asked for. At most `block_bytes` of the target are
    held at a time, or one element.
    """
    if order.is_identity:
        yield from stream()
        return
    shape = [order.split[axis] for axis in order.axes]
    first = 0
    boxes = list(_blocks(shape, max(1, block_bytes // dtype.itemsize)))
    buffer = np.empty(max(prod(stop - start for start, stop in box) for box in boxes), dtype)  # for one block at a time
    for box in boxes:
        sizes = [stop - start for start, stop in box]
        block = buffer[: prod(sizes)].reshape(sizes)
        _fill(block, stream(), order, box)
        flat = block.reshape(-1)
        step = max(1, _CHUNK_BYTES // dtype.itemsize)
        for start in range(0, flat.size, step):
            yield Chunk(first + start, flat[start : start + step])
        first += flat.size


def gather(stream: Iterable[Chunk], positions: Positions) -> _Array:
    """Return the elements at the positions, which increase strictly; reads no further than the last of them."""
    found: list[_Array] = []
    done = 0
    for chunk in stream:
        if done == positions.size:
            break
        stop = int(np.searchsorted(positions, chunk.offset_elements + chunk.values.size))
        if stop > done:
            found.append(chunk.values[positions[done:stop] - chunk.offset_elements])
            done = stop
    return np.concatenate(found) if found else np.empty(0, np.uint8)


def _blocks(shape: list[int], n_max: int) -> Iterator[_Box]:
    """Cut a shape into boxes of at most `n_max` elements, where an axis allows, that follow each other in C order."""
    cut = len(shape) - 1
    inner = 1
    while cut > 0 and inner * shape[cut] <= n_max:
        inner *= shape[cut]
        cut -= 1
    per_block = max(1, n_max // inner)
    for outer in np.ndindex(*shape[:cut]):
        for start in range(0, shape[cut], per_block):
            here = (start, min(start + per_block, shape[cut]))
            yield (*((i, i + 1) for i in outer), here, *((0, size) for size in shape[cut + 1 :]))


def _fill(block: _Array, stream: Iterable[Chunk], order: AxisOrder, box: _Box) -> None:
    """Put every element of the source that lies in `box` of the target into its place."""
    by_axis = dict(zip(order.axes, box, strict=True))
    wanted = tuple(by_axis[axis] for axis in range(len(order.split)))
    view = block.transpose(np.argsort(order.axes).tolist())  # the target's block with the source's axes
    for chunk in stream:
        begin = chunk.offset_elements
        for piece in _pieces(order.split, begin, begin + chunk.values.size):
            n = prod(stop - start for start, stop in piece)
            values = chunk.values[begin - chunk.offset_elements :][:n]
            begin += n
            _place(view, values.reshape([stop - start for start, stop in piece]), piece, wanted, order)


def _place(view: _Array, values: _Array, piece: _Box, wanted: _Box, order: AxisOrder) -> None:
    """Copy what a piece of the source and the wanted box have in common; blocks of gates one by one."""
    axis = order.block_axis
    if axis is None:
        _copy(view, values, piece, wanted)
        return
    start, stop = piece[axis]
    for block in range(start, stop):
        place = order.blocks.index(block)
        moved = (*piece[:axis], (place, place + 1), *piece[axis + 1 :])
        one = values[(slice(None),) * axis + (slice(block - start, block - start + 1),)]
        _copy(view, one, moved, wanted)


def _copy(view: _Array, values: _Array, piece: _Box, wanted: _Box) -> None:
    source: list[slice] = []
    target: list[slice] = []
    for (start, stop), (low, high) in zip(piece, wanted, strict=True):
        first, last = max(start, low), min(stop, high)
        if first >= last:
            return
        source.append(slice(first - start, last - start))
        target.append(slice(first - low, last - low))
    view[tuple(target)] = values[tuple(source)]


def _pieces(shape: tuple[int, ...], start: int, stop: int) -> Iterator[_Box]:
    """Cut a run of elements in C order into boxes, in order: at most two for each axis."""
    if len(shape) <= 1:
        if start < stop:
            yield ((start, stop),) if shape else ()
        return
    row = prod(shape[1:])
    first, at = divmod(start, row)
    if at:
        end = min(stop, (first + 1) * row)
        yield from (((first, first + 1), *rest) for rest in _pieces(shape[1:], at, end - first * row))
        start = end
    first, last = -(-start // row), stop // row
    if first < last:
        yield ((first, last), *((0, size) for size in shape[1:]))
    if start < stop and last * row < stop and last >= first:
        yield from (((last, last + 1), *rest) for rest in _pieces(shape[1:], 0, stop - last * row))
