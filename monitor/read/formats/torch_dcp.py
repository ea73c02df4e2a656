"""Directories of torch.distributed.checkpoint: of torchtitan, of Lightning when it shards, of Megatron (torch_dist).

Only which files belong together, and when they are whole, is decided here; monitor/read/pytorch/dcp.py reads them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from monitor.read.bounded_unit import BoundedUnit
from monitor.read.pytorch.dcp import METADATA, is_dcp_file, open_dcp
from monitor.read.reader import OpenCheckpoint, ReadLimits
from monitor.read.unit import Claim, DirectoryListing

_BESIDE = ("meta.pt", "common.pt")  # what Lightning and Megatron save without slicing it
_DESCRIPTION = "metadata.json"  # written last by Megatron


class TorchDcpReader:
    """The reader of directories with `.metadata` and `__R_K.distcp` files."""

    name: ClassVar[str] = "torch_dcp"
    marks: ClassVar[tuple[str, ...]] = (METADATA, "__*.metadata", "*.distcp", *_BESIDE, _DESCRIPTION)

    @classmethod
    def claim(cls, directory: DirectoryListing) -> Sequence[Claim]:
        """Claim a directory with slices in it, or with what one rank says of its slices."""
        ours = {name for name in directory.files if is_dcp_file(name)}
        if ours <= {METADATA}:  # other tools have a file of this name
            return ()
        return (Claim(reader=cls.name, files=frozenset(ours | (directory.files & {*_BESIDE, _DESCRIPTION}))),)

    def open(self, unit: BoundedUnit, limits: ReadLimits) -> OpenCheckpoint:
        """Read the metadata and the small objects, and check that every slice is there."""
        return open_dcp(unit, limits, [name for name in _BESIDE if name in unit])
