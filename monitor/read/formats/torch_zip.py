"""What torch.save writes since PyTorch 1.6: a zip of one pickle and one member a storage.

The pickle is interpreted inertly and the storages are read by offset; nothing of PyTorch is imported and nothing that
the file names is run.
"""

from __future__ import annotations

from typing import ClassVar

from monitor.read.bounded_file import BoundedFile
from monitor.read.notes import FormatNotes
from monitor.read.pytorch.torch_archive import open_archive
from monitor.read.pytorch.torch_storages import TorchCheckpoint, torch_checkpoint
from monitor.read.reader import ReadLimits


class TorchZipReader:
    """The reader of `.pt`, `.pth`, `.bin`, `.ckpt` and `.pth.tar` files in PyTorch's zip format."""

    name: ClassVar[str] = "torch_zip"
    suffixes: ClassVar[tuple[str, ...]] = (".pt", ".pth", ".bin", ".ckpt", ".tar")
    keeps_module_order: ClassVar[bool] = True
    notes: ClassVar[FormatNotes] = FormatNotes(
        files="`.pt` `.pth` `.bin` `.ckpt` `.pth.tar`",
        written_by="`torch.save` since PyTorch 1.6, PyTorch Lightning, TorchScript (its tensors only)",
        optimizer_state="inside",
        whole=(
            "the zip's end record is at the end of the file, its directory accounts for every byte, there is "
            "one `data.pkl`, and every storage it refers to is there"
        ),
        not_yet="no end record; an end record without `data.pkl` (saving failed half-way)",
        never="two `data.pkl`, overlapping or hidden members, a broken pickle",
        step=(
            "the first key of a step's name at the top, then inside the containers of trainers; a tensor of "
            "one element counts"
        ),
        safety=(
            "the pickle is walked opcode by opcode into inert nodes; nothing that it names is imported, "
            "called or hashed; members are found by the archive's directory and read by offset; nothing is "
            "extracted"
        ),
        limits=("a pickle of at most 256 MiB and five million opcodes",),
        tested_in="tests/monitor/read/formats/test_torch_zip_reader.py",
        tested_with="torch",
    )

    @classmethod
    def sniff(cls, head: bytes, path: str) -> bool:
        """Say whether a zip begins whose first member is in a folder, or that has a name of this format."""
        if not head.startswith(b"PK\x03\x04"):
            return False
        first_name = head[30 : 30 + int.from_bytes(head[26:28], "little")]
        return b"/" in first_name or path.lower().endswith(cls.suffixes)

    def open(self, file: BoundedFile, limits: ReadLimits) -> TorchCheckpoint:
        """Read the directory and the pickle, and check every tensor against its storage."""
        archive = open_archive(file, limits)
        return torch_checkpoint(archive.result, archive.storages(limits), limits)
