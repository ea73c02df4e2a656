"""An ONNX model opened as a checkpoint, whether its values lie in one file or beside it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from math import isfinite, prod

import numpy as np

from monitor.read.access.byte_cursor import ByteCursor
from monitor.read.access.protobuf_wire import signed, varint
from monitor.read.access.sources import ByteSource, FileSource, MemorySource
from monitor.read.access.strided import ChunkReader, Layout, contiguous_strides
from monitor.read.bounded_file import BoundedFile
from monitor.read.dtypes import DTYPES
from monitor.read.models.onnx_model import External, Initializer, read_model
from monitor.read.naming import EPOCH_KEYS, STEP_KEYS, UniqueNames, as_epoch, as_step, kind_of_flat_name, printable
from monitor.read.reader import Chunk, CorruptError, IncompleteError, ReadLimits, TensorSpec

VARINT_BYTES_MAX = 16 * 2**20
_NUMBER_CHARACTERS_MAX = 40
_SHOWN = 80

OpenExternal = Callable[[str], BoundedFile | None]


@dataclass(frozen=True, slots=True)
class _Varints:
    """The key of a spec whose values are written as numbers of varying length."""

    offset: int
    n_bytes: int


@dataclass(frozen=True, slots=True)
class OnnxCheckpoint:
    """An open ONNX model."""

    step: int | None
    epoch: float | None
    scalars: Mapping[str, float]
    tensors: tuple[TensorSpec, ...]
    file: BoundedFile
    reader: ChunkReader

    def chunks(self, spec: TensorSpec) -> Iterator[Chunk]:
        """Yield the values of one initializer in order."""
        if spec.problem is not None or spec.key is None:
            return iter(())
        dtype = DTYPES[spec.dtype]
        source: ByteSource
        if isinstance(spec.key, _Varints):
            raw = self.file.read(spec.key.offset, spec.key.n_bytes)
            source = MemorySource(_decoded(raw, dtype, spec.n_elements))
        else:
            assert isinstance(spec.key, FileSource)
            source = spec.key
        layout = Layout(dtype=dtype, shape=spec.shape, strides=contiguous_strides(spec.shape))
        return self.reader.chunks(source, layout)


def open_onnx(file: BoundedFile, limits: ReadLimits, open_external: OpenExternal) -> OnnxCheckpoint:
    """Read the structure of a model; `open_external` gives a file beside it, None where that one may not be read."""
    if file.size_bytes == 0:
        raise IncompleteError("the file is empty")
    model = read_model(ByteCursor(file, taken_bytes_max=limits.header_bytes_max), limits)
    names = UniqueNames(limits.name_characters_max)
    numbers = _numbers(model.metadata)
    opened: dict[str, BoundedFile | None] = {}
    specs = []
    for initializer in model.initializers:
        name = names.claim(initializer.name)
        key, problem = _key(initializer, file, opened, open_external)
        specs.append(
            TensorSpec(
                name=name,
                kind=kind_of_flat_name(name, initializer.dtype, len(initializer.shape)),
                dtype=initializer.dtype,
                shape=initializer.shape,
                n_elements=prod(initializer.shape),
                key=key,
                problem=problem,
                content=None if problem is None else _content(initializer, file, opened, open_external),
            )
        )
    return OnnxCheckpoint(
        step=next((step for key in STEP_KEYS if (step := as_step(numbers.get(key))) is not None), None),
        epoch=next((epoch for key in EPOCH_KEYS if (epoch := as_epoch(numbers.get(key))) is not None), None),
        scalars={printable(key, limits.name_characters_max): float(number) for key, number in numbers.items()},
        tensors=tuple(specs),
        file=file,
        reader=ChunkReader(limits.chunk_bytes_max),
    )


def _key(
    initializer: Initializer, file: BoundedFile, opened: dict[str, BoundedFile | None], open_external: OpenExternal
) -> tuple[object, str | None]:
    """Return where the values of an initializer are, and why they are not read."""
    if initializer.problem is not None or prod(initializer.shape) == 0:
        return None, initializer.problem
    n_bytes = prod(initializer.shape) * DTYPES[initializer.dtype].itemsize
    shown = printable(initializer.name, _SHOWN)
    if initializer.external is not None:
        return _external_key(initializer.external, n_bytes, shown, opened, open_external)
    if initializer.varints:
        if initializer.n_bytes > VARINT_BYTES_MAX:
            return None, "so many values written as numbers of varying length are not read"
        return _Varints(initializer.offset, initializer.n_bytes), None
    if initializer.n_bytes != n_bytes:
        raise CorruptError(f"'{shown}' has {initializer.n_bytes} bytes, its shape and dtype need {n_bytes}")
    return FileSource(file, initializer.offset, n_bytes), None


def _content(
    initializer: Initializer, file: BoundedFile, opened: dict[str, BoundedFile | None], open_external: OpenExternal
) -> FileSource | None:
    """Return where the bytes of an initializer lie that are not read as values, None where that is not said."""
    if not initializer.is_raw:
        return None
    external = initializer.external
    if external is None:
        return FileSource(file, initializer.offset, initializer.n_bytes)
    if external.location not in opened:
        opened[external.location] = open_external(external.location)
    other = opened[external.location]
    if other is None or external.n_bytes is None:
        return None
    if external.offset + external.n_bytes > other.size_bytes:
        raise IncompleteError(f"'{printable(external.location, _SHOWN)}' is shorter than the model says")
    return FileSource(other, external.offset, external.n_bytes)


def _external_key(
    external: External, n_bytes: int, shown: str, opened: dict[str, BoundedFile | None], open_external: OpenExternal
) -> tuple[object, str | None]:
    if external.location not in opened:
        opened[external.location] = open_external(external.location)
    other = opened[external.location]
    if other is None:
        return (
            None,
            f"its values are in '{printable(external.location, _SHOWN)}', a name that is not known to go with it",
        )
    if external.n_bytes is not None and external.n_bytes != n_bytes:
        raise CorruptError(f"'{shown}' has {external.n_bytes} bytes, its shape and dtype need {n_bytes}")
    if external.offset + n_bytes > other.size_bytes:
        raise IncompleteError(
            f"'{shown}' needs {external.offset + n_bytes} bytes of '{printable(external.location, _SHOWN)}', "
            f"which has {other.size_bytes}"
        )
    return FileSource(other, external.offset, n_bytes), None


def _decoded(raw: bytes, dtype: np.dtype[np.generic], n_elements: int) -> bytes:
    """Return values of varying length as values of their dtype; float16 and its like are written as their bits."""
    if sum(byte < 0x80 for byte in raw) != n_elements:
        raise CorruptError(f"an initializer has not the {n_elements} values that its shape asks for")
    values, at, bits = [], 0, dtype.itemsize * 8
    while at < len(raw):
        value, at = varint(raw, at)
        values.append(signed(value) & ((1 << bits) - 1))
    return np.array(values, np.uint64).astype(f"<u{dtype.itemsize}").tobytes()


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
