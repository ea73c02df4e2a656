"""How stored values become float32 in the compiled loops, and the hash that gives sketches their signs.

Compiled code; knows single values and blocks of them, no statistics.
"""

from __future__ import annotations

import numpy as np
from numba import types
from numba.extending import overload

from monitor.measure.kernel.compiling import exact_jit, jit

U64 = np.uint64
SIGN32 = np.int32(-0x80000000)
INFINITE32 = np.int32(0x7F800000)
_HALF_FIELDS = np.int32(-0x70002000)  # the sign and, 13 places up, exponent and mantissa of a float16
_GOLDEN64 = np.uint64(0x9E3779B97F4A7C15)
_MIX1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX2 = np.uint64(0x94D049BB133111EB)


@exact_jit
def mix64(x):  # type: ignore[no-untyped-def]
    """Return the splitmix64 finaliser; see monitor.measure.sketch.mix64."""
    x = (x ^ (x >> U64(30))) * _MIX1
    x = (x ^ (x >> U64(27))) * _MIX2
    return x ^ (x >> U64(31))


@exact_jit
def group_key(seed, group):  # type: ignore[no-untyped-def]
    """Return the 64-bit hash key of one group of rows (or one stratum)."""
    return mix64(U64(seed) + (U64(group) + U64(1)) * _GOLDEN64)


@jit
def half_bits(raw):  # type: ignore[no-untyped-def]
    """Return the float32 bits of any float16.

    The fields are moved and rebiased by a multiplication, which is exact, for subnormals too; inf and NaN stay.
    """
    wide = np.int32(raw)
    shifted = np.int32((wide & np.int32(0x7FFF)) << np.int32(13))
    scaled = np.float32(shifted.view(np.float32) * np.float32(2.0**112)).view(np.int32)
    special = np.int32(wide & np.int32(0x7C00)) == np.int32(0x7C00)
    magnitude = np.int32(shifted | INFINITE32) if special else scaled
    return np.int32(magnitude | np.int32(wide & SIGN32))


def _bits32(raw, table):  # type: ignore[no-untyped-def]
    """Return the float32 bit pattern of one stored value; the type of `raw` says how it is stored."""
    raise NotImplementedError("compiled code only")


@overload(_bits32)
def _bits32_overload(raw, table):  # type: ignore[no-untyped-def]  # noqa: ARG001
    if raw == types.int32:  # float32
        return lambda raw, table: raw  # noqa: ARG005
    if raw == types.uint16:  # bfloat16: the upper half of a float32
        return lambda raw, table: np.int32(np.int32(raw) << np.int32(16))  # noqa: ARG005
    if raw == types.int16:  # float16
        return lambda raw, table: half_bits(raw)  # noqa: ARG005
    if raw == types.uint8:  # any 8-bit float, by table
        return lambda raw, table: table[raw]
    return None


def widen(raw):  # type: ignore[no-untyped-def]
    """Return the float32 bits of what the fast loops take as it is stored: float32, bfloat16, finite float16."""
    raise NotImplementedError("compiled code only")


def _widen_finite_half(raw):  # type: ignore[no-untyped-def]
    moved = np.int32(np.int32(np.int32(raw) << np.int32(13)) & _HALF_FIELDS)
    return np.float32(moved.view(np.float32) * np.float32(2.0**112)).view(np.int32)


@overload(widen, inline="always")
def _widen_overload(raw):  # type: ignore[no-untyped-def]
    if raw == types.uint16:
        return lambda raw: np.int32(np.int32(raw) << np.int32(16))
    if raw == types.int16:
        return _widen_finite_half
    return lambda raw: raw


@jit
def float32(raw):  # type: ignore[no-untyped-def]
    """Return one float32, bfloat16 or finite float16 value as float32."""
    return np.int32(widen(raw)).view(np.float32)  # type: ignore[no-untyped-call]


@jit
def signed(raw, h):  # type: ignore[no-untyped-def]
    """Return the value with its sign flipped where the top bit of the hash is set."""
    return np.int32(widen(raw) ^ np.int32(h & SIGN32)).view(np.float32)  # type: ignore[no-untyped-call]


@jit
def decode(raw, table, row):  # type: ignore[no-untyped-def]
    """Write the float32 bits of stored values of any kind to the front of `row`."""
    for i in range(raw.size):
        row[i] = _bits32(raw[i], table)  # type: ignore[no-untyped-call]
