"""A strict reader of zip directories: which members there are and where their bytes lie.

Whatever two honest readers could see differently is refused. Member names are only looked up, never used as paths,
and checksums are not relied upon, since PyTorch can write archives without them. Nothing is ever extracted.
"""

from __future__ import annotations

import stat
import struct
from dataclasses import dataclass

from monitor.read.access.sources import ByteSource, DeflatedSource, FileSource, PositionedFile
from monitor.read.naming import printable
from monitor.read.reader import (
    AmbiguousError,
    CorruptError,
    IncompleteError,
    LimitError,
    ReadError,
    ReadLimits,
    UnsupportedError,
)

STORED, DEFLATED = 0, 8

_LOCAL = struct.Struct("<4s5H3I2H")
_ENTRY = struct.Struct("<4sH2x2H8x2I4H2x2I")  # without version, time, date, checksum and internal attributes
_END = struct.Struct("<4s4H2IH")
_END64_LOCATOR = struct.Struct("<4sIQI")
_END64 = struct.Struct("<4sQ2H2I4Q")
_LOCAL_MAGIC, _ENTRY_MAGIC, _END_MAGIC = b"PK\x03\x04", b"PK\x01\x02", b"PK\x05\x06"
_LOCATOR_MAGIC, _END64_MAGIC = b"PK\x06\x07", b"PK\x06\x06"
_COMMENT_BYTES_MAX = 65535
_MAX16, _MAX32 = 0xFFFF, 0xFFFFFFFF
_FLAG_ENCRYPTED, _FLAG_DESCRIPTOR, _FLAG_PATCHED = 0x1, 0x8, 0x20
_FLAG_STRONG, _FLAG_UTF8, _FLAG_MASKED = 0x40, 0x800, 0x2000
_DESCRIPTOR_BYTES_MAX = 24
_NAME_SHOWN = 80
_UNIX = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class ZipMember:
    """One member: `data_offset` is where its bytes begin in the file; sizes are bytes before and after packing."""

    name: str
    method: int
    data_offset: int
    packed_bytes: int
    n_bytes: int


@dataclass(frozen=True, slots=True)
class ZipDirectory:
    """All members of one archive by name, in the order of the central directory."""

    file: PositionedFile
    members: dict[str, ZipMember]
    limits: ReadLimits

    def source(self, member: ZipMember) -> ByteSource:
        """Return the member's bytes for positioned reads; raise LimitError for one that unpacks beyond the limit."""
        if member.method == STORED:
            return FileSource(self.file, member.data_offset, member.n_bytes)
        if member.method != DEFLATED:
            raise UnsupportedError(
                f"member {_shown(member.name)} is packed with method {member.method}; only stored and deflate are read"
            )
        expanded_max = max(self.limits.expanded_bytes_min, self.limits.expanded_ratio_max * member.packed_bytes)
        if member.n_bytes > expanded_max:
            raise LimitError(
                f"member {_shown(member.name)} claims to unpack from {member.packed_bytes} to {member.n_bytes} bytes"
            )
        return DeflatedSource(self.file, member.data_offset, member.packed_bytes, member.n_bytes)

    def read(self, member: ZipMember, n_bytes_max: int) -> bytes:
        """Return all bytes of a small member; raise LimitError when there are more than `n_bytes_max`."""
        if member.n_bytes > n_bytes_max:
            raise LimitError(f"member {_shown(member.name)} has {member.n_bytes} bytes, the limit is {n_bytes_max}")
        buffer = bytearray(member.n_bytes)
        self.source(member).read_into(0, memoryview(buffer))
        return bytes(buffer)


@dataclass(frozen=True, slots=True)
class _End:
    n_entries: int
    directory_bytes: int
    directory_offset: int
    position: int  # where the end records begin: the directory must end right there


@dataclass(frozen=True, slots=True)
class _Entry:
    name: str
    raw_name: bytes
    flags: int
    method: int
    packed_bytes: int
    n_bytes: int
    header_offset: int


def read_zip_directory(file: PositionedFile, limits: ReadLimits) -> ZipDirectory:
    """Read and check the directory of a zip archive that fills the whole file.

    Raises IncompleteError without an end record (still being written), AmbiguousError for duplicates, overlaps,
    hidden or foreign bytes, CorruptError for a broken record, LimitError, UnsupportedError for encryption and links.
    """
    head = file.head(len(_LOCAL_MAGIC))
    if not any(magic.startswith(head) for magic in (_LOCAL_MAGIC, _END_MAGIC)):  # the latter: no members at all
        raise CorruptError("the file has the name of a zip archive but does not begin like one")
    end = _find_end(file)
    if end.n_entries > limits.zip_entries_max:
        raise LimitError(f"the zip has {end.n_entries} members, the limit is {limits.zip_entries_max}")
    if end.directory_bytes > limits.zip_directory_bytes_max:
        raise LimitError(
            f"the zip directory has {end.directory_bytes} bytes, the limit is {limits.zip_directory_bytes_max}"
        )
    if end.directory_offset + end.directory_bytes != end.position:
        if end.directory_offset + end.directory_bytes < end.position:
            raise AmbiguousError("the zip has foreign bytes before its first member or after its directory")
        raise CorruptError("the zip directory does not end where its end record begins")
    entries = _parse_entries(file.read(end.directory_offset, end.directory_bytes), end.n_entries)
    return ZipDirectory(file, _locate(file, entries, end.directory_offset), limits)


def _find_end(file: PositionedFile) -> _End:
    tail_bytes = min(file.size_bytes, _END.size + _COMMENT_BYTES_MAX)
    tail = file.read(file.size_bytes - tail_bytes, tail_bytes)
    found = []
    at = tail.find(_END_MAGIC)
    while at >= 0:
        if at + _END.size <= len(tail):
            comment_bytes = _END.unpack_from(tail, at)[-1]
            if at + _END.size + comment_bytes == len(tail):
                found.append(at)
        at = tail.find(_END_MAGIC, at + 1)
    if not found:
        raise IncompleteError("the zip has no end record: it is still being written, or was cut short")
    if len(found) > 1:
        raise AmbiguousError("the zip has several end records; readers would disagree on its members")
    at = found[0]
    _, disk, directory_disk, n_here, n_entries, directory_bytes, directory_offset, _ = _END.unpack_from(tail, at)
    position = file.size_bytes - tail_bytes + at
    if _MAX16 in (n_entries, disk) or _MAX32 in (directory_bytes, directory_offset):
        return _find_end64(file, position)
    if disk != 0 or directory_disk != 0 or n_here != n_entries:
        raise UnsupportedError("the zip is split over several files")
    if position >= _END64_LOCATOR.size and file.read(position - _END64_LOCATOR.size, 4) == _LOCATOR_MAGIC:
        end = _find_end64(file, position)  # written although not needed: then both must say the same
        if (end.n_entries, end.directory_bytes, end.directory_offset) != (n_entries, directory_bytes, directory_offset):
            raise AmbiguousError("the two end records of the zip contradict each other")
        return end
    return _End(n_entries, directory_bytes, directory_offset, position)


def _find_end64(file: PositionedFile, end_position: int) -> _End:
    at = end_position - _END64_LOCATOR.size
    if at < 0:
        raise CorruptError("the zip has no zip64 end record although its sizes need one")
    magic, disk, position, n_disks = _END64_LOCATOR.unpack(file.read(at, _END64_LOCATOR.size))
    if magic != _LOCATOR_MAGIC:
        raise CorruptError("the zip has no zip64 end record although its sizes need one")
    if disk != 0 or n_disks > 1:
        raise UnsupportedError("the zip is split over several files")
    if position + _END64.size > at:
        raise CorruptError("the zip64 end record is not where its locator says")
    record = _END64.unpack(file.read(position, _END64.size))
    magic, record_bytes, _, _, disk, directory_disk, n_here, n_entries, directory_bytes, directory_offset = record
    if magic != _END64_MAGIC or position + 12 + record_bytes != at:
        raise CorruptError("the zip64 end record is broken")
    if disk != 0 or directory_disk != 0 or n_here != n_entries:
        raise UnsupportedError("the zip is split over several files")
    return _End(n_entries, directory_bytes, directory_offset, position)


def _parse_entries(directory: bytes, n_entries: int) -> list[_Entry]:
    if n_entries * _ENTRY.size > len(directory):
        raise CorruptError(f"the zip directory is too short for the {n_entries} members it claims")
    entries = []
    at = 0
    for _ in range(n_entries):
        if at + _ENTRY.size > len(directory):
            raise CorruptError("the zip directory ends within an entry")
        fields = _ENTRY.unpack_from(directory, at)
        magic, made_by, flags, method, packed_bytes, n_bytes = fields[:6]
        name_bytes, extra_bytes, comment_bytes, disk, attributes, header_offset = fields[6:]
        name_end = at + _ENTRY.size + name_bytes
        extra_end = name_end + extra_bytes
        raw_name = directory[at + _ENTRY.size : name_end]
        if magic != _ENTRY_MAGIC or extra_end + comment_bytes > len(directory):
            raise CorruptError("the zip directory has a broken entry")
        name = raw_name.decode("utf-8", "surrogateescape") if flags & _FLAG_UTF8 else raw_name.decode("cp437")
        _check_entry(name, flags, made_by, attributes)
        packed_bytes, n_bytes, header_offset, disk = _with_zip64(
            directory[name_end:extra_end], (packed_bytes, n_bytes, header_offset, disk)
        )
        if disk != 0:
            raise UnsupportedError("the zip is split over several files")
        if method == STORED and packed_bytes != n_bytes:
            raise CorruptError(f"stored member {_shown(name)} has two sizes: {packed_bytes} and {n_bytes} bytes")
        entries.append(_Entry(name, raw_name, flags, method, packed_bytes, n_bytes, header_offset))
        at = extra_end + comment_bytes
    if at != len(directory):
        raise AmbiguousError("the zip directory has foreign bytes after its last entry")
    return entries


def _check_entry(name: str, flags: int, made_by: int, attributes: int) -> None:
    if flags & (_FLAG_ENCRYPTED | _FLAG_STRONG | _FLAG_MASKED | _FLAG_PATCHED):
        raise UnsupportedError(f"member {_shown(name)} is encrypted or patched (flags 0x{flags:x})")
    if made_by >> 8 == _UNIX and stat.S_ISLNK(attributes >> 16):
        raise UnsupportedError(f"member {_shown(name)} is a symbolic link")
    if "\0" in name or not name:
        raise CorruptError("the zip has a member without a proper name")


def _with_zip64(extra: bytes, values: tuple[int, int, int, int]) -> tuple[int, int, int, int]:
    """Return (packed, unpacked, header offset, disk) with the values of the zip64 extra field put in."""
    packed_bytes, n_bytes, header_offset, disk = values
    needed = (n_bytes == _MAX32) + (packed_bytes == _MAX32) + (header_offset == _MAX32)
    if not needed and disk != _MAX16:
        return values
    at = 0
    while at + 4 <= len(extra):
        tag, size = struct.unpack_from("<HH", extra, at)
        if tag == 1:
            field = extra[at + 4 : at + 4 + size]
            if len(field) != size or size < 8 * needed + (4 if disk == _MAX16 else 0):
                raise CorruptError("a zip64 field is too short")
            taken = 0
            if n_bytes == _MAX32:
                n_bytes, taken = int.from_bytes(field[taken : taken + 8], "little"), taken + 8
            if packed_bytes == _MAX32:
                packed_bytes, taken = int.from_bytes(field[taken : taken + 8], "little"), taken + 8
            if header_offset == _MAX32:
                header_offset, taken = int.from_bytes(field[taken : taken + 8], "little"), taken + 8
            if disk == _MAX16:
                disk = int.from_bytes(field[taken : taken + 4], "little")
            return packed_bytes, n_bytes, header_offset, disk
        at += 4 + size
    raise CorruptError("a zip64 field is missing although the sizes need one")


def _locate(file: PositionedFile, entries: list[_Entry], directory_offset: int) -> dict[str, ZipMember]:
    """Follow each entry to its local header; members must fill the file without overlap or hidden stretch."""
    located: dict[str, ZipMember] = {}
    free, descriptor_bytes_max = 0, 0
    for entry in sorted(entries, key=lambda e: e.header_offset):
        gap = entry.header_offset - free
        if gap < 0:
            raise CorruptError(f"member {_shown(entry.name)} overlaps the one before")
        if gap > descriptor_bytes_max:
            raise AmbiguousError(f"the zip hides {gap} bytes before member {_shown(entry.name)}")
        if entry.name in located:
            raise AmbiguousError(f"the zip has two members named {_shown(entry.name)}")
        data_offset = _data_offset(file, entry, directory_offset)
        free = data_offset + entry.packed_bytes
        if free > directory_offset:
            raise CorruptError(f"member {_shown(entry.name)} reaches into the zip directory")
        descriptor_bytes_max = _DESCRIPTOR_BYTES_MAX if entry.flags & _FLAG_DESCRIPTOR else 0
        located[entry.name] = ZipMember(
            name=entry.name,
            method=entry.method,
            data_offset=data_offset,
            packed_bytes=entry.packed_bytes,
            n_bytes=entry.n_bytes,
        )
    if directory_offset - free > descriptor_bytes_max:
        raise AmbiguousError(f"the zip hides {directory_offset - free} bytes before its directory")
    return {entry.name: located[entry.name] for entry in entries}


def _data_offset(file: PositionedFile, entry: _Entry, directory_offset: int) -> int:
    header_bytes = _LOCAL.size + len(entry.raw_name)
    if entry.header_offset + header_bytes > directory_offset:
        raise CorruptError(f"the local header of member {_shown(entry.name)} is outside the archive")
    header = file.read(entry.header_offset, header_bytes)
    magic, _, flags, method, _, _, _, packed_bytes, n_bytes, name_bytes, extra_bytes = _LOCAL.unpack_from(header)
    if magic != _LOCAL_MAGIC or name_bytes != len(entry.raw_name) or header[_LOCAL.size :] != entry.raw_name:
        raise _contradiction(entry, "name")
    if method != entry.method or (flags ^ entry.flags) & (_FLAG_ENCRYPTED | _FLAG_STRONG | _FLAG_MASKED):
        raise _contradiction(entry, "method")
    streamed = bool(flags & _FLAG_DESCRIPTOR)
    for local, central in ((packed_bytes, entry.packed_bytes), (n_bytes, entry.n_bytes)):
        if local not in (central, _MAX32) and not (streamed and local == 0):
            raise _contradiction(entry, "size")
    return entry.header_offset + header_bytes + int(extra_bytes)


def _contradiction(entry: _Entry, what: str) -> ReadError:
    return CorruptError(f"directory and local header of member {_shown(entry.name)} give a different {what}")


def _shown(name: str) -> str:
    return f"'{printable(name, _NAME_SHOWN)}'"
