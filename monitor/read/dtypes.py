"""The dtypes that readers deliver, by their one spelling (NumPy's and ml_dtypes'), and how they lie in bytes."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import numpy.typing as npt

_NUMPY_NAMES = (
    *("float16", "float32", "float64", "complex64", "complex128", "bool"),
    *("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
)
_ML_DTYPES = (
    ml_dtypes.bfloat16,
    ml_dtypes.float8_e4m3fn,
    ml_dtypes.float8_e4m3fnuz,
    ml_dtypes.float8_e5m2,
    ml_dtypes.float8_e5m2fnuz,
    ml_dtypes.float8_e8m0fnu,
)

DTYPES: dict[str, np.dtype[np.generic]] = {name: np.dtype(name) for name in _NUMPY_NAMES} | {
    np.dtype(scalar_type).name: np.dtype(scalar_type) for scalar_type in _ML_DTYPES
}


def to_native(raw: npt.NDArray[np.uint8], dtype: np.dtype[np.generic], *, big_endian: bool) -> npt.NDArray[np.generic]:
    """Return the elements that lie in `raw`, in native byte order, in the same memory.

    `raw` is 1-D uint8 of a whole number of elements. Booleans are normalised: every byte that is not zero is True.
    """
    if dtype.kind == "b":
        values = raw.view(np.bool_)
        np.not_equal(raw, 0, out=values)
        return values
    part_bytes = dtype.itemsize // 2 if dtype.kind == "c" else dtype.itemsize
    if big_endian and part_bytes > 1:
        raw.view(np.dtype(f"u{part_bytes}")).byteswap(inplace=True)
    return raw.view(dtype)
