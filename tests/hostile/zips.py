"""Build zip archives that contradict themselves: headers and directories with any field set to anything."""

from __future__ import annotations

import struct
from dataclasses import dataclass


@dataclass(kw_only=True)
class Member:
    """One member; a field that is None follows from the data. `local_*` differ from the directory where given."""

    name: bytes
    data: bytes = b""
    method: int = 0
    flags: int = 0
    n_bytes: int | None = None
    packed_bytes: int | None = None
    offset: int | None = None
    extra: bytes = b""
    local_extra: bytes = b""
    local_name: bytes | None = None
    local_method: int | None = None
    local_bytes: int | None = None
    made_by: int = 0
    attributes: int = 0
    listed: bool = True
    disk: int = 0


def build(
    members: list[Member],
    *,
    before: bytes = b"",
    after: bytes = b"",
    comment: bytes = b"",
    n_entries: int | None = None,
    directory_bytes: int | None = None,
    zip64: bool = False,
    between: bytes = b"",
) -> bytes:
    """Return the archive: `before` it, `between` the members and the directory, `after` the directory."""
    body = bytearray(before)
    directory = bytearray()
    for member in members:
        offset = len(body) if member.offset is None else member.offset
        n = len(member.data) if member.n_bytes is None else member.n_bytes
        packed = len(member.data) if member.packed_bytes is None else member.packed_bytes
        local = n if member.local_bytes is None else member.local_bytes
        name = member.name if member.local_name is None else member.local_name
        method = member.method if member.local_method is None else member.local_method
        if member.offset is None:
            header = (20, member.flags, method, 0, 0, 0, packed if local == n else local, local, len(name))
            body += b"PK\x03\x04" + struct.pack("<5H3I2H", *header, len(member.local_extra))
            body += name + member.local_extra + member.data
        if member.listed:
            numbers = (member.made_by, 20, member.flags, member.method, 0, 0, 0, packed, n, len(member.name))
            rest = (len(member.extra), 0, member.disk, 0, member.attributes, offset)
            directory += b"PK\x01\x02" + struct.pack("<6H3I5H2I", *numbers, *rest) + member.name + member.extra
    body += between
    start = len(body)
    listed = sum(member.listed for member in members) if n_entries is None else n_entries
    size = len(directory) if directory_bytes is None else directory_bytes
    body += directory + after
    if zip64:
        record = len(body)
        body += b"PK\x06\x06" + struct.pack("<Q2H2I4Q", 44, 45, 45, 0, 0, listed, listed, size, start)
        body += b"PK\x06\x07" + struct.pack("<IQI", 0, record, 1)
        listed, size, start = 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF
    body += b"PK\x05\x06" + struct.pack("<4H2IH", 0, 0, listed, listed, size, start, len(comment)) + comment
    return bytes(body)
