"""The weights of a model in Hugging Face's layout: one file, or shards with an index that names each tensor's file.

Which names those are is pure text; the files are opened through the unit that holds them.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from monitor.read.bounded_unit import BoundedUnit
from monitor.read.inner import open_inner
from monitor.read.merged import Part
from monitor.read.naming import printable
from monitor.read.reader import CorruptError, IncompleteError, LimitError, OpenCheckpoint, ReadLimits

INDEX_BYTES_MAX = 64 * 2**20
SHARDS_MAX = 10_000
SINGLE_FILES = ("model.safetensors", "pytorch_model.bin", "adapter_model.safetensors", "adapter_model.bin")

_INDEX = re.compile(r"(?P<stem>.+)\.(?P<suffix>safetensors|bin|pt)\.index(?:\.(?P<variant>[\w-]+))?\.json", re.DOTALL)
_SHARD = re.compile(
    r"(?P<stem>.+?)(?:\.(?P<variant>[\w-]+))?-(?P<number>\d{1,6})-of-(?P<total>\d{1,6})\.(?P<suffix>safetensors|bin|pt)",
    re.DOTALL,
)
_SHOWN = 120


@dataclass(frozen=True, slots=True, kw_only=True)
class Shards:
    """A group of files `stem-00001-of-00003.suffix` with, or not yet with, its index."""

    index: str
    files: frozenset[str]


def is_index(name: str) -> bool:
    """Say whether a name is that of an index of shards."""
    return _INDEX.fullmatch(name) is not None


def weight_files(names: Collection[str]) -> frozenset[str]:
    """Return the names of a model's weights among those of one directory, shards and indexes included; pure."""
    shards = [group.files for group in shard_groups(names)]
    return frozenset(names).intersection(SINGLE_FILES).union(*shards)


def shard_groups(names: Collection[str]) -> list[Shards]:
    """Return the groups of shards among the names of one directory, sorted; pure.

    A group is there as soon as one of its files is. Where shards of two totals lie beside each other, they are one
    group: which of them count is for the index to say.
    """
    groups: dict[str, set[str]] = {}
    for name in names:
        shard = _SHARD.fullmatch(name)
        if shard is not None:
            variant = f".{shard['variant']}" if shard["variant"] else ""
            groups.setdefault(f"{shard['stem']}.{shard['suffix']}.index{variant}.json", set()).add(name)
        elif is_index(name):
            groups.setdefault(name, set()).add(name)
    return [Shards(index=index, files=frozenset(groups[index])) for index in sorted(groups)]


def open_shards(unit: BoundedUnit, index: str, limits: ReadLimits) -> list[Part]:
    """Open every file that an index names, and check that each tensor is in the file that it says.

    Raises IncompleteError while the index (written last) or a file is missing, CorruptError where they disagree.
    """
    if index not in unit:
        raise IncompleteError(f"'{printable(index, _SHOWN)}' is not there (yet); it is written after the shards")
    weight_map = _weight_map(unit.read_json(index, INDEX_BYTES_MAX), index)
    if len(weight_map) > limits.tensors_max:
        raise LimitError(f"the index names {len(weight_map)} tensors, the limit is {limits.tensors_max}")
    directory = index.rpartition("/")[0]
    wanted: dict[str, set[str]] = {}
    for tensor, file in weight_map.items():
        wanted.setdefault(file, set()).add(tensor)
    if len(wanted) > SHARDS_MAX:
        raise LimitError(f"the index names {len(wanted)} files, the limit is {SHARDS_MAX}")
    parts: list[Part] = []
    for file in sorted(wanted):
        checkpoint = open_inner(unit, f"{directory}/{file}" if directory else file, limits)
        _check_tensors(checkpoint, wanted[file], file)
        parts.append(Part(checkpoint=checkpoint))
    return parts


def _weight_map(content: object, index: str) -> Mapping[str, str]:
    found = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(found, dict) or not found or not all(isinstance(file, str) for file in found.values()):
        raise CorruptError(f"'{printable(index, _SHOWN)}' has no weight_map of names to files")
    return found


def _check_tensors(checkpoint: OpenCheckpoint, wanted: set[str], file: str) -> None:
    there = {spec.name for spec in checkpoint.tensors}
    missing = wanted - there
    # Names that had to be made printable or unique differ from the index without anything being wrong.
    if missing and len(there) != len(wanted):
        raise CorruptError(
            f"'{printable(file, _SHOWN)}' has no tensor '{printable(min(missing), _SHOWN)}', which the index puts there"
        )
