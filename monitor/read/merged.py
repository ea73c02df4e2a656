"""Several open checkpoints as one: the shards of a model, or a model with its optimizer beside it.

Names stay unique and ties stay ties. Values are passed on from the part they are in; nothing is held.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from monitor.read.naming import UniqueNames, joined
from monitor.read.reader import Chunk, LimitError, OpenCheckpoint, ReadLimits, TensorSpec
from storage.records import TensorKind


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One checkpoint within another.

    `prefix` goes before its names, `rename` replaces some of them, also those of numbers, and `kind` all kinds.
    `scalars` says whether its plain numbers are taken as well, under the same prefix.
    """

    checkpoint: OpenCheckpoint
    prefix: str = ""
    rename: Mapping[str, str] = field(default_factory=dict)
    kind: TensorKind | None = None
    scalars: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class MergedCheckpoint:
    """Open checkpoints as one."""

    step: int | None
    epoch: float | None
    scalars: Mapping[str, float]
    tensors: tuple[TensorSpec, ...]

    def chunks(self, spec: TensorSpec) -> Iterator[Chunk]:
        """Yield the values of one tensor in order."""
        assert isinstance(spec.key, _Within)
        return spec.key.checkpoint.chunks(spec.key.spec)


@dataclass(frozen=True, slots=True)
class _Within:
    """The key of a spec: the part that holds it, and what it is called there."""

    checkpoint: OpenCheckpoint
    spec: TensorSpec


def merge(
    parts: Sequence[Part],
    limits: ReadLimits,
    *,
    step: int | None = None,
    epoch: float | None = None,
    scalars: Mapping[str, float] | None = None,
) -> MergedCheckpoint:
    """Return the parts as one checkpoint, in their order.

    `step` and `epoch` None are taken from the first part that states them. `scalars` go before those of the parts;
    a number whose name is taken is left out.
    """
    if sum(len(part.checkpoint.tensors) for part in parts) > limits.tensors_max:
        raise LimitError(f"the files name more than {limits.tensors_max} tensors")
    unique = UniqueNames(limits.name_characters_max)
    specs: list[TensorSpec] = []
    numbers = dict(scalars or {})
    for part in parts:
        named: dict[str, str] = {}
        for spec in part.checkpoint.tensors:
            wanted = part.rename.get(spec.name, spec.name)
            name = unique.claim(joined(part.prefix, wanted, limits.name_characters_max))
            named[spec.name] = name
            specs.append(
                replace(
                    spec,
                    name=name,
                    kind=part.kind or spec.kind,
                    key=_Within(part.checkpoint, spec),
                    tied_to=named.get(spec.tied_to) if spec.tied_to is not None else None,
                )
            )
        for key, value in part.checkpoint.scalars.items() if part.scalars else ():
            if len(numbers) < limits.scalars_max:
                name = joined(part.prefix, part.rename.get(key, key), limits.name_characters_max)
                numbers.setdefault(name, value)
    checkpoints = [part.checkpoint for part in parts]
    return MergedCheckpoint(
        step=step if step is not None else next((c.step for c in checkpoints if c.step is not None), None),
        epoch=epoch if epoch is not None else next((c.epoch for c in checkpoints if c.epoch is not None), None),
        scalars=numbers,
        tensors=tuple(specs),
    )
