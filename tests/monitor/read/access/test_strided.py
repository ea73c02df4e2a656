from __future__ import annotations

import tracemalloc
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from monitor.read.access.sources import MemorySource
from monitor.read.access.strided import ChunkReader, Layout, contiguous_strides
from monitor.read.dtypes import DTYPES, to_native
from monitor.read.reader import IncompleteError


class CountingSource(MemorySource):
    """A source in memory that counts what is read from it."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self.n_read = 0
        self.n_reads = 0

    def read_into(self, offset: int, buffer: memoryview) -> None:
        self.n_read += buffer.nbytes
        self.n_reads += 1
        super().read_into(offset, buffer)


def delivered(source: MemorySource, layout: Layout, chunk_bytes_max: int) -> npt.NDArray[np.generic]:
    parts = [np.empty(0, layout.dtype)]
    place = 0
    for chunk in ChunkReader(chunk_bytes_max).chunks(source, layout):
        assert chunk.offset_elements == place
        assert 0 < chunk.values.nbytes <= max(chunk_bytes_max, 16)
        place += chunk.values.size
        parts.append(chunk.values.copy())
    return np.concatenate(parts).reshape(layout.shape)


@st.composite
def views(draw: st.DrawFn) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
    """Return a storage and a view of it, made by slicing, transposing and broadcasting."""
    shape = tuple(draw(st.lists(st.integers(0, 6), min_size=0, max_size=4)))
    n_before = draw(st.integers(0, 5))
    storage = np.arange(n_before + int(np.prod(shape)) + draw(st.integers(0, 3)), dtype=np.int32)
    view = storage[n_before : n_before + int(np.prod(shape))].reshape(shape)
    for axis, size in enumerate(shape):
        if draw(st.booleans()) and size:
            start = draw(st.integers(0, size - 1))
            view = view[(slice(None),) * axis + (slice(start, None, draw(st.integers(1, 3))),)]
    view = view.transpose(draw(st.permutations(range(view.ndim))))
    if draw(st.booleans()):
        view = np.broadcast_to(view, (draw(st.integers(0, 4)), *view.shape))
    return storage, view


def layout_of(storage: npt.NDArray[np.int32], view: npt.NDArray[np.int32]) -> Layout:
    offset = (view.__array_interface__["data"][0] - storage.__array_interface__["data"][0]) // 4 if view.size else 0
    strides = tuple(stride // 4 for stride in view.strides)
    return Layout(dtype=np.dtype(np.int32), shape=view.shape, strides=strides, offset=offset)


@given(pair=views(), chunk_bytes_max=st.sampled_from([4, 12, 16, 20, 64, 100, 10_000]))
def test_any_view_is_delivered_in_c_order_of_its_shape(
    pair: tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]], chunk_bytes_max: int
) -> None:
    storage, view = pair
    got = delivered(MemorySource(storage.tobytes()), layout_of(storage, view), chunk_bytes_max)
    assert np.array_equal(got, view)


@pytest.mark.parametrize(
    "view_of",
    [
        lambda a: a.reshape(1000, 1000).T,
        lambda a: a.reshape(100, 100, 100).transpose(2, 0, 1),
        lambda a: a.reshape(100, 100, 100).transpose(1, 2, 0),
        lambda a: a.reshape(1000, 1000)[:, ::7],
        lambda a: a[::97],
        lambda a: a.reshape(1000, 1000)[10:20, 30:40],
        lambda a: a.reshape(10, 100_000).T,
        lambda a: a.reshape(100_000, 10).T,
        lambda a: np.broadcast_to(a[:1000], (50, 1000)),
        lambda a: np.broadcast_to(a[:50, None], (50, 1000)),
    ],
)
def test_large_views_are_delivered_with_bounded_memory_and_bounded_reading(view_of: object) -> None:
    storage = np.arange(10**6, dtype=np.int32)
    assert callable(view_of)
    view = view_of(storage)
    source = CountingSource(storage.tobytes())
    layout = layout_of(storage, view)
    chunk_bytes_max = 64 * 1024
    assert np.array_equal(delivered(source, layout, chunk_bytes_max), view)
    n_chunks = sum(1 for _ in ChunkReader(chunk_bytes_max).chunks(MemorySource(storage.tobytes()), layout))
    assert source.n_read <= max(9 * view.nbytes, n_chunks * storage.nbytes)
    assert source.n_reads <= view.size
    # The least of three: what other threads of the test process allocate meanwhile is counted, too.
    assert min(traced_peak_bytes(source, layout, chunk_bytes_max) for _ in range(3)) < 4 * chunk_bytes_max


def traced_peak_bytes(source: CountingSource, layout: Layout, chunk_bytes_max: int) -> int:
    tracemalloc.start()
    try:
        for _ in ChunkReader(chunk_bytes_max).chunks(source, layout):
            pass
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@given(pair=views())
def test_contiguous_layouts_are_known_as_such(pair: tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]) -> None:
    storage, view = pair
    assert layout_of(storage, view).is_contiguous == view.flags.c_contiguous


def test_the_place_after_the_last_element_is_known() -> None:
    layout = Layout(dtype=np.dtype(np.int8), shape=(2, 3), strides=(10, 2), offset=5)
    assert layout.stop == 5 + 10 + 4 + 1
    assert Layout(dtype=np.dtype(np.int8), shape=(0, 3), strides=(3, 1), offset=5).stop == 0
    assert Layout(dtype=np.dtype(np.int8), shape=(), strides=(), offset=5).stop == 6


def test_strides_of_contiguous_shapes_are_those_of_numpy() -> None:
    for shape in ((), (3,), (2, 3), (4, 1, 5)):
        assert contiguous_strides(shape) == tuple(stride // 4 for stride in np.zeros(shape, np.int32).strides)


def test_one_buffer_serves_all_chunks() -> None:
    reader = ChunkReader(64)
    layout = Layout(dtype=np.dtype(np.uint8), shape=(1000,), strides=(1,))
    addresses = {
        chunk.values.__array_interface__["data"][0] for chunk in reader.chunks(MemorySource(bytes(1000)), layout)
    }
    assert len(addresses) == 1


def test_a_source_that_is_too_short_is_an_error_not_an_overrun() -> None:
    layout = Layout(dtype=np.dtype(np.int32), shape=(10, 10), strides=(1, 10))
    with pytest.raises(IncompleteError):
        delivered(MemorySource(bytes(399)), layout, 10_000)


@pytest.mark.parametrize("name", DTYPES)
def test_every_dtype_is_delivered_in_native_order_from_either_order(name: str) -> None:
    dtype = DTYPES[name]
    random_bytes = np.random.default_rng(1).integers(0, 2, 4 * dtype.itemsize, dtype=np.uint8)
    native = to_native(random_bytes.copy(), dtype, big_endian=False)
    assert native.dtype == dtype
    part = dtype.itemsize // 2 if dtype.kind == "c" else dtype.itemsize
    swapped = random_bytes.reshape(-1, part)[:, ::-1].reshape(-1).copy()
    assert to_native(swapped, dtype, big_endian=True).tobytes() == native.tobytes()


def test_booleans_are_true_for_every_byte_that_is_not_zero() -> None:
    raw = np.array([0, 1, 2, 255], np.uint8)
    assert to_native(raw, np.dtype(bool), big_endian=False).view(np.uint8).tolist() == [0, 1, 1, 1]


def test_conjugates_and_negatives_are_resolved() -> None:
    stored = np.array([1 + 2j, -3j], np.complex64)
    base = Layout(dtype=stored.dtype, shape=(2,), strides=(1,), conjugate=True)
    assert np.array_equal(delivered(MemorySource(stored.tobytes()), base, 100), stored.conj())
    minus = Layout(dtype=stored.dtype, shape=(2,), strides=(1,), negative=True)
    assert np.array_equal(delivered(MemorySource(stored.tobytes()), minus, 100), -stored)


def test_chunk_sizes_follow_from_the_limit() -> None:
    layout = Layout(dtype=np.dtype(np.float64), shape=(100,), strides=(1,))
    chunks = [chunk.offset_elements for chunk in ChunkReader(80).chunks(MemorySource(bytes(800)), layout)]
    assert {b - a for a, b in pairwise(chunks)} == {10}
