"""ZeRO's flat partitions: which stretch of which rank's buffers is which parameter.

DeepSpeed cuts the fp32 master weights and the optimizer's state into flat pieces, one a rank. Stages 1 and 2 lay the
parameters of a group end to end and cut the whole into equal pieces; stage 3 cuts every parameter into equal pieces.
The same rules as in DeepSpeed's own `zero_to_fp32.py`. Pure: nothing is read here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod

from monitor.read.access.partial_sources import JoinedSource, PartSource
from monitor.read.access.sources import ByteSource
from monitor.read.dtypes import DTYPES

MASTER = "fp32_param"  # the key of the master weights among the state of a parameter
_ALIGNMENT = 2  # elements a rank to which stages 1 and 2 may fill up the end of a group

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class Flat:
    """One flat buffer of one rank."""

    dtype: str
    source: ByteSource
    n_elements: int

    def part(self, offset: int, n: int) -> ByteSource:
        """Return `n` elements from `offset`."""
        itemsize = DTYPES[self.dtype].itemsize
        return PartSource(self.source, offset * itemsize, n * itemsize)


@dataclass(frozen=True, slots=True)
class RankGroup:
    """What one rank keeps of one group of parameters: buffers by key, MASTER among them, and the optimizer's step."""

    buffers: Mapping[str, Flat]
    step: int | None


@dataclass(frozen=True, slots=True)
class Placed:
    """One tensor found in the buffers: `key` says which of a parameter's state it is; values lie in C order."""

    name: str
    key: str
    dtype: str
    shape: tuple[int, ...]
    source: ByteSource
    step: int | None


def place(ranks: Sequence[Sequence[RankGroup]], shapes: Sequence[Shapes], *, by_parameter: bool) -> list[Placed]:
    """Return the parameters' state, in the order of the parameters; per rank and group where the shapes do not fit.

    `ranks` holds the groups of each rank. `by_parameter` is how stage 3 cuts; then each rank has one group.
    """
    placed: list[Placed] = []
    for number in range(max((len(groups) for groups in ranks), default=0)):
        parts = [groups[number] for groups in ranks if number < len(groups)]
        group_shapes = shapes[number] if number < len(shapes) else {}
        if by_parameter:
            group_shapes = {name: shape for group in shapes for name, shape in group.items()}
        whole = len(parts) == len(ranks) and _agree(parts)
        if whole and group_shapes and by_parameter and _fit_in_slices(parts, group_shapes):
            placed += _in_slices(parts, group_shapes)
        elif whole and group_shapes and not by_parameter and _fit_in_a_row(parts, group_shapes):
            placed += _in_a_row(parts, group_shapes)
        else:
            placed += _as_they_are(parts, number)
    return placed


def _agree(parts: Sequence[RankGroup]) -> bool:
    """Say whether the ranks keep the same buffers in the same dtypes, each at least as long as the master weights."""
    kinds = {tuple((key, buffer.dtype) for key, buffer in part.buffers.items()) for part in parts}
    return len(kinds) == 1 and all(
        MASTER in part.buffers
        and all(buffer.n_elements >= part.buffers[MASTER].n_elements for buffer in part.buffers.values())
        for part in parts
    )


def _fit_in_a_row(parts: Sequence[RankGroup], shapes: Shapes) -> bool:
    there = sum(part.buffers[MASTER].n_elements for part in parts)
    return 0 <= there - sum(prod(shape) for shape in shapes.values()) <= _ALIGNMENT * len(parts)


def _in_a_row(parts: Sequence[RankGroup], shapes: Shapes) -> Iterator[Placed]:
    lengths = [part.buffers[MASTER].n_elements for part in parts]
    joined = {
        key: Flat(
            buffer.dtype,
            JoinedSource([part.buffers[key].part(0, n) for part, n in zip(parts, lengths, strict=True)]),
            sum(lengths),
        )
        for key, buffer in parts[0].buffers.items()
    }
    offset = 0
    for name, shape in shapes.items():
        for key, buffer in joined.items():
            yield Placed(name, key, buffer.dtype, shape, buffer.part(offset, prod(shape)), parts[0].step)
        offset += prod(shape)


def _fit_in_slices(parts: Sequence[RankGroup], shapes: Shapes) -> bool:
    wanted = sum(-(-prod(shape) // len(parts)) for shape in shapes.values())
    return all(part.buffers[MASTER].n_elements >= wanted for part in parts)


def _in_slices(parts: Sequence[RankGroup], shapes: Shapes) -> Iterator[Placed]:
    offset = 0
    for name, shape in shapes.items():
        n_elements = prod(shape)
        n_slice = -(-n_elements // len(parts))
        lengths = [max(0, min(n_slice, n_elements - rank * n_slice)) for rank in range(len(parts))]
        for key, buffer in parts[0].buffers.items():
            source = JoinedSource(
                [part.buffers[key].part(offset, n) for part, n in zip(parts, lengths, strict=True) if n]
            )
            yield Placed(name, key, buffer.dtype, shape, source, parts[0].step)
        offset += n_slice


def _as_they_are(parts: Sequence[RankGroup], number: int) -> Iterator[Placed]:
    for rank, part in enumerate(parts):
        for key, buffer in part.buffers.items():
            shape = (buffer.n_elements,)
            yield Placed(f"rank_{rank}_group_{number}", key, buffer.dtype, shape, buffer.source, part.step)
