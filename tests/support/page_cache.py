"""Which pages of a file the kernel holds in its cache, asked without bringing any in."""

from __future__ import annotations

import ctypes
import mmap
import os
from pathlib import Path

import pytest

_RWF_DONTCACHE = 0x80


def resident_pages(path: Path) -> tuple[bool, ...]:
    """Return for each whole page of a file whether it is in the cache, by mincore(2)."""
    size = path.stat().st_size
    libc = ctypes.CDLL(None, use_errno=True)
    with path.open("r+b") as stream, mmap.mmap(stream.fileno(), size) as mapped:
        state = (ctypes.c_ubyte * (-(-size // mmap.PAGESIZE)))()
        first = ctypes.c_char.from_buffer(mapped)
        assert libc.mincore(ctypes.c_void_p(ctypes.addressof(first)), ctypes.c_size_t(size), state) == 0
        del first
    return tuple(bool(page & 1) for page in state)


def evict(path: Path) -> None:
    """Write a file to disk and drop it from the cache."""
    with path.open("r+b") as stream:
        os.fsync(stream.fileno())
        os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def skip_where_the_cache_cannot_be_spared(path: Path) -> None:
    """Skip the test on a filesystem or kernel that cannot read without caching; the file is cold afterwards."""
    evict(path)
    if any(resident_pages(path)):
        pytest.skip("this filesystem lives in the page cache")
    with path.open("r+b") as stream:
        try:
            os.preadv(stream.fileno(), [bytearray(1)], 0, _RWF_DONTCACHE)
        except OSError:
            pytest.skip("this kernel or filesystem cannot read without caching")
    evict(path)
