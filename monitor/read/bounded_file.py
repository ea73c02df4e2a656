"""The only place that opens a watched file: positioned reads, range checks and the stat bracket.

It must not map the file into memory (a truncation would kill the process), must not lock, write, rename or touch it,
and must not hold more than one descriptor. A read either fills the whole buffer or raises. The page cache is left as it
was found where the kernel can do that (Linux 6.14), and the space of a deleted file is given back soon.
"""

from __future__ import annotations

import errno
import getpass
import os
import stat
import sys
from collections.abc import Callable
from types import TracebackType
from typing import Self

import numpy as np
import numpy.typing as npt

from monitor.read.naming import printable
from monitor.read.reader import (
    ChangedError,
    FileIOError,
    IncompleteError,
    NotRegularError,
    PermissionDeniedError,
    ReadError,
    UnsafeReferenceError,
    VanishedError,
)
from storage.records import FileStat

OPEN_FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK
_READ_BYTES_MAX = 2**30  # one system call; Linux stops at 2 GiB less one page anyway
_PATH_CHARACTERS_SHOWN = 200
_DELETED_CHECK_BYTES = 16 * 2**20  # how much is read between two looks at whether the file still has a name

# Pages that the read brings in are dropped after it, pages that were there stay: the trainer's data keeps its place in
# the cache. From the kernel's include/uapi/linux/fs.h; older kernels and some filesystems refuse it.
_RWF_DONTCACHE = 0x80

_FILE_TYPES = (
    (stat.S_ISDIR, "a directory"),
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a character device"),
    (stat.S_ISBLK, "a block device"),
)


class BoundedFile:
    """One open regular file, read by offset; close it soon.

    `stat` is what fstat said at open, `size_bytes` its size, `bytes_read` the number of bytes read so far.
    """

    __slots__ = ("_descriptor", "_flags", "_on_read", "_unchecked_bytes", "bytes_read", "path", "size_bytes", "stat")

    def __init__(self, descriptor: int, file_stat: FileStat, on_read: Callable[[int], None] | None) -> None:
        self._descriptor = descriptor
        self._flags = _RWF_DONTCACHE if sys.platform == "linux" else 0
        self._unchecked_bytes = 0
        self._on_read = on_read
        self.path = file_stat.path
        self.stat = file_stat
        self.size_bytes = file_stat.size_bytes
        self.bytes_read = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the descriptor; a second call does nothing."""
        if self._descriptor >= 0:
            descriptor, self._descriptor = self._descriptor, -1
            os.close(descriptor)

    def read(self, offset: int, n: int) -> bytes:
        """Return exactly `n` bytes from `offset`; the range is checked before anything is allocated.

        Raises IncompleteError when the range leaves the file, ChangedError when the file shrank meanwhile.
        """
        self._check_range(offset, n)
        buffer = bytearray(n)
        self._fill(offset, memoryview(buffer))
        return bytes(buffer)

    def read_into(self, offset: int, buffer: memoryview | bytearray | npt.NDArray[np.generic]) -> None:
        """Fill a writable, contiguous buffer from `offset`; errors as for `read`."""
        view = (buffer.data if isinstance(buffer, np.ndarray) else memoryview(buffer)).cast("B")
        self._check_range(offset, view.nbytes)
        self._fill(offset, view)

    def head(self, n: int) -> bytes:
        """Return the first `n` bytes, fewer where the file is shorter."""
        return self.read(0, min(n, self.size_bytes))

    def descriptor(self) -> int:
        """Return the open descriptor; raise ValueError when the file was closed."""
        if self._descriptor < 0:
            raise ValueError("read from a closed file")
        return self._descriptor

    def verify_unchanged(self) -> None:
        """Close the stat bracket: inode, size and mtime_ns of the descriptor and of the path are as at open.

        Raises VanishedError when the path is gone, ChangedError when anything differs: then what was read is worthless.
        """
        try:
            now = os.fstat(self.descriptor())
            at_path = os.stat(self.path)
        except OSError as error:
            raise as_read_error(error, self.path) from error
        for found, what in ((now, "the file"), (at_path, "the file at this path")):
            if (found.st_dev, found.st_ino) != (self.stat.device, self.stat.inode):
                raise ChangedError(f"{what} was replaced while it was read")
            if found.st_size != self.stat.size_bytes:
                raise ChangedError(
                    f"{what} went from {self.stat.size_bytes} to {found.st_size} bytes while it was read"
                )
            if found.st_mtime_ns != self.stat.mtime_ns:
                raise ChangedError(f"{what} was written while it was read")

    def _check_range(self, offset: int, n: int) -> None:
        if offset < 0 or n < 0:
            raise ValueError(f"negative range: offset {offset}, length {n}")
        if offset + n > self.size_bytes:
            raise IncompleteError(f"bytes {offset} to {offset + n} are needed, the file has {self.size_bytes}")

    def _check_deleted(self, n_bytes: int) -> None:
        """Give a deleted file up soon: its space on disk is not free while we hold it open."""
        self._unchecked_bytes += n_bytes
        if self._unchecked_bytes >= _DELETED_CHECK_BYTES:
            self._unchecked_bytes = 0
            if os.fstat(self.descriptor()).st_nlink == 0:
                raise VanishedError(f"{printable(self.path, _PATH_CHARACTERS_SHOWN)} was deleted while it was read")

    def _fill(self, offset: int, view: memoryview) -> None:
        done, n = 0, view.nbytes
        descriptor = self.descriptor()
        while done < n:
            try:
                got = os.preadv(descriptor, [view[done : done + _READ_BYTES_MAX]], offset + done, self._flags)
            except NotImplementedError:  # a Python built for an older kernel
                self._flags = 0
                continue
            except OSError as error:
                if self._flags and error.errno in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
                    self._flags = 0
                    continue
                raise as_read_error(error, self.path) from error
            if got == 0:
                raise ChangedError(
                    f"the file shrank while it was read: no byte at {offset + done}, {self.size_bytes} at open"
                )
            done += got
            self.bytes_read += got
            self._check_deleted(got)
            if self._on_read is not None:
                self._on_read(got)


def open_bounded(path: str, *, on_read: Callable[[int], None] | None = None) -> BoundedFile:
    """Open a regular file for positioned reads, without following a pipe's or device's habit of blocking.

    `on_read` is called with the number of bytes after each read: the place for throttling and accounting.
    Raises NotRegularError, PermissionDeniedError, VanishedError, UnsafeReferenceError (symlink loop) or FileIOError.
    """
    try:
        descriptor = os.open(path, OPEN_FLAGS)
    except OSError as error:
        raise as_read_error(error, path) from error
    except ValueError as error:  # a NUL in the path
        raise FileIOError(f"{printable(path, _PATH_CHARACTERS_SHOWN)} is not a valid path: {error}") from error
    return BoundedFile(descriptor, checked_stat(descriptor, path), on_read)


def checked_stat(descriptor: int, path: str) -> FileStat:
    """Return the state of an open file, which is closed before NotRegularError says that it is none to be read."""
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            what = next((text for test, text in _FILE_TYPES if test(found.st_mode)), "no regular file")
            raise NotRegularError(f"{printable(path, _PATH_CHARACTERS_SHOWN)} is {what}; only regular files are read")
    except BaseException:
        os.close(descriptor)
        raise
    return FileStat(
        path=path,
        device=found.st_dev,
        inode=found.st_ino,
        size_bytes=found.st_size,
        mtime_ns=found.st_mtime_ns,
    )


def as_read_error(error: OSError, path: str) -> ReadError:
    """Map an error of the operating system to the tree of ReadErrors, with a message that says what to do."""
    shown = printable(path, _PATH_CHARACTERS_SHOWN)
    match error.errno:
        case errno.ENOENT | errno.ENOTDIR | errno.ESTALE:
            return VanishedError(f"{shown} is gone")
        case errno.EACCES | errno.EPERM:
            return PermissionDeniedError(_permission_message(path, shown))
        case errno.ELOOP:
            return UnsafeReferenceError(f"{shown} is a symbolic link that leads in a circle")
        case errno.ENXIO | errno.ENODEV | errno.EOPNOTSUPP:
            return NotRegularError(f"{shown} is a socket or device; only regular files are read")
        case _:
            return FileIOError(f"{shown} could not be read: {error.strerror or error}")


def _permission_message(path: str, shown: str) -> str:
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container user without an entry in passwd
        user = f"uid {os.geteuid()}"
    try:
        mode = f" (its mode is {stat.S_IMODE(os.stat(path).st_mode):04o})"
    except OSError:
        return f"user {user} may not enter a directory on the way to {shown}; give that user execute permission on it"
    return f"user {user} may not read {shown}{mode}; give that user or its group read permission"
