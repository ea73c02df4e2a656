"""A model in several files beside each other: `model-00001-of-00003.safetensors` and its index.

The index is written after the shards, so it says when the model is whole. It stands for the group.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from monitor.read.bounded_unit import BoundedUnit
from monitor.read.merged import merge
from monitor.read.models.model_files import open_shards, shard_groups
from monitor.read.notes import FormatNotes
from monitor.read.reader import OpenCheckpoint, ReadLimits
from monitor.read.unit import Claim, DirectoryListing


class ShardedReader:
    """The reader of groups of safetensors or torch.save shards."""

    name: ClassVar[str] = "sharded"
    marks: ClassVar[tuple[str, ...]] = ("*.index.json", "*.index.*.json")
    notes: ClassVar[FormatNotes] = FormatNotes(
        files="`NAME-00001-of-0000N.safetensors`, `.bin` and `NAME.safetensors.index.json`",
        written_by="`save_pretrained` of large models",
        optimizer_state="none",
        whole="the index (written last) parses, and every file that it names is whole",
        not_yet="no index, a file that is not there",
        never="an index that disagrees with its shards or points outside the directory",
        step="that of the first shard that states one, else the number in the directory's name",
        safety="as `safetensors` or `torch_zip`; a name in the index is followed only within the directory",
        limits=("an index of at most 64 MiB, at most 10 000 shards",),
        tested_in="tests/monitor/read/formats/test_sharded.py",
        tested_with="transformers",
    )

    @classmethod
    def claim(cls, directory: DirectoryListing) -> Sequence[Claim]:
        """Claim each group of shards, from the first shard on."""
        return [Claim(reader=cls.name, index=group.index, files=group.files) for group in shard_groups(directory.files)]

    def open(self, unit: BoundedUnit, limits: ReadLimits) -> OpenCheckpoint:
        """Open the shards that the index names."""
        return merge(open_shards(unit, unit.claim.index, limits), limits)
