"""flax: the MessagePack of `flax.serialization.to_bytes`, as `.msgpack` files of flax and Hugging Face.

Own scanner; neither flax nor JAX is imported. It is whole when the one value that it holds ends where the file ends.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import isfinite, prod
from typing import ClassVar

import numpy as np

from monitor.read.access.byte_cursor import ByteCursor
from monitor.read.access.partial_sources import JoinedSource
from monitor.read.access.sources import ByteSource, FileSource
from monitor.read.access.strided import ChunkReader, Layout, contiguous_strides
from monitor.read.bounded_file import BoundedFile
from monitor.read.dtypes import DTYPES
from monitor.read.models.jax_names import model_prefix, name_and_kind
from monitor.read.models.msgpack_scan import MsgpackScanner, PackedArray
from monitor.read.naming import EPOCH_KEYS, STEP_KEYS, UniqueNames, as_epoch, as_step, printable
from monitor.read.notes import FormatNotes
from monitor.read.reader import Chunk, CorruptError, ReadLimits, TensorSpec, UnsupportedError

_CHUNKED = "__msgpack_chunked_array__"
_TEXT_CODES = frozenset({*range(0xA1, 0xC0), 0xD9})
_MAP_HEADS = {0xDE: 3, 0xDF: 5}
_SHOWN = 80

_Leaf = tuple[tuple[str, ...], str, tuple[int, ...], ByteSource]


@dataclass(frozen=True, slots=True)
class FlaxMsgpackCheckpoint:
    """An open MessagePack file of flax."""

    step: int | None
    epoch: float | None
    scalars: Mapping[str, float]
    tensors: tuple[TensorSpec, ...]
    reader: ChunkReader

    def chunks(self, spec: TensorSpec) -> Iterator[Chunk]:
        """Yield the values of one array in order."""
        if spec.problem is not None or not isinstance(spec.key, FileSource | JoinedSource):
            return iter(())
        layout = Layout(dtype=DTYPES[spec.dtype], shape=spec.shape, strides=contiguous_strides(spec.shape))
        return self.reader.chunks(spec.key, layout)


class FlaxMsgpackReader:
    """The reader of flax's `.msgpack` files."""

    name: ClassVar[str] = "flax_msgpack"
    suffixes: ClassVar[tuple[str, ...]] = (".msgpack", ".flax")
    notes: ClassVar[FormatNotes] = FormatNotes(
        files="`.msgpack`",
        written_by="`flax.serialization.to_bytes`, Hugging Face's Flax models",
        optimizer_state="by its path (`opt_state.0.nu...`)",
        whole="the one value ends where the file ends",
        not_yet="it ends early",
        never="bytes after it, duplicate keys",
        step="a number of a step's name at the top, also as an array of one element",
        safety="an own scanner with bounds on depth and counts; arrays stay in the file",
        tested_in="tests/monitor/read/formats/test_flax_msgpack.py",
        tested_with="flax",
    )

    @classmethod
    def sniff(cls, head: bytes, path: str) -> bool:
        """Say whether a map begins whose first key is a printable text."""
        if not head or not (0x81 <= head[0] <= 0x8F or head[0] in _MAP_HEADS):
            return False
        at = _MAP_HEADS.get(head[0], 1)
        if at >= len(head):
            return path.lower().endswith(cls.suffixes)
        if head[at] not in _TEXT_CODES:
            return False
        start, n = (at + 2, head[at + 1 : at + 2]) if head[at] == 0xD9 else (at + 1, bytes((head[at] - 0xA0,)))
        key = head[start : start + (n[0] if n else 0)]
        return key.decode("utf-8", "replace").isprintable()

    def open(self, file: BoundedFile, limits: ReadLimits) -> FlaxMsgpackCheckpoint:
        """Scan the whole tree; raise IncompleteError while the file ends within it."""
        cursor = ByteCursor(file, taken_bytes_max=limits.header_bytes_max)
        root = MsgpackScanner(cursor, limits).value()
        if cursor.n_left:
            raise CorruptError(f"{cursor.n_left} bytes follow the end of the tree")
        if isinstance(root, PackedArray):
            root = {"tensor": root}
        if not isinstance(root, dict):
            raise UnsupportedError("the file is MessagePack, but holds no map of arrays")
        tree = _Tree(file, limits)
        tree.walk((), root)
        inner = next((v for k in model_prefix(root, ()) if isinstance(v := root.get(k), dict)), {})
        prefix = model_prefix(root, inner)
        names = UniqueNames(limits.name_characters_max)
        return FlaxMsgpackCheckpoint(
            step=next(
                (step for key in STEP_KEYS if (step := as_step(tree.top_number(root.get(key)))) is not None), None
            ),
            epoch=next((e for key in EPOCH_KEYS if (e := as_epoch(tree.top_number(root.get(key)))) is not None), None),
            scalars=tree.scalars,
            tensors=tuple(_spec(leaf, prefix, names) for leaf in tree.leaves),
            reader=ChunkReader(limits.chunk_bytes_max),
        )


class _Tree:
    """The leaves of a tree: arrays with their paths, and numbers."""

    __slots__ = ("_file", "_limits", "leaves", "scalars")

    def __init__(self, file: BoundedFile, limits: ReadLimits) -> None:
        self._file = file
        self._limits = limits
        self.leaves: list[_Leaf] = []
        self.scalars: dict[str, float] = {}

    def walk(self, path: tuple[str, ...], value: object) -> None:
        """Take what is at `path` and below; the scanner has limited the depth."""
        if isinstance(value, dict):
            if value.get(_CHUNKED) is True:
                self._take_chunked(path, value)
                return
            for key, part in value.items():
                self.walk((*path, key), part)
        elif isinstance(value, list):
            for index, part in enumerate(value):
                self.walk((*path, str(index)), part)
        elif isinstance(value, PackedArray) and not value.is_scalar:
            self.leaves.append((path, value.dtype, value.shape, self._source(value)))
        else:
            number = self.top_number(value)
            if number is not None and isfinite(number) and len(self.scalars) < self._limits.scalars_max:
                self.scalars.setdefault(printable(".".join(path), self._limits.name_characters_max), float(number))

    def top_number(self, value: object) -> int | float | None:
        """Return a number, also one that is an array of one element; None for anything else."""
        if isinstance(value, int | float):
            return value
        if not isinstance(value, PackedArray) or prod(value.shape) != 1:
            return None
        dtype = DTYPES.get(value.dtype)
        if dtype is None or dtype.itemsize != value.n_bytes or dtype.kind not in "biuf":
            return None
        number = np.frombuffer(self._file.read(value.offset, value.n_bytes), dtype)[0].item()
        assert isinstance(number, int | float)
        return number

    def _source(self, array: PackedArray) -> FileSource:
        return FileSource(self._file, array.offset, array.n_bytes)

    def _take_chunked(self, path: tuple[str, ...], value: dict[str, object]) -> None:
        """Take an array of more than a gibibyte, which flax cuts into a map of flat ones."""
        shape, chunks = value.get("shape"), value.get("chunks")
        name = printable(".".join(path), _SHOWN)
        if not isinstance(shape, dict) or not isinstance(chunks, dict):
            raise CorruptError(f"the array '{name}' is cut into chunks that are not there")
        sizes = [shape.get(str(index)) for index in range(len(shape))]
        parts = [chunks.get(str(index)) for index in range(len(chunks))]
        arrays = [part for part in parts if isinstance(part, PackedArray)]
        checked = [size for size in sizes if type(size) is int and size >= 0]
        if len(checked) != len(shape) or len(arrays) != len(chunks) or not arrays:
            raise CorruptError(f"the array '{name}' is cut into chunks that are not in order")
        if len(checked) > self._limits.dimensions_max or len({part.dtype for part in arrays}) != 1:
            raise CorruptError(f"the array '{name}' is cut into chunks that do not fit together")
        source = JoinedSource([self._source(part) for part in arrays])
        self.leaves.append((path, arrays[0].dtype, tuple(checked), source))


def _spec(leaf: _Leaf, prefix: tuple[str, ...], names: UniqueNames) -> TensorSpec:
    path, dtype_name, shape, source = leaf
    dtype = DTYPES.get(dtype_name)
    name, kind = name_and_kind(path, prefix, dtype_name, len(shape))
    shown = printable(name, _SHOWN)
    if dtype is not None and prod(shape) * dtype.itemsize != source.n_bytes:
        raise CorruptError(
            f"'{shown}' has {source.n_bytes} bytes, its shape and dtype need {prod(shape) * dtype.itemsize}"
        )
    return TensorSpec(
        name=names.claim(name, ".".join(path)),
        kind=kind,
        dtype=printable(dtype_name, 40),
        shape=shape,
        n_elements=prod(shape),
        key=source,
        problem=None if dtype is not None else f"elements of dtype {printable(dtype_name, 40)} are not read",
    )
