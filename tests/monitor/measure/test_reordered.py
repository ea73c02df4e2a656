"""Axes in another order: positions, streams in bounded memory, and which orders there are."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from monitor.measure.axis_order import AxisOrder, possible_orders
from monitor.measure.reordered import gather, reordered
from monitor.read.reader import Chunk

Values = npt.NDArray[np.generic]


@st.composite
def cases(draw: st.DrawFn) -> tuple[AxisOrder, tuple[int, ...]]:
    # Small enough for chunks and blocks of a single element: the work grows with the product of both counts.
    shape = draw(st.lists(st.integers(1, 6), min_size=1, max_size=5).map(tuple).filter(lambda s: prod(s) <= 240))
    axes = tuple(draw(st.permutations(range(len(shape)))))
    if draw(st.booleans()):
        axis = draw(st.integers(0, len(shape) - 1))
        blocks = tuple(draw(st.permutations(range(shape[axis]))))
        return AxisOrder(split=shape, axes=axes, block_axis=axis, blocks=blocks), shape
    return AxisOrder(split=shape, axes=axes), shape


def stream(values: Values, n: int) -> Iterator[Chunk]:
    for start in range(0, values.size, n):
        yield Chunk(start, values[start : start + n])


def numpy_says(values: Values, order: AxisOrder) -> Values:
    shaped = values.reshape(order.split)
    if order.block_axis is not None:
        shaped = shaped.take(list(order.blocks), axis=order.block_axis)
    return shaped.transpose(order.axes).reshape(-1)


@settings(deadline=None)
@given(case=cases(), chunk=st.integers(1, 60), block=st.integers(4, 400))
def test_a_stream_in_another_order_is_what_numpy_transposes(
    case: tuple[AxisOrder, tuple[int, ...]], chunk: int, block: int
) -> None:
    order, shape = case
    values = np.arange(np.prod(shape), dtype=np.float32)
    chunks = reordered(lambda: stream(values, chunk), order, values.dtype, block)
    found = [Chunk(c.offset_elements, c.values.copy()) for c in chunks]
    offsets = np.cumsum([0, *(c.values.size for c in found)])[:-1]
    assert [c.offset_elements for c in found] == offsets.tolist()
    np.testing.assert_array_equal(np.concatenate([c.values for c in found]), numpy_says(values, order))


@settings(deadline=None)
@given(case=cases())
def test_positions_in_the_source_are_those_of_the_elements(case: tuple[AxisOrder, tuple[int, ...]]) -> None:
    order, shape = case
    values = np.arange(np.prod(shape), dtype=np.int64)
    np.testing.assert_array_equal(order.source_positions(values), numpy_says(values, order))


@settings(deadline=None)
@given(n=st.integers(1, 300), chunk=st.integers(1, 60), chosen=st.sets(st.integers(0, 299), min_size=1), data=st.data())
def test_a_sample_is_gathered_from_wherever_chunks_end(
    n: int, chunk: int, chosen: set[int], data: st.DataObject
) -> None:
    positions = np.array(sorted(p for p in chosen if p < n), np.int64)
    values = np.arange(n, dtype=np.float32) * 2
    np.testing.assert_array_equal(gather(stream(values, chunk), positions), values[positions])


def likeliest(source: tuple[str, tuple[int, ...]], target: tuple[str, tuple[int, ...]]) -> str | None:
    orders = possible_orders(source, target, frozenset({4})).right
    return orders[0].text(source[1]) if orders else None


@pytest.mark.parametrize(
    ("source", "target", "expected"),
    [
        (("d/kernel", (5, 7)), ("d.weight", (7, 5)), "(1,0)"),
        (("d.weight", (7, 5)), ("d/kernel", (5, 7)), "(1,0)"),
        (("c/kernel", (3, 3, 4, 8)), ("c.weight", (8, 4, 3, 3)), "(3,2,0,1)"),
        (("c.weight", (8, 4, 3, 3)), ("c/kernel", (3, 3, 4, 8)), "(2,3,1,0)"),
        (("c/kernel", (3, 4, 8)), ("c.weight", (8, 4, 3)), "(2,1,0)"),
        (("c/kernel", (2, 3, 5, 4, 8)), ("c.weight", (8, 4, 2, 3, 5)), "(4,3,0,1,2)"),
        (("e/embeddings", (9, 4)), ("e.weight", (9, 4)), "(0,1)"),
        (("q/kernel", (6, 2, 5)), ("q.weight", (10, 6)), "(1,2,0)"),
        (("q.weight", (10, 6)), ("q/kernel", (6, 2, 5)), "(2,0,1) of (2,5,6)"),
        (("a", (4, 3)), ("b", (5, 2)), None),
        (("a", (2, 6)), ("b", (3, 5)), None),
        (("gru/kernel", (7, 12)), ("gru.weight_ih_l0", (12, 7)), "(1,2,0) of (7,3,4) blocks (1,0,2)"),
        (("a", ()), ("b", (1,)), "()"),
    ],
)
def test_the_likeliest_order_is_that_of_the_frameworks(
    source: tuple[str, tuple[int, ...]], target: tuple[str, tuple[int, ...]], expected: str | None
) -> None:
    assert likeliest(source, target) == expected


def test_a_kernel_that_kept_its_order_is_among_the_wrong_ones() -> None:
    orders = possible_orders(("d/kernel", (5, 5)), ("d.weight", (5, 5)), frozenset())
    assert [o.axes for o in orders.right] == [(1, 0)]
    assert [o.axes for o in orders.wrong] == [(0, 1)]
