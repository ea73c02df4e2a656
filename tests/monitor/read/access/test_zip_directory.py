from __future__ import annotations

import io
import stat
import struct
import zipfile
import zlib
from pathlib import Path

import pytest

from monitor.read.access.sources import PASSES_MAX
from monitor.read.access.zip_directory import read_zip_directory
from monitor.read.bounded_file import open_bounded
from monitor.read.reader import (
    AmbiguousError,
    CorruptError,
    IncompleteError,
    LimitError,
    ReadError,
    ReadLimits,
    UnsupportedError,
)
from tests.hostile.zips import Member, build

LIMITS = ReadLimits()


def contents(tmp_path: Path, data: bytes, limits: ReadLimits = LIMITS) -> dict[str, bytes]:
    path = tmp_path / "archive.zip"
    path.write_bytes(data)
    with open_bounded(str(path)) as file:
        directory = read_zip_directory(file, limits)
        return {name: directory.read(member, 10**7) for name, member in directory.members.items()}


TWO = [Member(name=b"a", data=b"one"), Member(name=b"b/c", data=b"three")]


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_archives_of_the_standard_library_are_read(tmp_path: Path, method: int) -> None:
    expected = {"x/data.pkl": b"abc" * 1000, "empty": b"", "umlaut ä": bytes(range(256))}
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", method) as made:
        for name, data in expected.items():
            made.writestr(name, data)
    assert contents(tmp_path, stream.getvalue()) == expected


def test_archives_written_to_a_stream_that_cannot_seek_are_read(tmp_path: Path) -> None:
    class Pipe(io.BytesIO):
        def seekable(self) -> bool:
            return False

        def seek(self, offset: int, whence: int = 0) -> int:
            raise io.UnsupportedOperation

        def tell(self) -> int:
            raise io.UnsupportedOperation

    pipe = Pipe()
    with zipfile.ZipFile(pipe, "w", zipfile.ZIP_DEFLATED) as made:
        made.writestr("a", b"1" * 999)
        made.writestr("b", b"2")
    assert contents(tmp_path, pipe.getvalue()) == {"a": b"1" * 999, "b": b"2"}


def test_zip64_fields_are_honoured(tmp_path: Path) -> None:
    field = struct.pack("<HHQQ", 1, 16, 3, 3)
    member = Member(name=b"a", data=b"one", n_bytes=2**32 - 1, packed_bytes=2**32 - 1, extra=field)
    assert contents(tmp_path, build([member], zip64=True)) == {"a": b"one"}
    assert contents(tmp_path, build(TWO, zip64=True)) == {"a": b"one", "b/c": b"three"}


def test_a_comment_at_the_end_is_allowed(tmp_path: Path) -> None:
    assert contents(tmp_path, build(TWO, comment=b"made by hand")) == {"a": b"one", "b/c": b"three"}


def test_every_cut_of_an_archive_is_incomplete(tmp_path: Path) -> None:
    data = build(TWO)
    for n in range(len(data)):
        with pytest.raises(IncompleteError):
            contents(tmp_path, data[:n])


CASES: dict[str, tuple[bytes, type[ReadError]]] = {
    "duplicate names": (build([TWO[0], TWO[0]]), AmbiguousError),
    "two entries, one header": (build([Member(name=b"a", data=b"x"), Member(name=b"b", offset=0)]), CorruptError),
    "two equal entries, one header": (
        build([Member(name=b"a", data=b"x"), Member(name=b"a", n_bytes=1, packed_bytes=1, offset=0)]),
        CorruptError,
    ),
    "a member over the next": (build([Member(name=b"a", data=b"x", n_bytes=9, packed_bytes=9), TWO[1]]), CorruptError),
    "a member into the directory": (build([Member(name=b"a", data=b"x", n_bytes=9, packed_bytes=9)]), CorruptError),
    "another local name": (build([Member(name=b"a", data=b"x", local_name=b"b")]), CorruptError),
    "a longer local name": (build([Member(name=b"a", data=b"x", local_name=b"aa")]), CorruptError),
    "another local size": (build([Member(name=b"a", data=b"xy", local_bytes=1)]), CorruptError),
    "another local method": (build([Member(name=b"a", data=b"xy", local_method=8)]), CorruptError),
    "two sizes of a stored member": (build([Member(name=b"a", data=b"xy", n_bytes=7)]), CorruptError),
    "an encrypted member": (build([Member(name=b"a", data=b"xy", flags=0x1)]), UnsupportedError),
    "a patched member": (build([Member(name=b"a", data=b"xy", flags=0x20)]), UnsupportedError),
    "a strongly encrypted member": (build([Member(name=b"a", data=b"xy", flags=0x40)]), UnsupportedError),
    "a symbolic link": (
        build([Member(name=b"a", data=b"/etc/passwd", made_by=3 << 8, attributes=(stat.S_IFLNK | 0o777) << 16)]),
        UnsupportedError,
    ),
    "a NUL in a name": (build([Member(name=b"a\0b", data=b"x")]), CorruptError),
    "no name": (build([Member(name=b"", data=b"x")]), CorruptError),
    "a script before": (build(TWO, before=b"#!/bin/sh\n"), CorruptError),
    "bytes after the directory": (build(TWO, after=b"hidden"), AmbiguousError),
    "bytes before the directory": (build(TWO, between=b"x" * 30), AmbiguousError),
    "a hidden member": (build([TWO[0], Member(name=b"h", data=b"h", listed=False), TWO[1]]), AmbiguousError),
    "an archive in the comment": (build(TWO, comment=build([TWO[0]])), AmbiguousError),
    "too many entries claimed": (build(TWO, n_entries=3), CorruptError),
    "too few entries claimed": (build(TWO, n_entries=1), AmbiguousError),
    "more entries than the directory can hold": (build(TWO, n_entries=5000), CorruptError),
    "a directory size that lies": (build(TWO, directory_bytes=10**6), CorruptError),
    "zip64 sizes without their field": (
        build([Member(name=b"a", data=b"x", n_bytes=2**32 - 1, packed_bytes=2**32 - 1)]),
        CorruptError,
    ),
    "a short zip64 field": (
        build([Member(name=b"a", data=b"x", n_bytes=2**32 - 1, extra=struct.pack("<HHI", 1, 4, 1))]),
        CorruptError,
    ),
    "zip64 sizes that lie": (
        build(
            [
                Member(
                    name=b"a",
                    n_bytes=2**32 - 1,
                    packed_bytes=2**32 - 1,
                    extra=struct.pack("<HHQQ", 1, 16, 2**63, 2**63),
                )
            ]
        ),
        CorruptError,
    ),
    "a zip64 end without its record": (build(TWO, n_entries=0xFFFF), CorruptError),
    "another disk": (build([Member(name=b"a", data=b"x", disk=3)]), UnsupportedError),
    "an offset beyond the file": (build([Member(name=b"a", offset=10**9)], between=b"PK\x03\x04"), ReadError),
}


@pytest.mark.parametrize("case", CASES)
def test_what_two_readers_could_see_differently_is_refused(tmp_path: Path, case: str) -> None:
    data, expected = CASES[case]
    with pytest.raises(expected):
        contents(tmp_path, data)


def test_a_prefix_that_shifts_all_offsets_is_ambiguous(tmp_path: Path) -> None:
    with pytest.raises(AmbiguousError):
        contents(tmp_path, b"PK\x03\x04#!/bin/sh\n" + build(TWO))


@pytest.mark.parametrize("method", [1, 6, 9, 12, 14, 93, 99])
def test_members_packed_otherwise_are_unsupported_only_when_they_are_read(tmp_path: Path, method: int) -> None:
    path = tmp_path / "archive.zip"
    path.write_bytes(build([TWO[0], Member(name=b"odd", data=b"??", method=method)]))
    with open_bounded(str(path)) as file:
        directory = read_zip_directory(file, LIMITS)
        assert directory.read(directory.members["a"], 10) == b"one"
        with pytest.raises(UnsupportedError):
            directory.read(directory.members["odd"], 10)


def deflated(data: bytes) -> bytes:
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    return packer.compress(data) + packer.flush()


@pytest.mark.parametrize(("claimed", "expected"), [(999, None), (1000, None), (1001, CorruptError)])
def test_a_deflated_member_gives_at_least_the_bytes_it_states(
    tmp_path: Path, claimed: int, expected: type[ReadError] | None
) -> None:
    packed = deflated(b"z" * 1000)
    data = build(
        [Member(name=b"a", data=packed, method=8, n_bytes=claimed, packed_bytes=len(packed), local_bytes=claimed)]
    )
    data = build([Member(name=b"a", data=packed, method=8, n_bytes=claimed, packed_bytes=len(packed))])
    if expected is None:
        assert contents(tmp_path, data) == {"a": b"z" * claimed}
    else:
        with pytest.raises(expected):
            contents(tmp_path, data)


def test_a_deflated_member_of_noise_is_corrupt(tmp_path: Path) -> None:
    data = build([Member(name=b"a", data=b"\xff" * 50, method=8, n_bytes=100, packed_bytes=50)])
    with pytest.raises(CorruptError):
        contents(tmp_path, data)


def test_a_deflation_bomb_is_refused_by_what_it_claims(tmp_path: Path) -> None:
    packed = deflated(b"\0" * 10**6)
    limits = ReadLimits(expanded_bytes_min=1000, expanded_ratio_max=100)
    data = build([Member(name=b"a", data=packed, method=8, n_bytes=10**6, packed_bytes=len(packed))])
    with pytest.raises(LimitError):
        contents(tmp_path, data, limits)
    assert contents(tmp_path, data) == {"a": b"\0" * 10**6}


def test_the_limits_hold_at_their_value_and_not_beyond(tmp_path: Path) -> None:
    data = build(TWO)
    assert len(contents(tmp_path, data, ReadLimits(zip_entries_max=2))) == 2
    with pytest.raises(LimitError):
        contents(tmp_path, data, ReadLimits(zip_entries_max=1))
    n_directory = 2 * 46 + 4
    assert len(contents(tmp_path, data, ReadLimits(zip_directory_bytes_max=n_directory))) == 2
    with pytest.raises(LimitError):
        contents(tmp_path, data, ReadLimits(zip_directory_bytes_max=n_directory - 1))


def test_names_that_look_like_paths_are_only_keys(tmp_path: Path) -> None:
    names = [b"/etc/passwd", b"../../x", b"a\\b", b"n" * 65535]
    found = contents(tmp_path, build([Member(name=name, data=b"1") for name in names]))
    assert [name.encode("cp437") for name in found] == names
    assert sorted(path.name for path in tmp_path.iterdir()) == ["archive.zip"]


def test_a_deflated_member_can_be_read_at_any_place_but_not_backwards_for_ever(tmp_path: Path) -> None:
    expected = bytes(range(256)) * 5000
    packed = deflated(expected)
    path = tmp_path / "archive.zip"
    path.write_bytes(build([Member(name=b"a", data=packed, method=8, n_bytes=len(expected), packed_bytes=len(packed))]))
    with open_bounded(str(path)) as file:
        directory = read_zip_directory(file, LIMITS)
        source = directory.source(directory.members["a"])
        for offset in (700_000, 5, 900_001, 0):
            buffer = bytearray(1000)
            source.read_into(offset, memoryview(buffer))
            assert bytes(buffer) == expected[offset : offset + 1000]
        with pytest.raises(IncompleteError):
            source.read_into(len(expected) - 1, memoryview(bytearray(2)))
        one = memoryview(bytearray(1))
        with pytest.raises(LimitError):  # noqa: PT012 - which of the passes is one too many does not matter
            for _ in range(PASSES_MAX + 1):
                source.read_into(0, one)
