"""A pickle of estimators or arrays, as scikit-learn models are saved: by joblib, compressed or not, or by pickle.

The pickle is interpreted inertly, where it lies; nothing of scikit-learn, joblib or NumPy's unpickling is used and
nothing that the file names is run. It is whole when the pickle stops where the file ends.
"""

from __future__ import annotations

from typing import ClassVar

from monitor.read.access.compressed_sources import CompressedSource, is_compressed, unpacked_head
from monitor.read.access.sources import ByteSource, FileSource
from monitor.read.arrays.array_checkpoint import ArrayCheckpoint, array_checkpoint
from monitor.read.arrays.found_arrays import FoundArray, array_of
from monitor.read.bounded_file import BoundedFile
from monitor.read.models.estimators import walk_estimators
from monitor.read.notes import FormatNotes
from monitor.read.pickles.file_pickle import parse_at
from monitor.read.pytorch.torch_storages import begins_legacy
from monitor.read.reader import CorruptError, IncompleteError, ReadLimits, UnsupportedError

_LZ4_MAGIC = b"\x04\x22\x4d\x18"
_PROTOCOLS = frozenset(range(2, 6))


class PickleReader:
    """The reader of `.joblib`, `.pkl` and `.pickle` files."""

    name: ClassVar[str] = "pickle"
    suffixes: ClassVar[tuple[str, ...]] = (".joblib", ".pkl", ".pickle", ".sav", ".z", ".gz", ".bz2", ".xz", ".lzma")
    notes: ClassVar[FormatNotes] = FormatNotes(
        files="`.joblib` `.pkl` `.pickle`, also compressed (zlib, gzip, bzip2, xz, lzma)",
        written_by="`joblib.dump`, `pickle.dump` of scikit-learn estimators or of arrays; protocols 0 to 5",
        optimizer_state="of `MLPClassifier` and `MLPRegressor`",
        whole="the pickle stops where the file ends; a compressed stream is whole and checked",
        not_yet="the pickle or the stream ends early",
        never="bytes after the pickle, a whole stream of half a pickle",
        step="the optimizer's of a network, the number of weight updates where `partial_fit` trained",
        safety=(
            "the pickle is walked opcode by opcode into inert nodes; nothing that it names is imported, "
            "called or hashed; a compressed stream is unpacked in bounded pieces, and refused where it grows "
            "out of proportion"
        ),
        limits=(
            "lz4 is not read",
            "several pickles in one file are not read",
        ),
        tested_in="tests/monitor/read/formats/test_pickle.py",
        tested_with="joblib",
    )

    @classmethod
    def sniff(cls, head: bytes, path: str) -> bool:
        """Say whether a pickle of protocol 2 or later begins, as it is or within a compressed stream."""
        if is_compressed(head):
            inner = unpacked_head(head)
            if not inner:  # a bzip2 block begins to unpack only when all of it is there
                return path.lower().endswith(cls.suffixes)
            return _begins_pickle(inner) and not begins_legacy(inner)
        return head.startswith(_LZ4_MAGIC) or (_begins_pickle(head) and not begins_legacy(head))

    def open(self, file: BoundedFile, limits: ReadLimits) -> ArrayCheckpoint:
        """Interpret the pickle and name what it holds; values stay where they are."""
        head = file.head(16)
        if head.startswith(_LZ4_MAGIC):
            raise UnsupportedError("the file is packed with lz4, which is not read; let joblib use zlib or gzip")
        is_stream = is_compressed(head)
        if not is_stream and len(head) < 2:
            raise IncompleteError("the file has hardly begun")
        source: ByteSource = CompressedSource(file, limits) if is_stream else FileSource(file, 0, file.size_bytes)
        try:
            result = parse_at(source, 0, limits)
        except IncompleteError as error:
            if is_stream:  # the stream is whole: what the pickle lacks will not come
                raise CorruptError(f"the compressed stream is whole, but {error}") from None
            raise
        if result.n_bytes != source.n_bytes:
            raise CorruptError(
                f"{source.n_bytes - result.n_bytes} bytes follow the pickle; several pickles in one file are not read"
            )

        def find(value: object) -> FoundArray | list[object] | None:
            return array_of(value, source, limits.dimensions_max)

        estimated = walk_estimators(result.root, find, limits)
        if not estimated.arrays and not estimated.n_estimators:
            raise UnsupportedError("the pickle holds no arrays of numbers and no fitted estimator")
        return array_checkpoint(estimated, limits, is_stream=is_stream)


def _begins_pickle(head: bytes) -> bool:
    """Say so of bytes that begin like a pickle, and not like a safetensors file whose header is 640 bytes long."""
    return head[:1] == b"\x80" and (len(head) < 2 or head[1] in _PROTOCOLS) and head[6:9] != b"\0\0{"
