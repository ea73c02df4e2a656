"""What a worker process does to protect a checkpoint: share its blocks, link it, or copy its bytes. JSON to JSON.

Nothing is parsed. Files are opened where every watched file is opened, and read at the pace and priority of measuring.
The target directory was made by the parent, outside of everything that is watched; only it is written to.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
from collections.abc import Callable
from typing import Any

from monitor.measure.throttle import Throttle
from monitor.read.bounded_file import BoundedFile, open_bounded
from monitor.read.reader import ChangedError
from storage.records import FileStat

TASKS = {"protect": "monitor.protect.tasks:protect"}

REFLINK, HARD_LINK, COPY = "reflink", "hard link", "copy"
CHUNK_BYTES = 2**20
FREE_BYTES_MIN = 64 * 2**20  # so much is left to others on the disk that copies are written to
_FICLONE = 0x40049409  # from the kernel's include/uapi/linux/fs.h
_WORTH = {REFLINK: 0, HARD_LINK: 1, COPY: 2}


def protect(payload: dict[str, Any]) -> dict[str, Any]:
    """Bring the files of one checkpoint into a directory that is there and empty.

    `payload`: {"files": [[relative name, {FileStat's fields}], ...], "target": str, "may_link": bool,
    "bytes_per_second": int | null}. A file that is no longer what its stat says, before or after, raises a ReadError,
    and what was brought is worthless. Returns {"method": "reflink" | "hard link" | "copy", "error": str | null}: of
    several methods the dearest; trouble with the target is an error and no fault of the checkpoint.
    """
    rate = payload.get("bytes_per_second")
    on_read = Throttle(rate) if rate else None
    files = [(str(name), FileStat(**fields)) for name, fields in payload["files"]]
    methods = set()
    for name, stat in files:
        target = os.path.join(payload["target"], name)
        try:
            os.makedirs(os.path.dirname(target), mode=0o755, exist_ok=True)
            methods.add(_bring(stat, target, may_link=bool(payload["may_link"]), on_read=on_read))
        except OSError as error:
            return {"method": COPY, "error": f"{error.strerror or type(error).__name__} at {target}"[:500]}
    for _, stat in files:  # all of them belong together: a file changed after its copy makes the whole worthless
        with open_bounded(stat.path) as file:
            _check(file, stat)
    return {"method": max(methods, key=_WORTH.__getitem__, default=COPY), "error": None}


def _bring(stat: FileStat, target: str, *, may_link: bool, on_read: Callable[[int], None] | None) -> str:
    with open_bounded(stat.path, on_read=on_read) as file:
        _check(file, stat)
        descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
        try:
            method = REFLINK if _reflink(file, descriptor) else None
            if method is None and may_link and _link(stat.path, target):
                return HARD_LINK
            if method is None:
                _copy(file, descriptor)
                method = COPY
            os.utime(descriptor, ns=(stat.mtime_ns, stat.mtime_ns))
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        file.verify_unchanged()
    return method


def _check(file: BoundedFile, stat: FileStat) -> None:
    found = file.stat
    if (found.device, found.inode, found.size_bytes, found.mtime_ns) != (
        stat.device,
        stat.inode,
        stat.size_bytes,
        stat.mtime_ns,
    ):
        raise ChangedError("the file is no longer the one that was measured")


def _reflink(file: BoundedFile, descriptor: int) -> bool:
    """Let the target share the file's blocks until either is written to; False where the filesystem cannot."""
    try:
        fcntl.ioctl(descriptor, _FICLONE, file.descriptor())
    except OSError:
        return False
    return True


def _link(path: str, target: str) -> bool:
    """Give the file a second name in place of the empty target; False where that is not possible."""
    spare = target + ".link"
    try:
        os.link(path, spare, follow_symlinks=False)
        os.replace(spare, target)
    except OSError:
        return False
    return True


def _copy(file: BoundedFile, descriptor: int) -> None:
    directory_free = shutil.disk_usage(f"/proc/self/fd/{descriptor}").free if os.path.isdir("/proc/self/fd") else None
    if directory_free is not None and directory_free < file.size_bytes + FREE_BYTES_MIN:
        raise OSError(errno.ENOSPC, "No space left on device")
    place = 0
    while place < file.size_bytes:
        n = min(CHUNK_BYTES, file.size_bytes - place)
        view = memoryview(file.read(place, n))
        while view:
            view = view[os.write(descriptor, view) :]
        place += n
