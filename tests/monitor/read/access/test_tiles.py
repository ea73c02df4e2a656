from __future__ import annotations

from math import prod

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from monitor.read.access.sources import ByteSource, MemorySource
from monitor.read.access.strided import ChunkReader, Layout, contiguous_strides
from monitor.read.access.tiles import TILES_MAX, Box, Tile, TiledSource, boxes, check_tiling
from monitor.read.reader import CorruptError, LimitError

Shape = tuple[int, ...]
SHAPES = st.lists(st.integers(0, 5), max_size=4).map(tuple)


@st.composite
def tilings(draw: st.DrawFn) -> tuple[Shape, list[Box]]:
    """Return a shape, and boxes that were made by cutting it in two again and again."""
    shape = draw(SHAPES)
    parts: list[Box] = [((0,) * len(shape), shape)]
    for _ in range(draw(st.integers(0, 6))):
        begins, sizes = parts.pop(draw(st.integers(0, len(parts) - 1)))
        axes = [axis for axis, size in enumerate(sizes) if size > 1]
        if not axes:
            parts.append((begins, sizes))
            continue
        axis = draw(st.sampled_from(axes))
        cut = draw(st.integers(1, sizes[axis] - 1))
        parts.append((begins, (*sizes[:axis], cut, *sizes[axis + 1 :])))
        moved = (*begins[:axis], begins[axis] + cut, *begins[axis + 1 :])
        parts.append((moved, (*sizes[:axis], sizes[axis] - cut, *sizes[axis + 1 :])))
    return shape, draw(st.permutations(parts))


def tiles_of(parts: list[Box]) -> list[Tile]:
    return [Tile(begins, sizes, number) for number, (begins, sizes) in enumerate(parts)]


@given(tilings(), st.integers(0, 700), st.integers(0, 700), st.sampled_from([16, 64, 4096]))
def test_any_range_of_any_tiling_is_that_of_the_whole(
    tiling: tuple[Shape, list[Box]], start: int, n: int, chunk_bytes: int
) -> None:
    shape, parts = tiling
    whole = np.arange(prod(shape), dtype=np.int32).reshape(shape)
    stored = []
    for number, (begins, sizes) in enumerate(parts):
        part = whole[tuple(slice(b, b + s) for b, s in zip(begins, sizes, strict=True))]
        stored.append(np.asfortranarray(part) if number % 2 else np.ascontiguousarray(part))

    def open_tile(tile: Tile) -> tuple[ByteSource, Layout]:
        assert isinstance(tile.key, int)
        strides = contiguous_strides(tile.sizes)
        if tile.key % 2:
            strides = tuple(reversed(contiguous_strides(tuple(reversed(tile.sizes)))))
        data = stored[tile.key].tobytes(order="A")
        return MemorySource(bytes(8) + data), Layout(
            dtype=np.dtype(np.int32), shape=tile.sizes, strides=strides, offset=2
        )

    source = TiledSource(np.dtype(np.int32), shape, tiles_of(parts), open_tile, ChunkReader(chunk_bytes))
    flat = whole.reshape(-1)
    assert source.n_bytes == flat.nbytes
    start = min(start, flat.size)
    expected = flat[start : start + n]
    buffer = bytearray(expected.nbytes)
    source.read_into(start * 4, memoryview(buffer))
    assert np.frombuffer(buffer, np.int32).tolist() == expected.tolist()


@given(SHAPES, st.integers(0, 700), st.integers(0, 700))
def test_boxes_are_the_range_they_were_cut_from_and_few(shape: Shape, start: int, n: int) -> None:
    whole = np.arange(prod(shape)).reshape(shape)
    start = min(start, whole.size)
    n = min(n, whole.size - start)
    found = list(boxes(shape, start, n))
    values: list[int] = []
    for begins, sizes in found:
        part = whole[tuple(slice(b, b + s) for b, s in zip(begins, sizes, strict=True))]
        assert part.shape == sizes
        values += np.asarray(part).reshape(-1).tolist()
    assert values == list(range(start, start + n))
    assert len(found) <= 2 * max(len(shape), 1)


@given(tilings())
def test_a_tiling_with_a_part_too_many_or_missing_is_refused(tiling: tuple[Shape, list[Box]]) -> None:
    shape, parts = tiling
    tiles = tiles_of(parts)
    kept = check_tiling(shape, tiles)
    assert sum(prod(tile.sizes) for tile in kept) == prod(shape)
    if kept:
        with pytest.raises(CorruptError):
            check_tiling(shape, [*tiles, kept[0]])
        with pytest.raises(CorruptError):
            check_tiling(shape, [tile for tile in tiles if tile is not kept[0]])


@pytest.mark.parametrize(
    "parts",
    [
        [((0, 0), (2, 2)), ((1, 1), (2, 2)), ((3, 0), (1, 1))],  # nine elements, three of them twice
        [((0, 0), (3, 2)), ((0, 1), (3, 1))],
        [((0, 0), (3, 2)), ((0, 2), (3, 2))],
        [((-1, 0), (3, 3))],
        [((0,), (9,))],
        [((0, 0, 0), (3, 3, 1))],
    ],
)
def test_parts_that_overlap_or_lie_outside_are_refused(parts: list[Box]) -> None:
    with pytest.raises(CorruptError):
        check_tiling((3, 3), tiles_of(parts))


def test_more_parts_than_any_job_has_ranks_are_over_the_limit() -> None:
    with pytest.raises(LimitError):
        check_tiling((3,), tiles_of([((0,), (0,))] * (TILES_MAX + 1)))
