"""skops: a zip of npy members and a schema that says what estimator they make.

Classes that the schema names are never looked up, and an archive that is not one of skops is never tried as something
else. It is whole when the zip is, and the schema parses.
"""

from __future__ import annotations

from typing import ClassVar

from monitor.read.access.partial_sources import PartSource
from monitor.read.access.sources import ByteSource
from monitor.read.access.zip_directory import STORED, ZipDirectory, ZipMember, read_zip_directory
from monitor.read.arrays.array_checkpoint import ArrayCheckpoint, array_checkpoint
from monitor.read.arrays.found_arrays import FoundArray
from monitor.read.arrays.npy_header import NpyHeader, array_source_problem, read_npy_header
from monitor.read.arrays.numpy_records import ArrayDtype
from monitor.read.bounded_file import BoundedFile
from monitor.read.bounded_json import parse_json
from monitor.read.models.estimators import walk_estimators
from monitor.read.models.skops_schema import nodes_of
from monitor.read.naming import printable
from monitor.read.notes import FormatNotes
from monitor.read.reader import CorruptError, IncompleteError, ReadError, ReadLimits, UnsupportedError

SCHEMA_BYTES_MAX = 16 * 2**20
_SCHEMA = "schema.json"
_FIRST_NAME_DIGITS_MIN = 9  # members are named by the number of an object in the memory of the writer
_HEADER_BYTES = 128  # of an array of plain numbers; records may have more, and then are opened once
_SHOWN = 80


class SkopsReader:
    """The reader of `.skops` files."""

    name: ClassVar[str] = "skops"
    suffixes: ClassVar[tuple[str, ...]] = (".skops",)
    notes: ClassVar[FormatNotes] = FormatNotes(
        files="`.skops`",
        written_by="`skops.io.dump`",
        optimizer_state="as `pickle`",
        whole="the zip is whole and its schema parses",
        not_yet="no end record",
        never="arrays that are not there, a schema nested too deeply",
        step="as `pickle`",
        safety=(
            "members are found by the archive's directory and read by offset; nothing is extracted; classes "
            "that the schema names are never looked up"
        ),
        limits=("a schema of at most 16 MiB",),
        tested_in="tests/monitor/read/formats/test_skops.py",
        tested_with="skops",
    )

    @classmethod
    def sniff(cls, head: bytes, path: str) -> bool:
        """Say whether a zip begins whose first member has a number as its name, or is the schema."""
        if not head.startswith(b"PK\x03\x04"):
            return False
        first_name = head[30 : 30 + int.from_bytes(head[26:28], "little")]
        digits, _, suffix = first_name.partition(b".")
        if suffix in (b"npy", b"npz") and digits.isdigit() and len(digits) >= _FIRST_NAME_DIGITS_MIN:
            return True
        return first_name == _SCHEMA.encode() or path.lower().endswith(cls.suffixes)

    def open(self, file: BoundedFile, limits: ReadLimits) -> ArrayCheckpoint:
        """Read the directory, the schema and the header of every array that the schema names."""
        directory = read_zip_directory(file, limits)
        schema = directory.members.get(_SCHEMA)
        if schema is None:
            raise UnsupportedError(f"the file is a zip archive without {_SCHEMA}, so not one that skops wrote")
        arrays = _Arrays(directory, limits)
        state = parse_json(directory.read(schema, SCHEMA_BYTES_MAX), "the schema")
        estimated = walk_estimators(nodes_of(state, arrays.member), lambda _: None, limits)
        if not estimated.arrays and not estimated.n_estimators:
            raise UnsupportedError("the archive holds no arrays of numbers and no fitted estimator")
        packed = any(member.method != STORED for member in directory.members.values())
        return array_checkpoint(estimated, limits, is_stream=packed)


class _Arrays:
    """The members that hold arrays, each opened once."""

    __slots__ = ("_directory", "_known", "_limits")

    def __init__(self, directory: ZipDirectory, limits: ReadLimits) -> None:
        self._directory = directory
        self._limits = limits
        self._known: dict[str, FoundArray] = {}

    def member(self, name: str) -> FoundArray:
        """Return the array in a member; raise CorruptError where there is none."""
        known = self._known.get(name)
        if known is not None:
            return known
        member = self._directory.members.get(name)
        shown = printable(name, _SHOWN)
        if member is None:
            raise CorruptError(f"the schema names the member '{shown}', which the archive does not have")
        source = self._directory.source(member)
        try:
            header = read_npy_header(source, self._limits)
            array_source_problem(header, source)
        except ReadError as error:  # the archive is whole: what a member lacks will not come
            kind = CorruptError if isinstance(error, IncompleteError) else type(error)
            raise kind(f"member '{shown}': {error}") from None
        made = self._known[name] = _found(header, _Member(self._directory, member))
        return made


class _Member:
    """A member that is opened anew whenever it is read from its beginning, so that no packed stream is kept."""

    __slots__ = ("_directory", "_member", "_source", "n_bytes")

    def __init__(self, directory: ZipDirectory, member: ZipMember) -> None:
        self._directory = directory
        self._member = member
        self._source: ByteSource | None = None
        self.n_bytes = member.n_bytes

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill `buffer` from `offset` of the member."""
        if self._source is None or offset <= _HEADER_BYTES:
            self._source = self._directory.source(self._member)
        self._source.read_into(offset, buffer)


def _found(header: NpyHeader, source: ByteSource) -> FoundArray:
    values = PartSource(source, header.data_offset, source.n_bytes - header.data_offset)
    layout, record = header.layout, header.record
    if layout is not None:
        plain = layout.dtype.newbyteorder(">" if layout.big_endian else "<")
        dtype = ArrayDtype(item_bytes=plain.itemsize, plain=plain)
        is_fortran = not layout.is_contiguous
        return FoundArray(dtype=dtype, shape=header.shape, is_fortran=is_fortran, source=values)
    fields: tuple[tuple[str, object, int], ...] = ()
    dtype = ArrayDtype(item_bytes=record.itemsize if record is not None else 1, plain=None)
    if record is not None and record.fields is not None:
        fields = tuple((name, part[0], part[1]) for name, part in record.fields.items() if part[0].kind in "biuf")
        dtype = ArrayDtype(item_bytes=record.itemsize, plain=None, fields=fields)  # type: ignore[arg-type]
    return FoundArray(dtype=dtype, shape=header.shape, is_fortran=False, source=values)
