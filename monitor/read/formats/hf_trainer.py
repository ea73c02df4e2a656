"""What the Trainer of Hugging Face writes: `checkpoint-N` with the weights, the optimizer and trainer_state.json.

The directory is filled in place and trainer_state.json comes last, so it says when the checkpoint is whole; on a save
over an older checkpoint it is the old one until then, and older than the weights.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from math import isfinite
from typing import ClassVar

from monitor.read.bounded_unit import BoundedUnit
from monitor.read.inner import open_inner, open_inner_directory
from monitor.read.merged import MergedCheckpoint, Part, merge
from monitor.read.models.model_files import SINGLE_FILES, open_shards, shard_groups, weight_files
from monitor.read.naming import as_epoch, as_step
from monitor.read.notes import FormatNotes
from monitor.read.optimizer_names import named_states
from monitor.read.reader import CorruptError, IncompleteError, OpenCheckpoint, ReadLimits
from monitor.read.unit import Claim, DirectoryListing
from storage.records import TensorKind

STATE = "trainer_state.json"
STATE_BYTES_MAX = 256 * 2**20  # it keeps the whole history of what was logged
REWRITE_SECONDS = 300.0  # weights newer than the state mean a save under way only while they are as young as this

_CHECKPOINT_NAME = re.compile(r"checkpoint-\d+")
_ARGUMENTS = "training_args.bin"
_SIDE_FILES = ("optimizer.pt", "optimizer.bin", "scheduler.pt")
_SHARDED_MODEL = re.compile(r"pytorch_model_fsdp_\d+")
_SHARDED_OPTIMIZER = re.compile(r"optimizer_\d+")
_DEEPSPEED = re.compile(r"global_step\d+")
_ACCELERATE = re.compile(r"random_states_\d+\.pkl|custom_checkpoint_\d+\.pkl|scheduler\.bin|optimizer\.bin")
_STATE_NUMBERS = ("max_steps", "best_metric", "total_flos", "num_input_tokens_seen", "train_batch_size")


class HfTrainerReader:
    """The reader of `checkpoint-N` directories, sharded or not, also of PEFT, FSDP and DeepSpeed training."""

    name: ClassVar[str] = "hf_trainer"
    marks: ClassVar[tuple[str, ...]] = (STATE, _ARGUMENTS)
    notes: ClassVar[FormatNotes] = FormatNotes(
        files="`checkpoint-N/`, and directories with `trainer_state.json` or `training_args.bin`",
        written_by=(
            "the Trainer of Hugging Face: one file or shards, safetensors or `.bin`, adapters, FSDP and "
            "DeepSpeed directories inside"
        ),
        optimizer_state="`optimizer.pt`, or that of the inner format",
        whole="`trainer_state.json` (written last) parses, and the weights are whole; shards as in `sharded`",
        not_yet=(
            "no `trainer_state.json` beside an optimizer; weights newer than it and younger than five "
            "minutes, as when a checkpoint is saved again"
        ),
        never="an index that disagrees with its shards or points outside the directory",
        step="`global_step` and `epoch` of `trainer_state.json`",
        safety="as the formats inside; `training_args.bin` and the random states are never opened",
        tested_in="tests/monitor/read/formats/test_hf_trainer.py",
        tested_with="transformers",
    )

    @classmethod
    def claim(cls, directory: DirectoryListing) -> Sequence[Claim]:
        """Claim a directory of weights that the trainer's files or its own name show to be the Trainer's.

        The output directory, in which other checkpoints lie, is not one.
        """
        if any(_CHECKPOINT_NAME.fullmatch(name) for name in directory.directories):
            return ()
        is_named = _CHECKPOINT_NAME.fullmatch(directory.name) is not None
        is_trainers = not directory.files.isdisjoint((STATE, _ARGUMENTS))
        if not is_trainers and (not is_named or any(_ACCELERATE.fullmatch(name) for name in directory.files)):
            return ()
        weights = weight_files(directory.files) | {f for f in directory.files if f.startswith("pytorch_model_fsdp")}
        inner = frozenset(
            name
            for name in directory.directories
            if any(p.fullmatch(name) for p in (_SHARDED_MODEL, _SHARDED_OPTIMIZER, _DEEPSPEED))
        )
        if not weights and not any(not _SHARDED_OPTIMIZER.fullmatch(name) for name in inner):
            return ()
        files = weights | (directory.files & {STATE, *_SIDE_FILES})
        hidden = directory.files - files if is_named else directory.files & {_ARGUMENTS}
        return [Claim(reader=cls.name, files=files, directories=inner, hidden=hidden)]

    def open(self, unit: BoundedUnit, limits: ReadLimits) -> OpenCheckpoint:
        """Open weights, optimizer and state; raise IncompleteError until the state is written after the weights."""
        state = _state(unit)
        weights, in_module_order = _weights(unit, limits)
        parts = [*weights, *_sides(unit, limits)]
        merged = merge(
            parts,
            limits,
            step=as_step(state.get("global_step")),
            epoch=as_epoch(state.get("epoch")),
            scalars=_numbers(state),
        )
        tensors, scalars = named_states(merged.tensors, merged.scalars, in_module_order=in_module_order)
        return MergedCheckpoint(step=merged.step, epoch=merged.epoch, scalars=scalars, tensors=tensors)


def _state(unit: BoundedUnit) -> Mapping[str, object]:
    """Return the content of trainer_state.json, an empty mapping where none is to be expected."""
    is_named = _CHECKPOINT_NAME.fullmatch(unit.directory.rpartition("/")[2]) is not None
    if STATE not in unit:
        begun = [name for name in _SIDE_FILES if name in unit]
        begun += [name for name in unit.claim.directories if _SHARDED_OPTIMIZER.fullmatch(name)]
        if begun or (is_named and _ARGUMENTS in unit.claim.hidden):
            raise IncompleteError(f"{STATE} is not there (yet); the Trainer writes it last")
        return {}
    state = unit.read_json(STATE, STATE_BYTES_MAX)
    if not isinstance(state, dict):
        raise CorruptError(f"{STATE} is no JSON object")
    written_at = unit.stats[STATE].mtime_ns
    newer = [name for name, file in unit.stats.items() if file.mtime_ns > written_at]
    if any(unit.age_seconds(name) < REWRITE_SECONDS for name in newer):
        raise IncompleteError(f"{min(newer)} is newer than {STATE}, which the Trainer writes last: a save is under way")
    return state


def _weights(unit: BoundedUnit, limits: ReadLimits) -> tuple[list[Part], bool]:
    """Return the parts of the model, and whether their parameters come in the order of its modules."""
    for name in (*SINGLE_FILES, "pytorch_model_fsdp.bin"):
        if name in unit:
            return [Part(checkpoint=open_inner(unit, name, limits))], name.endswith(".bin")
    groups = shard_groups([name for name in unit.names if "/" not in name])
    if groups:
        whole = [group for group in groups if group.index in unit]
        return open_shards(unit, (whole or groups)[0].index, limits), False
    directories = sorted(unit.claim.directories)
    for pattern in (_SHARDED_MODEL, _DEEPSPEED):
        for directory in directories:
            if pattern.fullmatch(directory):
                return [Part(checkpoint=open_inner_directory(unit, directory, limits))], False
    raise IncompleteError("the weights are not there (yet)")


def _sides(unit: BoundedUnit, limits: ReadLimits) -> list[Part]:
    parts: list[Part] = []
    for name in ("optimizer.pt", "optimizer.bin"):
        if name in unit:
            parts.append(Part(checkpoint=open_inner(unit, name, limits), kind=TensorKind.OPTIMIZER))
    for directory in sorted(unit.claim.directories):
        if _SHARDED_OPTIMIZER.fullmatch(directory):
            parts.append(Part(checkpoint=open_inner_directory(unit, directory, limits), kind=TensorKind.OPTIMIZER))
    if "scheduler.pt" in unit:
        parts.append(
            Part(checkpoint=open_inner(unit, "scheduler.pt", limits), prefix="scheduler", kind=TensorKind.OTHER)
        )
    return parts


def _numbers(state: Mapping[str, object]) -> dict[str, float]:
    """Return what the state says in numbers, with the newest value of each number that was logged."""
    numbers: dict[str, float] = {}
    for key in _STATE_NUMBERS:
        _take(numbers, f"trainer_state.{key}", state.get(key))
    history = state.get("log_history")
    for entry in reversed(history[-1000:]) if isinstance(history, list) else ():
        for key, value in entry.items() if isinstance(entry, dict) else ():
            if len(key) <= 100 and key.isprintable():
                _take(numbers, f"trainer_state.log.{key}", value)
    return numbers


def _take(numbers: dict[str, float], name: str, value: object) -> None:
    if type(value) in (int, float) and name not in numbers and abs(value) < 1e300 and isfinite(value):  # type: ignore[arg-type]
        numbers[name] = float(value)  # type: ignore[arg-type]
