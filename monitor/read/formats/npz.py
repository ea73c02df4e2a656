"""npz: a zip of npy members, as numpy.savez and numpy.savez_compressed write it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from math import isfinite, prod
from typing import ClassVar

from monitor.read.access.sources import PASSES_MAX, ByteSource
from monitor.read.access.strided import ChunkReader, Layout
from monitor.read.access.zip_directory import STORED, ZipDirectory, ZipMember, read_zip_directory
from monitor.read.arrays.npy_header import NpyHeader, array_source_problem, read_npy_header
from monitor.read.bounded_file import BoundedFile
from monitor.read.naming import EPOCH_KEYS, STEP_KEYS, UniqueNames, as_epoch, as_step, kind_of_flat_name, printable
from monitor.read.notes import FormatNotes
from monitor.read.reader import (
    Chunk,
    CorruptError,
    IncompleteError,
    LimitError,
    ReadError,
    ReadLimits,
    TensorSpec,
    UnsupportedError,
)

_SUFFIX = ".npy"
_SHOWN = 80


@dataclass(frozen=True, slots=True)
class _Values:
    """The key of a spec: the member, and the layout of its values counted from the beginning of the member."""

    member: ZipMember
    layout: Layout
    data_offset: int


@dataclass(frozen=True, slots=True)
class _Shifted:
    """A source without its first bytes."""

    source: ByteSource
    offset: int

    @property
    def n_bytes(self) -> int:
        return self.source.n_bytes - self.offset

    def read_into(self, offset: int, buffer: memoryview) -> None:
        self.source.read_into(self.offset + offset, buffer)


@dataclass(frozen=True, slots=True)
class NpzCheckpoint:
    """An open npz file."""

    step: int | None
    epoch: float | None
    scalars: Mapping[str, float]
    tensors: tuple[TensorSpec, ...]
    directory: ZipDirectory
    reader: ChunkReader

    def chunks(self, spec: TensorSpec) -> Iterator[Chunk]:
        """Yield the values of one array in C order of its shape."""
        if not isinstance(spec.key, _Values) or spec.problem is not None:
            return iter(())
        source = _Shifted(self.directory.source(spec.key.member), spec.key.data_offset)
        return self.reader.chunks(source, spec.key.layout)


class NpzReader:
    """The reader of `.npz` files."""

    name: ClassVar[str] = "npz"
    suffixes: ClassVar[tuple[str, ...]] = (".npz",)
    notes: ClassVar[FormatNotes] = FormatNotes(
        files="`.npz`",
        written_by="`numpy.savez`, `numpy.savez_compressed`",
        optimizer_state="by name, where it is stored",
        whole="the zip is whole and every member has exactly the bytes its header asks for",
        not_yet="no end record",
        never="a member that is too short or too long, duplicates",
        step="an array without dimensions of a step's name",
        safety=(
            "members are found by the archive's directory and read by offset; nothing is extracted; headers "
            "are parsed as literals, and arrays of Python objects are never unpickled"
        ),
        limits=("a large array that is deflated and in Fortran order is a `problem`",),
        tested_in="tests/monitor/read/formats/test_npz_reader.py",
        tested_with="numpy",
    )

    @classmethod
    def sniff(cls, head: bytes, path: str) -> bool:
        """Say whether a zip begins whose first member is an npy, or that has the name of one."""
        if not head.startswith(b"PK\x03\x04"):
            return False
        first_name = head[30 : 30 + int.from_bytes(head[26:28], "little")]
        is_skops = first_name[:-4].isdigit() and len(first_name) > 12  # its arrays are named by number
        return (first_name.endswith(b".npy") and not is_skops) or path.lower().endswith(cls.suffixes)

    def open(self, file: BoundedFile, limits: ReadLimits) -> NpzCheckpoint:
        """Read the directory and the header of every member."""
        directory = read_zip_directory(file, limits)
        members = [member for name, member in directory.members.items() if name.endswith(_SUFFIX)]
        if not members and directory.members:
            raise UnsupportedError("the file is a zip archive without npy members")
        if len(members) > limits.tensors_max:
            raise LimitError(f"the archive has {len(members)} arrays, the limit is {limits.tensors_max}")
        names = UniqueNames(limits.name_characters_max)
        reader = ChunkReader(limits.chunk_bytes_max)
        specs: list[TensorSpec] = []
        numbers: dict[str, int | float] = {}
        for member in members:
            source = directory.source(member)
            try:
                header = read_npy_header(source, limits)
                array_source_problem(header, source)
            except ReadError as error:  # the archive is whole: what a member lacks will not come
                kind = CorruptError if isinstance(error, IncompleteError) else type(error)
                raise kind(f"member '{printable(member.name, _SHOWN)}': {error}") from None
            name = names.claim(member.name.removesuffix(_SUFFIX))
            specs.append(_spec(name, header, member, limits))
            if header.shape == () and len(numbers) < limits.scalars_max:
                number = _number(header, source, reader)
                if number is not None:
                    numbers[name] = number
        return NpzCheckpoint(
            step=next((step for key in STEP_KEYS if (step := as_step(numbers.get(key))) is not None), None),
            epoch=next((epoch for key in EPOCH_KEYS if (epoch := as_epoch(numbers.get(key))) is not None), None),
            scalars={name: float(number) for name, number in numbers.items()},
            tensors=tuple(specs),
            directory=directory,
            reader=reader,
        )


def _spec(name: str, header: NpyHeader, member: ZipMember, limits: ReadLimits) -> TensorSpec:
    spec = TensorSpec(
        name=name,
        kind=kind_of_flat_name(name, header.dtype, len(header.shape)),
        dtype=header.dtype,
        shape=header.shape,
        n_elements=prod(header.shape),
        key=None if header.layout is None else _Values(member, header.layout, header.data_offset),
        problem=header.problem,
    )
    layout = header.layout
    passes_bytes_max = limits.chunk_bytes_max * (PASSES_MAX - 1)
    streams_badly = layout is not None and not layout.is_contiguous and member.method != STORED
    if streams_badly and member.n_bytes > passes_bytes_max:
        return replace(spec, problem="a large deflated array in Fortran order is not read; save it in C order")
    return spec


def _number(header: NpyHeader, source: ByteSource, reader: ChunkReader) -> int | float | None:
    """Return the value of an array of no dimensions, None where it is no finite real number."""
    if header.layout is None or header.layout.dtype.kind not in "biuf":
        return None
    shifted = _Shifted(source, header.data_offset)
    number = next(reader.chunks(shifted, header.layout)).values[0].item()
    assert isinstance(number, int | float)
    return number if isfinite(number) else None
