"""A model in several files beside each other: `model-00001-of-00003.safetensors` and its index.

The index is written after the shards, so it says when the model is whole. It stands for the group.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from monitor.read.bounded_unit import BoundedUnit
from monitor.read.merged import merge
from monitor.read.models.model_files import open_shards, shard_groups
from monitor.read.reader import OpenCheckpoint, ReadLimits
from monitor.read.unit import Claim, DirectoryListing


class ShardedReader:
    """The reader of groups of safetensors or torch.save shards."""

    name: ClassVar[str] = "sharded"
    marks: ClassVar[tuple[str, ...]] = ("*.index.json", "*.index.*.json")

    @classmethod
    def claim(cls, directory: DirectoryListing) -> Sequence[Claim]:
        """Claim each group of shards, from the first shard on."""
        return [Claim(reader=cls.name, index=group.index, files=group.files) for group in shard_groups(directory.files)]

    def open(self, unit: BoundedUnit, limits: ReadLimits) -> OpenCheckpoint:
        """Open the shards that the index names."""
        return merge(open_shards(unit, unit.claim.index, limits), limits)
