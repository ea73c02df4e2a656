"""In which order two frameworks can keep the axes of one tensor. Pure arithmetic over shapes.

A dense layer of Keras keeps (in, out) where PyTorch keeps (out, in), a convolution (H, W, I, O) where PyTorch keeps
(O, I, H, W); heads are an axis of their own or not; what follows a flattened image counts channels last or first;
gates of recurrent layers come in another order.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, islice, permutations
from math import prod
from operator import mul

import numpy as np
import numpy.typing as npt

from monitor.measure.name_rules import attention_part, is_gru, is_recurrent, is_transposing

Shape = tuple[int, ...]
Positions = npt.NDArray[np.int64]

DIMENSIONS_MAX = 6
ORDERS_MAX = 400
_GRU_BLOCKS = (1, 0, 2)  # update, reset, new in Keras; reset, update, new in PyTorch


@dataclass(frozen=True, slots=True, kw_only=True)
class AxisOrder:
    """How the elements of a source lie in a target.

    The source is seen in shape `split`, its axes are taken in the order `axes`, and the result is seen in the target's
    shape. With `blocks`, axis `block_axis` of the split is taken in that order: block g of the target is block
    blocks[g] of the source.
    """

    split: Shape
    axes: tuple[int, ...]
    block_axis: int | None = None
    blocks: tuple[int, ...] = ()

    @property
    def is_identity(self) -> bool:
        """Say whether nothing moves."""
        kept = [axis for axis in self.axes if self.split[axis] > 1]
        return kept == sorted(kept) and self.block_axis is None

    def text(self, source: Shape) -> str:
        """Return the order as people write it: "(1,0)", "(2,1,0) of (49,64,10)"."""
        text = _tuple(self.axes)
        if self.split != source:
            text += f" of {_tuple(self.split)}"
        return text if self.block_axis is None else f"{text} blocks {_tuple(self.blocks)}"

    def source_positions(self, positions: Positions) -> Positions:
        """Return where in the source the elements at these positions of the target are, in C order of both."""
        target = [self.split[axis] for axis in self.axes]
        strides = _strides(self.split)
        found = np.zeros_like(positions)
        rest = positions
        for axis, size in zip(reversed(self.axes), reversed(target), strict=True):
            rest, index = np.divmod(rest, size)
            if axis == self.block_axis:
                index = np.asarray(self.blocks, np.int64)[index]
            found += index * strides[axis]
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Orders:
    """The orders in which a target may keep a source, likeliest first.

    `right` ones can be told from shapes and names; `rare` ones are right too, but only believed where all values are
    equal; `wrong` ones are what conversions produce that went wrong.
    """

    right: tuple[AxisOrder, ...]
    rare: tuple[AxisOrder, ...] = ()
    wrong: tuple[AxisOrder, ...] = ()


def possible_orders(source: tuple[str, Shape], target: tuple[str, Shape], sizes: frozenset[int]) -> Orders:
    """Return the orders in which the target could hold the source, each given by name and shape, likeliest first.

    `sizes` are the sizes of axes in the checkpoint, among which the number of channels before a flattening is. Where
    the names tell the order (a kernel, a weight), every other one is wrong. All are empty where no order of axes makes
    one shape of the other.
    """
    (source_name, source_shape), (target_name, target_shape) = source, target
    if prod(source_shape) != prod(target_shape) or prod(source_shape) == 0:
        return Orders(right=())
    general = _unique(
        islice((*_permuted(source_shape, target_shape), *_merged(source_shape, target_shape)), ORDERS_MAX)
    )
    expected = _expected(source, target)
    flattened = _unique(islice(_flattened(source_shape, target_shape, sizes), ORDERS_MAX))
    gates = _unique(_gated(general)) if is_recurrent(source_name, target_name) else ()
    if expected is None:
        return Orders(right=general, rare=_unique((*flattened, *gates))[:ORDERS_MAX])
    inputs = 0 if is_transposing(source_name, target_name) else 1
    turned = tuple(o for o in _flattened(source_shape, target_shape, sizes, (inputs,)) if o.axes == (2, 1, 0))
    if is_gru(source_name, target_name):
        return Orders(right=(_gru(expected, source_name),), wrong=(expected, *general, *gates))
    others = _unique((*general, *flattened, *gates))
    rare = _unique(turned)[:ORDERS_MAX]
    known = {_key(order) for order in (expected, *rare)}
    return Orders(
        right=(expected,), rare=rare, wrong=tuple(order for order in others if _key(order) not in known)[:ORDERS_MAX]
    )


def _expected(source: tuple[str, Shape], target: tuple[str, Shape]) -> AxisOrder | None:
    """Return the order that the names tell: kernels have their outputs last, PyTorch's weights first."""
    (source_name, source_shape), (target_name, target_shape) = source, target
    if is_transposing(source_name, target_name):
        axes = _axes_of_kernel(source_name, source_shape, target_shape)
        return None if axes is None else AxisOrder(split=source_shape, axes=axes)
    if is_transposing(target_name, source_name):
        axes = _axes_of_kernel(target_name, target_shape, source_shape)
        if axes is not None:
            split = tuple(target_shape[axis] for axis in axes)
            return AxisOrder(split=split, axes=tuple(int(axis) for axis in np.argsort(axes)))
    return None


def _axes_of_kernel(name: str, kernel: Shape, weight: Shape) -> tuple[int, ...] | None:
    """Return the order in which a weight of PyTorch has the axes of a kernel, None where it cannot be told.

    A depthwise kernel (..., I, M) becomes (I * M, 1, ...); the kernels of attention have an axis of heads: (E, H, D)
    becomes (H * D, E) where it makes heads, (H, D, E) becomes (E, H * D) where it takes them together.
    """
    n = len(kernel)
    if not 2 <= n <= DIMENSIONS_MAX:
        return None
    if n == len(weight):
        usual, depthwise = (n - 1, n - 2, *range(n - 2)), (n - 2, n - 1, *range(n - 2))
        if tuple(kernel[axis] for axis in usual) == weight:
            return usual
        is_depthwise = n > 2 and weight == (kernel[n - 2] * kernel[n - 1], 1, *kernel[: n - 2])
        return depthwise if is_depthwise else None
    if n == 3 and len(weight) == 2:
        part = attention_part(name)
        if part == "out" and weight == (kernel[2], kernel[0] * kernel[1]):
            return (2, 0, 1)
        if part in ("query", "key", "value") and weight == (kernel[1] * kernel[2], kernel[0]):
            return (1, 2, 0)
    return None


def _gru(expected: AxisOrder, source_name: str) -> AxisOrder:
    """Return the order with the gates of a GRU in the other framework's order, where the axis of gates allows."""
    axis = 1 if source_name.lower().endswith("kernel") else 0
    return _with_blocks(expected, axis, _GRU_BLOCKS) or expected


def _permuted(source: Shape, target: Shape) -> Iterator[AxisOrder]:
    if len(source) == len(target) <= DIMENSIONS_MAX and sorted(source) == sorted(target):
        for axes in permutations(range(len(source))):
            if tuple(source[axis] for axis in axes) == target:
                yield AxisOrder(split=source, axes=axes)


def _merged(source: Shape, target: Shape) -> Iterator[AxisOrder]:
    """Yield the orders in which axes of one side are several of the other; axes of one element do not count."""
    narrow, wide = _without_ones(source), _without_ones(target)
    if max(len(narrow), len(wide)) > DIMENSIONS_MAX:
        return
    for axes in permutations(range(len(narrow))):
        if _cuts(wide) <= _cuts([narrow[axis] for axis in axes]):
            yield AxisOrder(split=narrow, axes=axes)
    for places in permutations(range(len(wide))):
        split = tuple(wide[place] for place in places)
        if _cuts(narrow) <= _cuts(split):
            yield AxisOrder(split=split, axes=tuple(int(axis) for axis in np.argsort(places)))


def _flattened(
    source: Shape, target: Shape, sizes: frozenset[int], places: tuple[int, ...] = (0, 1)
) -> Iterator[AxisOrder]:
    """Yield the orders in which one axis of a matrix is an image, its channels last on one side, first on the other."""
    narrow, wide = _without_ones(source), _without_ones(target)
    if len(narrow) != 2 or len(wide) != 2:
        return
    for place in places:
        size = narrow[place]
        channels = [c for c in sorted(sizes) if 1 < c < size and size % c == 0]
        for first in dict.fromkeys(f for c in channels for f in (size // c, c)):
            pair = (first, size // first)
            split = (*pair, narrow[1]) if place == 0 else (narrow[0], *pair)
            for axes in ((2, 1, 0), (1, 0, 2) if place == 0 else (0, 2, 1)):
                order = AxisOrder(split=split, axes=axes)
                if _cuts(wide) <= _cuts([split[axis] for axis in axes]):
                    yield order


def _gated(orders: Sequence[AxisOrder]) -> Iterator[AxisOrder]:
    for order in orders[:4]:
        for axis in range(len(order.split)):
            for n_gates in (3, 4):
                for blocks in permutations(range(n_gates)):
                    gated = _with_blocks(order, axis, blocks) if blocks != tuple(range(n_gates)) else None
                    if gated is not None:
                        yield gated


def _with_blocks(order: AxisOrder, axis: int, blocks: tuple[int, ...]) -> AxisOrder | None:
    """Return the order with one axis of its split cut into blocks that come in another order."""
    size, n = order.split[axis], len(blocks)
    if size % n or order.block_axis is not None:
        return None
    split = (*order.split[:axis], n, size // n, *order.split[axis + 1 :])
    axes: list[int] = []
    for old in order.axes:
        axes += [axis, axis + 1] if old == axis else [old + (old > axis)]
    return replace(order, split=split, axes=tuple(axes), block_axis=axis, blocks=blocks)


def _without_ones(shape: Shape) -> Shape:
    return tuple(size for size in shape if size != 1)


def _cuts(sizes: Sequence[int]) -> set[int]:
    """Return after how many elements, counted from the first axis on, an axis ends."""
    return set(accumulate(sizes, mul))


def _strides(shape: Shape) -> list[int]:
    return [prod(shape[axis + 1 :]) for axis in range(len(shape))]


def _key(order: AxisOrder) -> tuple[object, ...]:
    """Return what is equal for orders that move the same elements: axes of one element left out."""
    kept = [axis for axis in range(len(order.split)) if order.split[axis] != 1]
    places = {axis: place for place, axis in enumerate(kept)}
    split = tuple(order.split[axis] for axis in kept)
    block = places.get(order.block_axis, -1) if order.block_axis is not None else -1
    axes = tuple(places[axis] for axis in order.axes if axis in places)
    if axes == tuple(range(len(axes))) and block < 0:
        return ("identity",)
    return (split, axes, block, order.blocks)


def _unique(orders: Sequence[AxisOrder] | Iterator[AxisOrder]) -> tuple[AxisOrder, ...]:
    found: dict[tuple[object, ...], AxisOrder] = {}
    for order in orders:
        found.setdefault(_key(order), order)
    return tuple(found.values())


def _tuple(values: Sequence[int]) -> str:
    return f"({','.join(map(str, values))})"
