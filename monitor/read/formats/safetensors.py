"""safetensors: a length, a JSON header, and tensors without a gap up to the end of the file.

The header is held to every rule of the format; a file that breaks one is refused, never guessed at.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import isfinite, prod
from typing import ClassVar

from monitor.read.access.sources import FileSource
from monitor.read.access.strided import ChunkReader, Layout, contiguous_strides
from monitor.read.bounded_file import BoundedFile
from monitor.read.bounded_json import parse_json
from monitor.read.dtypes import DTYPES
from monitor.read.naming import EPOCH_KEYS, STEP_KEYS, UniqueNames, as_epoch, as_step, kind_of_flat_name, printable
from monitor.read.notes import FormatNotes
from monitor.read.reader import Chunk, CorruptError, IncompleteError, LimitError, ReadLimits, TensorSpec

_NAMES = {
    **{"BOOL": "bool", "U8": "uint8", "I8": "int8", "U16": "uint16", "I16": "int16", "U32": "uint32", "I32": "int32"},
    **{"U64": "uint64", "I64": "int64", "F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64"},
    **{"C64": "complex64", "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2", "F8_E8M0": "float8_e8m0fnu"},
    **{"F8_E4M3FNUZ": "float8_e4m3fnuz", "F8_E5M2FNUZ": "float8_e5m2fnuz"},
}
_PACKED_BITS = {"F4": 4, "F6_E2M3": 6, "F6_E3M2": 6}
_LENGTH_BYTES = 8
_METADATA = "__metadata__"
_NUMBER_CHARACTERS_MAX = 40
_SHOWN = 80


@dataclass(frozen=True, slots=True)
class _Entry:
    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int
    problem: str | None


@dataclass(frozen=True, slots=True)
class SafetensorsCheckpoint:
    """An open safetensors file."""

    step: int | None
    epoch: float | None
    scalars: Mapping[str, float]
    tensors: tuple[TensorSpec, ...]
    file: BoundedFile
    reader: ChunkReader

    def chunks(self, spec: TensorSpec) -> Iterator[Chunk]:
        """Yield the values of one tensor in order."""
        if spec.problem is not None or spec.n_elements == 0:
            return iter(())
        offset = spec.key
        assert isinstance(offset, int)
        dtype = DTYPES[spec.dtype]
        layout = Layout(dtype=dtype, shape=spec.shape, strides=contiguous_strides(spec.shape))
        return self.reader.chunks(FileSource(self.file, offset, spec.n_elements * dtype.itemsize), layout)


class SafetensorsReader:
    """The reader of `.safetensors` files."""

    name: ClassVar[str] = "safetensors"
    suffixes: ClassVar[tuple[str, ...]] = (".safetensors",)
    notes: ClassVar[FormatNotes] = FormatNotes(
        files="`.safetensors`",
        written_by="safetensors, Hugging Face `save_pretrained`",
        optimizer_state="by name, where it is stored",
        whole="the header parses and the tensors end exactly at the end of the file",
        not_yet="the file is shorter than header and tensors say; the length is still zero",
        never="bytes after the last tensor, gaps, overlaps, duplicate names",
        step="a number of a step's name in `__metadata__`",
        safety=(
            "the header is JSON of at most 100 MB, parsed under a bound of its cost, and every place in it is checked"
        ),
        limits=("elements packed within bytes (F4, F6) are hashed, not measured",),
        tested_in="tests/monitor/read/formats/test_safetensors_reader.py",
        tested_with="safetensors",
    )

    @classmethod
    def sniff(cls, head: bytes, path: str) -> bool:  # noqa: ARG003 - the contract gives both
        """Say whether a header length and the brace that begins the header are there."""
        return len(head) > _LENGTH_BYTES and head[6:9] == b"\0\0{"

    def open(self, file: BoundedFile, limits: ReadLimits) -> SafetensorsCheckpoint:
        """Read and check the header; raise IncompleteError while the file is shorter than the header says."""
        if file.size_bytes < _LENGTH_BYTES:
            raise IncompleteError(f"the file has {file.size_bytes} bytes; a safetensors file begins with 8")
        n_header = int.from_bytes(file.read(0, _LENGTH_BYTES), "little")
        if n_header == 0:
            raise IncompleteError("the header length is still zero; some writers make room before they write")
        if n_header > limits.header_bytes_max:
            raise LimitError(f"the header claims {n_header} bytes, the limit is {limits.header_bytes_max}")
        data_start = _LENGTH_BYTES + n_header
        if data_start > file.size_bytes:
            raise IncompleteError(f"the header needs {data_start} bytes, the file has {file.size_bytes}")
        header = _parse_header(file.read(_LENGTH_BYTES, n_header))
        metadata = _metadata(header.pop(_METADATA, {}))
        if len(header) > limits.tensors_max:
            raise LimitError(f"the header names {len(header)} tensors, the limit is {limits.tensors_max}")
        entries = sorted(
            (_entry(name, value, limits) for name, value in header.items()), key=lambda e: (e.begin, e.end)
        )
        _check_extents(entries, data_start, file.size_bytes)
        numbers = _numbers(metadata)
        names = UniqueNames(limits.name_characters_max)
        scalars: dict[str, float] = {}
        for key, number in numbers.items():
            if len(scalars) < limits.scalars_max:
                scalars[printable(key, limits.name_characters_max)] = float(number)
        return SafetensorsCheckpoint(
            step=next((step for key in STEP_KEYS if (step := as_step(numbers.get(key))) is not None), None),
            epoch=next((epoch for key in EPOCH_KEYS if (epoch := as_epoch(numbers.get(key))) is not None), None),
            scalars=scalars,
            tensors=tuple(_spec(entry, names, data_start, file) for entry in entries),
            file=file,
            reader=ChunkReader(limits.chunk_bytes_max),
        )


def _parse_header(raw: bytes) -> dict[str, object]:
    if raw[:1] != b"{":
        raise CorruptError("the header does not begin with a brace")
    header = parse_json(raw, "the header", objects=_without_duplicates, too_deep=CorruptError)
    if not isinstance(header, dict):
        raise CorruptError("the header is no JSON object")
    return header


def _without_duplicates(pairs: list[tuple[str, object]]) -> dict[str, object]:
    made = dict(pairs)
    if len(made) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise CorruptError(f"the header has two entries named '{printable(key, _SHOWN)}'")
            seen.add(key)
    return made


def _metadata(value: object) -> dict[str, str]:
    if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
        raise CorruptError("__metadata__ is not a map of texts")
    return value


def _numbers(metadata: Mapping[str, str]) -> dict[str, int | float]:
    """Return the entries of the metadata that are finite numbers."""
    numbers: dict[str, int | float] = {}
    for key, text in metadata.items():
        if len(text) > _NUMBER_CHARACTERS_MAX:
            continue
        try:
            number: int | float = int(text) if text.lstrip("+-").isdecimal() else float(text)
            if isfinite(number):
                numbers[key] = number
        except (ValueError, OverflowError):
            continue
    return numbers


def _entry(name: str, value: object, limits: ReadLimits) -> _Entry:
    shown = printable(name, _SHOWN)
    if not isinstance(value, dict) or value.keys() != {"dtype", "shape", "data_offsets"}:
        raise CorruptError(f"the entry of '{shown}' does not consist of dtype, shape and data_offsets")
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(shape, list) or not all(type(size) is int and size >= 0 for size in shape):
        raise CorruptError(f"the shape of '{shown}' is not a list of sizes")
    if len(shape) > limits.dimensions_max:
        raise LimitError(f"'{shown}' has {len(shape)} dimensions, the limit is {limits.dimensions_max}")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(type(o) is int and o >= 0 for o in offsets):
        raise CorruptError(f"the data_offsets of '{shown}' are not two places")
    begin, end = offsets
    known = _NAMES.get(dtype) if isinstance(dtype, str) else None
    bits = DTYPES[known].itemsize * 8 if known else _PACKED_BITS.get(dtype) if isinstance(dtype, str) else None
    if bits is None:
        raise CorruptError(f"'{shown}' has the unknown dtype '{printable(str(dtype), _SHOWN)}'")
    total_bits = prod(shape) * bits
    if total_bits % 8 or total_bits // 8 != end - begin:
        raise CorruptError(f"'{shown}' has {end - begin} bytes, its shape and dtype need {(total_bits + 7) // 8}")
    problem = None if known else f"elements of dtype {dtype} are packed within bytes; hashed, not measured"
    return _Entry(name, known or dtype.lower(), tuple(shape), begin, end, problem)


def _check_extents(entries: list[_Entry], data_start: int, size_bytes: int) -> None:
    """Demand that the tensors, in order of place, fill the file from the header to the end."""
    place = 0
    for entry in entries:
        if entry.begin != place:
            what = (
                "overlaps the tensor before" if entry.begin < place else f"leaves a gap of {entry.begin - place} bytes"
            )
            raise CorruptError(f"'{printable(entry.name, _SHOWN)}' {what}")
        place = entry.end
    if data_start + place > size_bytes:
        raise IncompleteError(f"the tensors need {data_start + place} bytes, the file has {size_bytes}")
    if data_start + place < size_bytes:
        raise CorruptError(f"{size_bytes - data_start - place} bytes follow the last tensor")


def _spec(entry: _Entry, names: UniqueNames, data_start: int, file: BoundedFile) -> TensorSpec:
    name = names.claim(entry.name)
    return TensorSpec(
        name=name,
        kind=kind_of_flat_name(name, entry.dtype, len(entry.shape)),
        dtype=entry.dtype,
        shape=entry.shape,
        n_elements=prod(entry.shape),
        key=data_start + entry.begin,
        problem=entry.problem,
        content=None if entry.problem is None else FileSource(file, data_start + entry.begin, entry.end - entry.begin),
    )
