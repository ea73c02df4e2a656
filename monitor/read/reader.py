"""The contract of every format: bytes on disk to named tensors, nothing executed.

A reader is a small class: it says whether a file is its own (`sniff`), and opens it (`open`) into an
OpenCheckpoint whose tensors are delivered in bounded chunks. Errors are ReadErrors: each has a ProblemKind.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Protocol

import numpy as np
import numpy.typing as npt

from storage.records import ProblemKind, TensorKind

if TYPE_CHECKING:
    from monitor.read.access.sources import ByteSource
    from monitor.read.bounded_file import BoundedFile

SNIFF_BYTES_MAX = 4096


class ReadError(Exception):
    """A checkpoint cannot be read; subclasses fix the kind.

    ReadError
    ├── IncompleteError      still being written
    ├── VanishedError        deleted meanwhile
    ├── ChangedError         rewritten meanwhile
    ├── CorruptError         not what the format allows
    ├── AmbiguousError       could be read in two ways
    ├── UnsupportedError     valid, but not something we read
    ├── LimitError           over a configured limit
    ├── UnsafeReferenceError points outside its directory
    ├── NotRegularError      a pipe, device or socket
    ├── PermissionDeniedError
    └── FileIOError
    """

    kind: ClassVar[ProblemKind] = ProblemKind.CORRUPT


class IncompleteError(ReadError):
    """The structure is not whole yet; may become whole, so it is tried again."""

    kind = ProblemKind.INCOMPLETE


class VanishedError(ReadError):
    """The file was deleted while we looked at it."""

    kind = ProblemKind.VANISHED


class ChangedError(ReadError):
    """The file was written while we read it; what was read is thrown away."""

    kind = ProblemKind.CHANGED


class CorruptError(ReadError):
    """The bytes break a rule of the format."""

    kind = ProblemKind.CORRUPT


class AmbiguousError(ReadError):
    """Two honest readers could see different contents."""

    kind = ProblemKind.AMBIGUOUS


class UnsupportedError(ReadError):
    """The file is valid or unknown, but not something ckptwatch reads."""

    kind = ProblemKind.UNSUPPORTED


class LimitError(ReadError):
    """A count, size or depth in the file is over the limit."""

    kind = ProblemKind.LIMIT


class UnsafeReferenceError(ReadError):
    """The file refers to something outside its own directory."""

    kind = ProblemKind.UNSAFE_REFERENCE


class NotRegularError(ReadError):
    """The path is not a regular file."""

    kind = ProblemKind.NOT_REGULAR


class PermissionDeniedError(ReadError):
    """The daemon's user may not read the file."""

    kind = ProblemKind.PERMISSION


class FileIOError(ReadError):
    """The operating system failed to read."""

    kind = ProblemKind.IO_ERROR


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadLimits:
    """How large what a file claims may be before it is refused; every field names its unit."""

    chunk_bytes_max: int = 16 * 2**20
    header_bytes_max: int = 100_000_000
    pickle_bytes_max: int = 256 * 2**20
    pickle_opcodes_max: int = 5_000_000
    zip_entries_max: int = 200_000
    zip_directory_bytes_max: int = 64 * 2**20
    tensors_max: int = 500_000  # what shards joined or a flax tree keep of as many fits into the worker's memory
    dimensions_max: int = 64
    name_characters_max: int = 1024
    nesting_depth_max: int = 1000
    scalars_max: int = 4096
    expanded_ratio_max: int = 100
    expanded_bytes_min: int = 256 * 2**20  # the ratio is only checked above this many expanded bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorSpec:
    """One named tensor, before its values are read.

    `dtype` uses NumPy and ml_dtypes spelling. `n_elements` is the product of `shape`. `problem` is None, or says why
    this tensor alone cannot be delivered (then it has no chunks, and the rest of the checkpoint is still measured).
    `tied_to` names an earlier tensor with the very same storage, offset, shape and strides: its chunks are not read
    again. `key` is the reader's own handle and means nothing to others. `content` gives the bytes, as they are stored,
    of a tensor with a problem whose elements are known to be there (quantised, packed), so that they can be told apart
    by their hash; None for all others.
    """

    name: str
    kind: TensorKind
    dtype: str
    shape: tuple[int, ...]
    n_elements: int
    key: object = None
    tied_to: str | None = None
    problem: str | None = None
    content: ByteSource | None = None


@dataclass(frozen=True, slots=True)
class Chunk:
    """A run of consecutive elements of one tensor, in C order of its shape.

    `values` is 1-D, at most `chunk_bytes_max` bytes, native byte order, dtype as in the spec (ml_dtypes types for
    bfloat16 and fp8), only valid until the next chunk is asked for (the buffer may be reused).
    """

    offset_elements: int
    values: npt.NDArray[np.generic]


class OpenCheckpoint(Protocol):
    """An opened checkpoint: its tensors in their own order, and their values in chunks."""

    @property
    def step(self) -> int | None:
        """Return the optimizer step that the content states, None where it states none."""

    @property
    def epoch(self) -> float | None:
        """Return the epoch that the content states, None where it states none."""

    @property
    def scalars(self) -> Mapping[str, float]:
        """Return the finite plain numbers beside the tensors by dotted path, at most `scalars_max`."""

    @property
    def tensors(self) -> Sequence[TensorSpec]:
        """Return the tensors in the checkpoint's own order; names are unique and printable."""

    def chunks(self, spec: TensorSpec) -> Iterator[Chunk]:
        """Yield the values of one tensor in order, without gaps or overlaps; nothing for an empty or failed one."""


class Reader(Protocol):
    """One format. Facts are on the class; `open` imports what it needs."""

    name: ClassVar[str]
    suffixes: ClassVar[tuple[str, ...]]

    @classmethod
    def sniff(cls, head: bytes, path: str) -> bool:
        """Say whether a file that begins with `head` (at most SNIFF_BYTES_MAX bytes) is of this format; never raise."""

    def open(self, file: BoundedFile, limits: ReadLimits) -> OpenCheckpoint:
        """Parse the structure, not the values; raise a ReadError that says what is wrong."""
