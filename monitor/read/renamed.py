"""Names that say what a tensor is: without the traces of wrappers, and with parameters' names for optimizer state.

Pure but for passing chunks on. It changes names, never values or order.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from monitor.read.naming import UniqueNames
from monitor.read.optimizer_names import named_states
from monitor.read.reader import Chunk, OpenCheckpoint, ReadLimits, TensorSpec
from storage.records import TensorKind

# Left by torch.compile and by FSDP wherever they wrap a part of the model.
_ANYWHERE = re.compile(r"(?:(?<=\.)|^)(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
# Left by data parallel wrappers, PEFT and averaged models around the whole model; dropped when all weights have it.
_AROUND = ("module.", "base_model.model.", "ema.")
_OPTIMIZER_STATE = re.compile(r"(optimizer(?:\.\d+)?\.state\.)(.+)", re.DOTALL)
_ROUNDS_MAX = 4


@dataclass(frozen=True, slots=True)
class RenamedCheckpoint:
    """A checkpoint under other names; everything else is the inner one's."""

    inner: OpenCheckpoint
    tensors: tuple[TensorSpec, ...]
    scalars: Mapping[str, float]
    by_name: Mapping[str, TensorSpec]

    @property
    def step(self) -> int | None:
        """Return the step that the content states."""
        return self.inner.step

    @property
    def epoch(self) -> float | None:
        """Return the epoch that the content states."""
        return self.inner.epoch

    def chunks(self, spec: TensorSpec) -> Iterator[Chunk]:
        """Yield the values of one tensor in order."""
        return self.inner.chunks(self.by_name[spec.name])


def without_wrappers(checkpoint: OpenCheckpoint, limits: ReadLimits) -> OpenCheckpoint:
    """Return the checkpoint with the names of wrappers left out, the very same one where there are none."""
    renames = unwrapped_names(checkpoint.tensors, limits)
    if not renames:
        return checkpoint
    specs = tuple(
        replace(
            spec,
            name=renames.get(spec.name, spec.name),
            tied_to=renames.get(spec.tied_to, spec.tied_to) if spec.tied_to is not None else None,
        )
        for spec in checkpoint.tensors
    )
    prefixes = _around(checkpoint.tensors)
    scalars = {_state_name(name, prefixes): value for name, value in checkpoint.scalars.items()}
    return _renamed(checkpoint, specs, scalars)


def with_named_states(checkpoint: OpenCheckpoint) -> OpenCheckpoint:
    """Return a checkpoint in module order with its optimizer's state under the names of its parameters.

    It is the very same one where that is not certain (see optimizer_names.py).
    """
    specs, scalars = named_states(checkpoint.tensors, checkpoint.scalars, in_module_order=True)
    return checkpoint if specs == tuple(checkpoint.tensors) else _renamed(checkpoint, specs, scalars)


def _renamed(
    checkpoint: OpenCheckpoint, specs: tuple[TensorSpec, ...], scalars: Mapping[str, float]
) -> RenamedCheckpoint:
    by_name = {new.name: old for new, old in zip(specs, checkpoint.tensors, strict=True)}
    return RenamedCheckpoint(checkpoint, specs, scalars, by_name)


def unwrapped_names(specs: Sequence[TensorSpec], limits: ReadLimits) -> dict[str, str]:
    """Return old name to new name for every tensor whose name changes; new names are unique.

    `_orig_mod.` and the like go wherever they are; `module.` and others only when every parameter and buffer begins
    with them, because a part of a model may well be called so. A name that would clash keeps its old form.
    """
    prefixes = _around(specs)
    if not prefixes and not any(_ANYWHERE.search(spec.name) for spec in specs):
        return {}
    names = UniqueNames(limits.name_characters_max)
    renames: dict[str, str] = {}
    for spec in specs:
        new = names.claim(_unwrapped(spec, prefixes), longer=spec.name)
        if new != spec.name:
            renames[spec.name] = new
    return renames


def _unwrapped(spec: TensorSpec, prefixes: str) -> str:
    if spec.kind is TensorKind.OPTIMIZER:
        return _state_name(spec.name, prefixes)
    name = _ANYWHERE.sub("", spec.name) or spec.name
    return name.removeprefix(prefixes) if spec.kind is not TensorKind.OTHER else name


def _state_name(name: str, prefixes: str) -> str:
    match = _OPTIMIZER_STATE.fullmatch(name)
    if match is None:
        return name
    return match[1] + _ANYWHERE.sub("", match[2]).removeprefix(prefixes)


def _around(specs: Sequence[TensorSpec]) -> str:
    """Return what every parameter and buffer begins with that only wrappers add, "" for nothing."""
    names = [_ANYWHERE.sub("", s.name) for s in specs if s.kind in {TensorKind.PARAMETER, TensorKind.BUFFER}]
    found = ""
    for _ in range(_ROUNDS_MAX):
        for prefix in _AROUND:
            whole = found + prefix
            if names and all(name.startswith(whole) and len(name) > len(whole) for name in names):
                found = whole
                break
        else:
            break
    return found
