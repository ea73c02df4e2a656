"""npy: one array in NumPy's own format."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from math import prod
from typing import ClassVar

from monitor.read.access.sources import FileSource
from monitor.read.access.strided import ChunkReader, Layout
from monitor.read.arrays.flatten import ROOT_TENSOR_NAME
from monitor.read.arrays.npy_header import MAGIC, array_source_problem, read_npy_header
from monitor.read.bounded_file import BoundedFile
from monitor.read.naming import kind_of_flat_name
from monitor.read.notes import FormatNotes
from monitor.read.reader import Chunk, ReadLimits, TensorSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class NpyCheckpoint:
    """An open npy file: one tensor, named "tensor"."""

    tensors: tuple[TensorSpec, ...]
    source: FileSource
    reader: ChunkReader
    step: int | None = None
    epoch: float | None = None
    scalars: Mapping[str, float] = field(default_factory=dict)

    def chunks(self, spec: TensorSpec) -> Iterator[Chunk]:
        """Yield the values of the array in C order of its shape."""
        if not isinstance(spec.key, Layout):
            return iter(())
        return self.reader.chunks(self.source, spec.key)


class NpyReader:
    """The reader of `.npy` files."""

    name: ClassVar[str] = "npy"
    suffixes: ClassVar[tuple[str, ...]] = (".npy",)
    notes: ClassVar[FormatNotes] = FormatNotes(
        files="`.npy`",
        written_by="`numpy.save`: one tensor, named `tensor`",
        optimizer_state="none",
        whole="the file has exactly the bytes its header asks for",
        not_yet="fewer bytes",
        never="more bytes",
        step="none inside; the number in the file's name",
        safety="the header is parsed as a literal, and an array of Python objects is never unpickled",
        tested_in="tests/monitor/read/formats/test_npy_reader.py",
        tested_with="numpy",
    )

    @classmethod
    def sniff(cls, head: bytes, path: str) -> bool:  # noqa: ARG003 - the contract gives both
        """Say whether the file begins with NumPy's magic."""
        return head.startswith(MAGIC)

    def open(self, file: BoundedFile, limits: ReadLimits) -> NpyCheckpoint:
        """Read the header; raise IncompleteError while the file is shorter than the header says."""
        whole = FileSource(file, 0, file.size_bytes)
        header = read_npy_header(whole, limits)
        array_source_problem(header, whole)
        spec = TensorSpec(
            name=ROOT_TENSOR_NAME,
            kind=kind_of_flat_name(ROOT_TENSOR_NAME, header.dtype, len(header.shape)),
            dtype=header.dtype,
            shape=header.shape,
            n_elements=prod(header.shape),
            key=header.layout,
            problem=header.problem,
        )
        values = FileSource(file, header.data_offset, file.size_bytes - header.data_offset)
        return NpyCheckpoint(tensors=(spec,), source=values, reader=ChunkReader(limits.chunk_bytes_max))
