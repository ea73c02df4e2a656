from __future__ import annotations

import errno
import mmap
import os
import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from monitor.read.bounded_file import as_read_error, open_bounded
from monitor.read.reader import (
    ChangedError,
    FileIOError,
    IncompleteError,
    NotRegularError,
    PermissionDeniedError,
    UnsafeReferenceError,
    VanishedError,
)
from tests.support.page_cache import resident_pages, skip_where_the_cache_cannot_be_spared


@pytest.fixture
def path(tmp_path: Path) -> Path:
    made = tmp_path / "file"
    made.write_bytes(bytes(range(100)))
    return made


def test_ranges_are_read_exactly(path: Path) -> None:
    with open_bounded(str(path)) as file:
        assert file.size_bytes == 100
        assert file.read(0, 100) == bytes(range(100))
        assert file.read(99, 1) == b"c"
        assert file.read(100, 0) == b""
        assert file.head(3) == b"\0\1\2"
        assert file.head(1000) == bytes(range(100))
        assert file.bytes_read == 100 + 1 + 3 + 100


def test_buffers_of_any_kind_are_filled(path: Path) -> None:
    with open_bounded(str(path)) as file:
        for buffer in (bytearray(8), memoryview(bytearray(8)), np.zeros(2, np.float32), np.zeros((2, 2), np.uint16)):
            file.read_into(4, buffer)
            assert bytes(buffer) == bytes(range(4, 12))


@pytest.mark.parametrize(("offset", "n"), [(0, 101), (100, 1), (2**62, 1), (0, 2**62)])
def test_a_range_outside_of_the_file_is_incomplete_and_allocates_nothing(path: Path, offset: int, n: int) -> None:
    with open_bounded(str(path)) as file, pytest.raises(IncompleteError):
        file.read(offset, n)


@pytest.mark.parametrize(("offset", "n"), [(-1, 1), (0, -1)])
def test_a_negative_range_is_a_mistake_of_the_caller(path: Path, offset: int, n: int) -> None:
    with open_bounded(str(path)) as file, pytest.raises(ValueError, match="negative"):
        file.read(offset, n)


def test_a_closed_file_is_not_read(path: Path) -> None:
    file = open_bounded(str(path))
    file.close()
    file.close()
    with pytest.raises(ValueError, match="closed"):
        file.read(0, 1)


def test_each_read_is_reported(path: Path) -> None:
    reported: list[int] = []
    with open_bounded(str(path), on_read=reported.append) as file:
        file.read(0, 10)
        file.read_into(0, bytearray(5))
    assert reported == [10, 5]


def test_a_file_that_shrinks_meanwhile_is_changed(path: Path) -> None:
    with open_bounded(str(path)) as file:
        os.truncate(path, 50)
        with pytest.raises(ChangedError):
            file.read(40, 20)
        with pytest.raises(ChangedError):
            file.verify_unchanged()


def test_an_unchanged_file_passes_and_a_touched_chmod_does_not_matter(path: Path) -> None:
    with open_bounded(str(path)) as file:
        path.chmod(0o640)
        os.link(path, path.with_name("link"))
        file.verify_unchanged()


def test_a_write_of_the_same_size_is_noticed_by_its_time(path: Path) -> None:
    with open_bounded(str(path)) as file:
        before = path.stat().st_mtime_ns
        path.write_bytes(bytes(100))
        os.utime(path, ns=(before, before + 1))
        with pytest.raises(ChangedError, match="written"):
            file.verify_unchanged()


def test_the_stat_is_that_of_the_open_file(path: Path) -> None:
    with open_bounded(str(path)) as file:
        found = path.stat()
        assert (file.stat.path, file.stat.device, file.stat.inode) == (str(path), found.st_dev, found.st_ino)
        assert (file.stat.size_bytes, file.stat.mtime_ns) == (found.st_size, found.st_mtime_ns)


def _descriptors_of(path: Path) -> list[int]:
    links = {int(entry.name): entry for entry in Path("/proc/self/fd").iterdir()}
    return [number for number, link in links.items() if link.is_symlink() and os.readlink(link) == str(path)]


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs /proc")
def test_there_is_one_descriptor_that_children_do_not_inherit_and_that_is_closed(path: Path) -> None:
    with open_bounded(str(path)):
        (descriptor,) = _descriptors_of(path)
        assert not os.get_inheritable(descriptor)
    assert _descriptors_of(path) == []


def test_a_pipe_a_socket_a_device_and_a_directory_are_not_read_and_do_not_block(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket"))
        for path in (pipe, tmp_path / "socket", Path("/dev/zero"), tmp_path):
            with pytest.raises(NotRegularError):
                open_bounded(str(path))


def test_a_missing_file_is_vanished(tmp_path: Path) -> None:
    with pytest.raises(VanishedError):
        open_bounded(str(tmp_path / "none"))
    (tmp_path / "dangling").symlink_to(tmp_path / "none")
    with pytest.raises(VanishedError):
        open_bounded(str(tmp_path / "dangling"))


def test_a_link_to_itself_is_an_unsafe_reference(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(UnsafeReferenceError):
        open_bounded(str(tmp_path / "loop"))


def test_a_path_with_a_nul_is_an_error_of_the_tree() -> None:
    with pytest.raises(FileIOError):
        open_bounded("a\0b")


def test_a_file_of_mode_000_says_who_needs_which_right(path: Path) -> None:
    path.chmod(0)
    error = as_read_error(OSError(errno.EACCES, "denied"), str(path))
    assert isinstance(error, PermissionDeniedError)
    assert "read permission" in str(error)
    assert "0000" in str(error)
    if os.geteuid() != 0:
        with pytest.raises(PermissionDeniedError):
            open_bounded(str(path))


@pytest.mark.parametrize(
    ("number", "expected"),
    [
        (errno.ESTALE, VanishedError),
        (errno.ENOTDIR, VanishedError),
        (errno.EPERM, PermissionDeniedError),
        (errno.ENXIO, NotRegularError),
        (errno.EIO, FileIOError),
        (errno.EMFILE, FileIOError),
    ],
)
def test_errors_of_the_system_have_their_place_in_the_tree(number: int, expected: type[Exception]) -> None:
    error = as_read_error(OSError(number, os.strerror(number)), "/some/\nwhere")
    assert type(error) is expected
    assert str(error).isprintable()


@pytest.mark.parametrize("warm_bytes", [0, 2**21, 2**22], ids=["cold", "half in the cache", "warm"])
def test_the_page_cache_is_left_as_it_was_found(tmp_path: Path, warm_bytes: int) -> None:
    path = tmp_path / "model.bin"
    path.write_bytes(bytes(2**22))
    skip_where_the_cache_cannot_be_spared(path)
    with path.open("rb") as stream:
        os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
        stream.read(warm_bytes)
    before = resident_pages(path)
    assert sum(before) >= warm_bytes // mmap.PAGESIZE
    with open_bounded(str(path)) as file:
        file.read(0, 2**22)
    assert resident_pages(path) == before


def test_a_file_deleted_while_it_is_read_is_given_up_soon(tmp_path: Path) -> None:
    path = tmp_path / "model.bin"
    path.write_bytes(bytes(2**25))
    with open_bounded(str(path)) as file:
        file.read(0, 1024)
        path.unlink()
        with pytest.raises(VanishedError, match="deleted while it was read"):
            file.read(0, 2**25)


def test_a_kernel_that_cannot_read_without_caching_is_read_as_usual(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "model.bin"
    path.write_bytes(b"0123456789")
    real = os.preadv

    def refusing(descriptor: int, buffers: Any, offset: int, flags: int = 0) -> int:
        if flags:
            raise OSError(errno.EOPNOTSUPP, "not supported")
        return real(descriptor, buffers, offset)

    monkeypatch.setattr(os, "preadv", refusing)
    with open_bounded(str(path)) as file:
        assert file.read(2, 4) == b"2345"
