"""Boosted trees of XGBoost and LightGBM in memory: the library writes its model into memory, our readers read it there.

So names, kinds and numbers are those of the file that `save_model` writes, by construction.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from monitor.read.access.partial_sources import check_range
from monitor.read.arrays.array_checkpoint import ArrayCheckpoint
from monitor.read.bounded_file import BoundedFile
from monitor.read.formats.lightgbm import LightgbmReader
from monitor.read.formats.xgboost import XgboostReader
from monitor.read.reader import ReadLimits, UnsupportedError
from storage.records import FileStat


class MemoryFile(BoundedFile):
    """Bytes in memory behind what readers ask of a file."""

    __slots__ = ("_data",)

    def __init__(self, data: bytes, name: str) -> None:
        size = len(data)
        super().__init__(-1, FileStat(path=name, device=0, inode=0, size_bytes=size, mtime_ns=0), None)
        self._data = memoryview(data)

    def read(self, offset: int, n: int) -> bytes:
        """Return exactly `n` bytes from `offset`."""
        check_range(offset, n, self.size_bytes)
        self.bytes_read += n
        return bytes(self._data[offset : offset + n])

    def read_into(self, offset: int, buffer: memoryview | bytearray | npt.NDArray[np.generic]) -> None:
        """Fill a writable, contiguous buffer from `offset`."""
        view = (buffer.data if isinstance(buffer, np.ndarray) else memoryview(buffer)).cast("B")
        view[:] = self.read(offset, view.nbytes)


def booster_checkpoint(model: Any, library: str, limits: ReadLimits) -> ArrayCheckpoint:
    """Return a Booster, or an estimator around one, as an open checkpoint; `library` is "xgboost" or "lightgbm".

    Raises UnsupportedError for an estimator that was not fitted yet.
    """
    if library == "xgboost":
        booster = _booster(model, "get_booster")
        data = bytes(booster.save_raw(raw_format="ubj"))
        return XgboostReader().open(MemoryFile(data, "model.ubj"), limits)
    booster = _booster(model, "booster_")
    return LightgbmReader().open(MemoryFile(booster.model_to_string().encode(), "model.txt"), limits)


def _booster(model: Any, attribute: str) -> Any:
    """Return what an estimator has fitted; a Booster has no such attribute and is one itself."""
    if not hasattr(type(model), attribute):
        return model
    try:
        found = getattr(model, attribute)
        return found() if callable(found) else found
    except (ValueError, AttributeError) as error:  # NotFittedError is both
        raise UnsupportedError(f"the {type(model).__name__} holds no trees; fit it first") from error
