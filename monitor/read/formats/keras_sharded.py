"""Keras 3 weights in several files: `NAME_00000.weights.h5` and so on, and `NAME.weights.json`, which is written last.

The index says in which of the files the variables of each layer are, and stands for the group.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from monitor.read.bounded_unit import BoundedUnit, naming
from monitor.read.keras.hdf5 import Hdf5Dataset, Hdf5File, Hdf5Tree
from monitor.read.keras.keras_h5 import Hdf5Checkpoint, open_hdf5
from monitor.read.notes import FormatNotes
from monitor.read.reader import Chunk, CorruptError, LimitError, ReadLimits
from monitor.read.unit import Claim, DirectoryListing

_INDEX = ".weights.json"
_SHARD = re.compile(r"(?P<name>.+)_\d{5,9}\.weights\.h5", re.DOTALL)
_SHARDS_MAX = 10_000
# The addresses of the datasets of each file are moved apart by this, so that they stay in order and no two are equal.
_ADDRESSES = 2**64


@dataclass(frozen=True, slots=True)
class _Joined:
    """Several HDF5 files as one; a dataset's address tells which file it is in."""

    files: tuple[Hdf5File, ...]

    def chunks(self, dataset: Hdf5Dataset) -> Iterator[Chunk]:
        return self.files[dataset.address // _ADDRESSES].chunks(dataset)


class KerasShardedReader:
    """The reader of Keras weights in shards."""

    name: ClassVar[str] = "keras_sharded"
    marks: ClassVar[tuple[str, ...]] = (f"*{_INDEX}",)
    notes: ClassVar[FormatNotes] = FormatNotes(
        files="`NAME.weights.json` with `NAME_00000.weights.h5` and so on",
        written_by="Keras 3 `save_weights` with `max_shard_size`",
        optimizer_state="inside",
        whole="the index (written last) parses, and every shard that it names is whole",
        not_yet="a missing shard, or one that is not whole",
        never="as `hdf5`; a variable in two shards",
        step="as `hdf5`",
        safety="as `hdf5`; a shard is followed only within the directory",
        limits=("as `hdf5`; at most 10 000 shards",),
        tested_in="tests/monitor/read/formats/test_keras.py",
        tested_with="keras",
    )

    @classmethod
    def claim(cls, directory: DirectoryListing) -> Sequence[Claim]:
        """Claim each index with the shards of its name; without an index the names may be those of single saves."""
        indices = sorted(name for name in directory.files if name.endswith(_INDEX) and name != _INDEX)
        if not indices:
            return ()
        shards: dict[str, set[str]] = {}
        for name in directory.files:
            match = _SHARD.fullmatch(name)
            if match is not None:
                shards.setdefault(match["name"], set()).add(name)
        return [
            Claim(
                reader=cls.name,
                index=index,
                files=frozenset({index, *shards.get(index.removesuffix(_INDEX).replace(".weights", ""), ())}),
            )
            for index in indices
        ]

    def open(self, unit: BoundedUnit, limits: ReadLimits) -> Hdf5Checkpoint:
        """Read the index and walk every shard that it names."""
        files: list[Hdf5File] = []
        datasets: list[Hdf5Dataset] = []
        attributes: dict[str, dict[str, tuple[str, ...]]] = {}
        for number, name in enumerate(_shard_names(unit)):
            with naming(name):
                file = Hdf5File(unit.open(name), limits)
                tree = file.tree()
            files.append(file)
            datasets += [replace(d, address=d.address + number * _ADDRESSES) for d in tree.datasets]
            if len(datasets) > limits.tensors_max:
                raise LimitError(f"the shards have more than {limits.tensors_max} datasets")
            for path, found in tree.attributes.items():
                attributes.setdefault(path, {}).update(found)
        places = [dataset.path for dataset in datasets]
        if len(set(places)) != len(places):
            raise CorruptError("a variable is in more than one shard")
        return open_hdf5(_Joined(tuple(files)), Hdf5Tree(tuple(datasets), attributes), limits)


def _shard_names(unit: BoundedUnit) -> list[str]:
    index = unit.read_json(unit.claim.index)
    places = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(places, dict):
        raise CorruptError("the index has no weight_map")
    names: set[str] = set()
    for value in places.values():
        for name in value if isinstance(value, list) else [value]:
            if not isinstance(name, str):
                raise CorruptError("the weight_map names something that is no file")
            names.add(name)
    if not names or len(names) > _SHARDS_MAX:
        raise LimitError(f"the index names {len(names)} shards, 1 to {_SHARDS_MAX} are read")
    return sorted(names)
