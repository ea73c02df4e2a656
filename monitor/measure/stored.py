"""How values of each dtype reach the kernel: as stored bits where it decodes them itself, as float64 otherwise.

Nothing is measured here. Worker processes only, since ml_dtypes comes with it.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.generic]

_BITS: dict[str, type[np.generic]] = {"float32": np.int32, "bfloat16": np.uint16, "float16": np.int16}
_NO_TABLE = np.zeros(1, dtype=np.int32)


@dataclass(frozen=True, slots=True)
class Stored:
    """Values as the kernel takes them: `bits` int32, uint16, int16 or uint8; `table` decodes the last."""

    bits: npt.NDArray[Any]
    table: npt.NDArray[np.int32]


@functools.lru_cache(maxsize=256)
def numpy_dtype(name: str) -> np.dtype[np.generic]:
    """Return the numeric NumPy dtype of a NumPy or ml_dtypes spelling; ValueError for any other name."""
    try:
        dtype = np.dtype(getattr(ml_dtypes, name, name))
    except TypeError as error:
        raise ValueError(f"unknown dtype {name!r}") from error
    if dtype.kind not in "biufcV" or dtype.itemsize == 0 or dtype.fields is not None or dtype.name != name:
        raise ValueError(f"dtype {name!r} does not hold numbers")
    return dtype


@functools.lru_cache(maxsize=256)  # NumPy works a dtype's name out anew each time
def is_stored_float(dtype: np.dtype[np.generic]) -> bool:
    """Say whether this is a float of at most 32 bits, every value of which float32 holds exactly."""
    return dtype.name in _BITS or (dtype.itemsize == 1 and dtype.name.startswith("float"))


@functools.cache
def _byte_table(name: str) -> npt.NDArray[np.int32]:
    """Return the float32 bit patterns of the 256 codes of a float of at most 8 bits."""
    codes = np.arange(256, dtype=np.uint8)
    narrow = int(name[len("float")])  # float4_e2m1fn, float6_e2m3fn, float8_e5m2: one code a byte
    values = (codes & np.uint8(2**narrow - 1)).view(numpy_dtype(name))
    return values.astype(np.float32).view(np.int32)


@functools.lru_cache(maxsize=256)
def _way_of(dtype: np.dtype[np.generic]) -> tuple[type[np.generic], npt.NDArray[np.int32]] | None:
    """Return the type of the bits and the table, None where there are none."""
    if not is_stored_float(dtype):
        return None
    bits = _BITS.get(dtype.name)
    return (bits, _NO_TABLE) if bits is not None else (np.uint8, _byte_table(dtype.name))


def as_stored(values: Array) -> Stored | None:
    """Return the bits of floats of at most 32 bits, None for every other dtype."""
    way = _way_of(values.dtype)
    if way is None:
        return None
    bits, table = way
    return Stored(np.ascontiguousarray(values).view(bits), table)


def as_float64(values: Array) -> npt.NDArray[np.float64]:
    """Return values as contiguous float64; complex ones as real and imaginary parts in turn."""
    with np.errstate(invalid="ignore"):  # a signalling NaN is a NaN like any other
        if values.dtype.kind == "c":
            return np.ascontiguousarray(values, dtype=np.complex128).view(np.float64)
        return np.ascontiguousarray(values, dtype=np.float64)
