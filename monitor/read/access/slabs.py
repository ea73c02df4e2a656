"""Boxes of an array that follow each other in C order, for libraries that are asked by slices. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product


def slabs(shape: tuple[int, ...], n_max: int) -> Iterator[tuple[slice, ...]]:
    """Cut a shape into boxes of at most `n_max` elements that follow each other in C order."""
    inner, cut = 1, len(shape)
    while cut > 0 and inner * shape[cut - 1] <= n_max:
        cut -= 1
        inner *= shape[cut]
    rest = tuple(slice(0, size) for size in shape[cut:])
    if cut == 0:
        yield rest
        return
    size, per_slab = shape[cut - 1], max(1, n_max // inner)
    for index in product(*(range(outer) for outer in shape[: cut - 1])):
        outer = tuple(slice(i, i + 1) for i in index)
        for start in range(0, size, per_slab):
            yield (*outer, slice(start, min(start + per_slab, size)), *rest)
