"""What `Accelerator.save_state` writes: weights, optimizer, scheduler, random states and the user's own objects.

There is no marker; the random states are written after the weights and the optimizer. The number in `checkpoint_3`
counts saves; a step is known only where an object of the user's states one.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import ClassVar

from monitor.read.bounded_unit import BoundedUnit
from monitor.read.inner import open_inner, open_inner_directory
from monitor.read.merged import MergedCheckpoint, Part, merge
from monitor.read.models.model_files import open_shards, shard_groups, weight_files
from monitor.read.notes import FormatNotes
from monitor.read.optimizer_names import named_states
from monitor.read.reader import IncompleteError, OpenCheckpoint, ReadLimits
from monitor.read.unit import Claim, DirectoryListing
from storage.records import TensorKind

_DIRECTORY = re.compile(r"checkpoint_\d+")
_RANDOM = re.compile(r"random_states_\d+\.pkl")
_RANDOM_FIRST = "random_states_0.pkl"
_OPTIMIZER = re.compile(r"optimizer(?:_(\d+))?\.bin")
_SCHEDULER = re.compile(r"scheduler(?:_(\d+))?\.bin")
_CUSTOM = re.compile(r"custom_checkpoint_(\d+)\.pkl")
# The last is what FSDP saves when it gathers the whole model on one rank.
_MODEL = re.compile(r"(?:model|pytorch_model|pytorch_model_fsdp)(?:_(\d+))?\.(?:safetensors|bin)")
_SHARDED_MODEL = re.compile(r"pytorch_model_fsdp_(\d+)")
_SHARDED_OPTIMIZER = re.compile(r"optimizer_(\d+)")


class AccelerateReader:
    """The reader of directories that `save_state` of Accelerate writes."""

    name: ClassVar[str] = "accelerate"
    marks: ClassVar[tuple[str, ...]] = ("random_states_*.pkl", "custom_checkpoint_*.pkl")
    notes: ClassVar[FormatNotes] = FormatNotes(
        files=(
            "`checkpoint_N/`, and directories with `random_states_*.pkl`, `optimizer.bin` or `custom_checkpoint_*.pkl`"
        ),
        written_by="`Accelerator.save_state`",
        optimizer_state="`optimizer.bin`, `optimizer_1.bin`, ...",
        whole="weights and all other parts are whole",
        not_yet="`optimizer.bin` without `random_states_0.pkl`, which is written after it",
        never="a part that is broken",
        step=(
            "that of the first of the user's own objects (`custom_checkpoint_*.pkl`) that states one; the "
            "number in `checkpoint_N` counts saves"
        ),
        safety="as the formats inside; random states are never opened",
        tested_in="tests/monitor/read/formats/test_accelerate.py",
        tested_with="accelerate",
    )

    @classmethod
    def claim(cls, directory: DirectoryListing) -> Sequence[Claim]:
        """Claim a directory of weights beside Accelerate's own files, or of Accelerate's own name."""
        shown = any(p.fullmatch(name) for name in directory.files for p in (_RANDOM, _OPTIMIZER, _CUSTOM))
        if not shown and _DIRECTORY.fullmatch(directory.name) is None:
            return ()
        weights = weight_files(directory.files) | {name for name in directory.files if _MODEL.fullmatch(name)}
        inner = frozenset(
            name
            for name in directory.directories
            if _SHARDED_MODEL.fullmatch(name) or _SHARDED_OPTIMIZER.fullmatch(name)
        )
        if not weights and not any(_SHARDED_MODEL.fullmatch(name) for name in inner):
            return ()
        sides = {name for name in directory.files if any(p.fullmatch(name) for p in (_OPTIMIZER, _SCHEDULER, _CUSTOM))}
        files = weights | sides | (directory.files & {_RANDOM_FIRST})
        return [Claim(reader=cls.name, files=files, directories=inner, hidden=directory.files - files)]

    def open(self, unit: BoundedUnit, limits: ReadLimits) -> OpenCheckpoint:
        """Open every part; raise IncompleteError while the random states are missing beside an optimizer."""
        if _RANDOM_FIRST not in unit and any(_OPTIMIZER.fullmatch(name) for name in unit.names):
            raise IncompleteError(f"{_RANDOM_FIRST} is not there (yet); Accelerate writes it after the optimizer")
        models, in_module_order = _models(unit, limits)
        custom = [
            Part(
                checkpoint=open_inner(unit, name, limits),
                prefix=name.removesuffix(".pkl"),
                kind=TensorKind.OTHER,
            )
            for name in unit.names
            if _CUSTOM.fullmatch(name)
        ]
        parts = [*models, *_optimizers(unit, limits), *_schedulers(unit, limits)]
        stated = [part.checkpoint for part in custom]
        merged = merge(
            [*parts, *custom],
            limits,
            step=next((c.step for c in stated if c.step is not None), None),
            epoch=next((c.epoch for c in stated if c.epoch is not None), None),
        )
        tensors, scalars = named_states(merged.tensors, merged.scalars, in_module_order=in_module_order)
        return MergedCheckpoint(step=merged.step, epoch=merged.epoch, scalars=scalars, tensors=tensors)


def _models(unit: BoundedUnit, limits: ReadLimits) -> tuple[list[Part], bool]:
    """Return the models, the second and later ones under their number, and whether they are in module order."""
    parts: list[Part] = []
    in_order = True
    for name in unit.names:
        match = _MODEL.fullmatch(name)
        if match is not None:
            prefix = f"model_{match[1]}" if match[1] else ""
            parts.append(Part(checkpoint=open_inner(unit, name, limits), prefix=prefix))
            in_order = in_order and name.endswith(".bin")
    if not parts:
        for group in shard_groups([name for name in unit.names if "/" not in name]):
            return open_shards(unit, group.index, limits), False
    for directory in sorted(unit.claim.directories):
        match = _SHARDED_MODEL.fullmatch(directory)
        if match is not None:
            prefix = "" if match[1] == "0" else f"model_{match[1]}"
            parts.append(Part(checkpoint=open_inner_directory(unit, directory, limits), prefix=prefix))
            in_order = False
    if not parts:
        raise IncompleteError("the weights are not there (yet)")
    return parts, in_order and len(parts) == 1


def _optimizers(unit: BoundedUnit, limits: ReadLimits) -> list[Part]:
    parts: list[Part] = []
    for name in (*unit.names, *sorted(unit.claim.directories)):
        file, directory = _OPTIMIZER.fullmatch(name), _SHARDED_OPTIMIZER.fullmatch(name)
        if file is not None:
            parts.append(_numbered(open_inner(unit, name, limits), int(file[1] or 0)))
        elif directory is not None:
            parts.append(_numbered(open_inner_directory(unit, name, limits), int(directory[1])))
    return parts


def _numbered(optimizer: OpenCheckpoint, number: int) -> Part:
    """Return an optimizer under `optimizer.<number>`, the first one under `optimizer`."""
    prefix = "optimizer."
    names = [*(spec.name for spec in optimizer.tensors), *optimizer.scalars]
    rename = {name: f"optimizer.{number}.{name.removeprefix(prefix)}" for name in names} if number else {}
    return Part(checkpoint=optimizer, rename=rename, kind=TensorKind.OPTIMIZER)


def _schedulers(unit: BoundedUnit, limits: ReadLimits) -> list[Part]:
    return [
        Part(checkpoint=open_inner(unit, name, limits), prefix=name.removesuffix(".bin"), kind=TensorKind.OTHER)
        for name in unit.names
        if _SCHEDULER.fullmatch(name)
    ]
