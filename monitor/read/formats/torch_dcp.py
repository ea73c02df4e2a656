"""Directories of torch.distributed.checkpoint: of torchtitan, of Lightning when it shards, of Megatron (torch_dist).

Only which files belong together, and when they are whole, is decided here; monitor/read/pytorch/dcp.py reads them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from monitor.read.bounded_unit import BoundedUnit
from monitor.read.notes import FormatNotes
from monitor.read.pytorch.dcp import METADATA, is_dcp_file, open_dcp
from monitor.read.reader import OpenCheckpoint, ReadLimits
from monitor.read.unit import Claim, DirectoryListing

_BESIDE = ("meta.pt", "common.pt")  # what Lightning and Megatron save without slicing it
_DESCRIPTION = "metadata.json"  # written last by Megatron


class TorchDcpReader:
    """The reader of directories with `.metadata` and `__R_K.distcp` files."""

    name: ClassVar[str] = "torch_dcp"
    marks: ClassVar[tuple[str, ...]] = (METADATA, "__*.metadata", "*.distcp", *_BESIDE, _DESCRIPTION)
    notes: ClassVar[FormatNotes] = FormatNotes(
        files="directories with `.metadata` (or `__R.metadata`) and `__R_K.distcp`",
        written_by=(
            "`torch.distributed.checkpoint`, torchtitan, Lightning when it shards (`X.ckpt/` with `meta.pt`),"
            " Megatron's torch_dist (`iter_0000100/` with `metadata.json`), the FSDP directories of "
            "Accelerate"
        ),
        optimizer_state="by parameter name",
        whole=(
            "the metadata (written last) parses, every file is there and as long as the metadata says, and "
            "the slices cover every tensor once"
        ),
        not_yet="no metadata, or not that of every rank; a file that is missing or too short; a slice of zeros",
        never=(
            "slices that overlap, leave gaps or hold something else than the metadata says; a file outside "
            "the directory; slices that were compressed or written as safetensors"
        ),
        step="as in `torch_zip`; torchtitan's `train_state` is looked into",
        safety=(
            "the pickle is walked opcode by opcode into inert nodes; nothing that it names is imported, "
            "called or hashed, also that of `.metadata`; files are followed only within the directory"
        ),
        limits=("objects that are no tensors are looked into up to 64 MiB each",),
        tested_in="tests/monitor/read/formats/test_torch_dcp.py",
        tested_with="torch",
    )

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
