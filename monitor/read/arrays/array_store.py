"""Arrays that tensorstore reads: zarr in a directory or in an OCDBT database; the only place that imports tensorstore.

The library opens the files itself, so whoever uses this checks first that none of them is a link, and afterwards that
none was written. It maps nothing into memory, writes nothing, and keeps a bounded number of unpacked bytes.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from math import prod
from typing import Any

import numpy as np

from monitor.read.access.slabs import slabs
from monitor.read.dtypes import DTYPES
from monitor.read.naming import printable
from monitor.read.reader import Chunk, CorruptError, IncompleteError, UnsupportedError

# One chunk lies in the cache while the next one is unpacked; with the kernels beside them a worker stays below 250 MiB.
_CHUNK_BYTES_MAX = 24 * 2**20  # unpacked
_CACHE_BYTES = 40 * 2**20  # of unpacked chunks, with what the library needs to keep them
# Of what is not there, in the words of the library, to which a missing file of a database is an empty one.
_MISSING = ("NOT_FOUND", "does not exist", "has size of 0 bytes", "Truncated")
_ZARR_DTYPES = {"bool": "bool", "half": "float16"}
INSTALL_HINT = "Orbax checkpoints are read with tensorstore; install it: pip install 'ckptwatch[orbax]'"


class ArrayStore:
    """The arrays below one directory; `is_database` says that they are in OCDBT, `options` are the driver's."""

    __slots__ = ("_context", "_directory", "_is_database", "_library", "_on_read", "_options")

    def __init__(
        self, directory: str, options: Mapping[str, object], *, is_database: bool, on_read: Callable[[int], None]
    ) -> None:
        """Import the library; raise UnsupportedError with what to install where it is missing.

        `on_read` gets the number of bytes that every read delivered.
        """
        try:
            # Late, because it is an extra that not everyone installs.
            import tensorstore  # noqa: PLC0415
        except ImportError:
            raise UnsupportedError(INSTALL_HINT) from None
        self._library: Any = tensorstore
        self._context = tensorstore.Context(
            {
                "cache_pool": {"total_bytes_limit": _CACHE_BYTES},
                "file_io_concurrency": {"limit": 1},
                "file_io_mode": {"mode": "default"},
                "data_copy_concurrency": {"limit": 1},
            }
        )
        self._directory = os.path.join(directory, "")
        self._options = dict(options)
        self._is_database = is_database
        self._on_read = on_read

    def open(self, name: str) -> Any:
        """Return the array of this name, unread; raise IncompleteError where it is not there."""
        store: dict[str, Any] = {"driver": "file", "path": self._directory}
        if self._is_database:
            store = {"driver": "ocdbt", "base": store, "path": f"{name}/"}
        else:
            store["path"] += f"{name}/"
        with self._translated(name):
            spec = {**self._options, "kvstore": store, "recheck_cached_data": "open"}
            return self._library.open(spec, open=True, read=True, write=False, context=self._context).result()

    def chunks(self, name: str, array: Any, n_max: int) -> Iterator[Chunk]:
        """Yield the values of an array in C order of its shape, at most `n_max` elements at a time."""
        first = 0
        shape = tuple(array.shape)
        for slab in slabs(shape, n_max):
            with self._translated(name):
                values = np.ascontiguousarray(array[slab].read().result()).reshape(-1)
            self._on_read(values.nbytes)
            yield Chunk(first, values)
            first += values.size

    @contextmanager
    def _translated(self, name: str) -> Iterator[None]:
        """Give an error of the library its place in the tree."""
        try:
            yield
        except (ValueError, TypeError, OSError, RuntimeError, KeyError, IndexError, NotImplementedError) as error:
            what = f"array '{printable(name, 80)}': {printable(str(error), 200)}"
            if any(sign in str(error) for sign in _MISSING):
                raise IncompleteError(what) from None
            raise CorruptError(what) from None


def describe(array: Any) -> tuple[str, tuple[int, ...], str | None]:
    """Return (dtype, shape, problem) of an opened array."""
    dtype = str(array.dtype.name)
    dtype = _ZARR_DTYPES.get(dtype, dtype)
    shape = tuple(int(size) for size in array.shape)
    if dtype not in DTYPES:
        return dtype, shape, f"elements of the type {printable(dtype, 40)} are no numbers that are read"
    if 0 in shape or not shape:
        return dtype, shape, None
    chunk = tuple(int(size) for size in array.chunk_layout.read_chunk.shape)
    itemsize = DTYPES[dtype].itemsize
    if prod(chunk) * itemsize > _CHUNK_BYTES_MAX:
        return (
            dtype,
            shape,
            (
                f"its chunks have {prod(chunk) * itemsize} bytes and cannot be unpacked in bounded memory; save with a "
                f"chunk_byte_size of at most {_CHUNK_BYTES_MAX}"
            ),
        )
    band_bytes = chunk[0] * prod(-(-s // c) * c for s, c in zip(shape[1:], chunk[1:], strict=True)) * itemsize
    if chunk[1:] != shape[1:] and band_bytes > _CHUNK_BYTES_MAX:
        return dtype, shape, "its chunks lie across the order of its elements, and are too many to be kept in memory"
    return dtype, shape, None
