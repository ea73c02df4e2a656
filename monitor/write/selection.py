"""Which tensors of a checkpoint go into a copy of it, and as what. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import ml_dtypes
import numpy as np

from monitor.read.dtypes import DTYPES
from monitor.read.reader import TensorSpec, UnsupportedError
from storage.records import TensorKind

SAFETENSORS_DTYPES: Mapping[str, str] = {
    "bool": "BOOL",
    **{f"{kind}int{n}": f"{kind.upper() or 'I'}{n}" for kind in ("", "u") for n in (8, 16, 32, 64)},
    "float16": "F16",
    "bfloat16": "BF16",
    "float32": "F32",
    "float64": "F64",
    "complex64": "C64",
    "float8_e4m3fn": "F8_E4M3",
    "float8_e5m2": "F8_E5M2",
    "float8_e4m3fnuz": "F8_E4M3FNUZ",
    "float8_e5m2fnuz": "F8_E5M2FNUZ",
    "float8_e8m0fnu": "F8_E8M0",
}
NPZ_DTYPES = frozenset(name for name in DTYPES if not hasattr(ml_dtypes, name))
_NAMED_MAX = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """What is wanted: names that match one of `filters` (all, where there are none) and are of one of `kinds`.

    `upcast` lets values that the target format cannot hold be widened to float32; `skip_unreadable` leaves out tensors
    that have no values instead of refusing the whole.
    """

    filters: tuple[str, ...] = ()
    kinds: frozenset[TensorKind] = frozenset(TensorKind)
    upcast: bool = False
    skip_unreadable: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Selected:
    """One tensor that is to be written; `dtype` is what it is written as."""

    spec: TensorSpec
    dtype: str

    @property
    def size_bytes(self) -> int:
        """Return the bytes of its values in the copy."""
        return self.spec.n_elements * DTYPES[self.dtype].itemsize


def select(
    specs: Sequence[TensorSpec], selection: Selection, format_name: str
) -> tuple[tuple[Selected, ...], tuple[str, ...]]:
    """Return the tensors to be written to a file of the format, "safetensors" or "npz", and the names left out.

    Raises UnsupportedError when nothing is selected, when a tensor cannot be read, or when the format cannot hold one.
    """
    wanted = [s for s in specs if s.kind in selection.kinds and _is_named(s.name, selection.filters)]
    if not wanted:
        raise UnsupportedError("no tensor is selected; loosen --filter or --kinds")
    unreadable = [s for s in wanted if s.problem is not None]
    if unreadable and not selection.skip_unreadable:
        first = unreadable[0]
        raise UnsupportedError(
            f"{_some([s.name for s in unreadable])} cannot be read ({first.problem}); --skip-unreadable leaves such out"
        )
    readable = [s for s in wanted if s.problem is None]
    if not readable:
        raise UnsupportedError("none of the selected tensors can be read")
    return tuple(_selected(readable, selection, format_name)), tuple(s.name for s in unreadable)


def _selected(specs: Sequence[TensorSpec], selection: Selection, format_name: str) -> list[Selected]:
    held = NPZ_DTYPES if format_name == "npz" else frozenset(SAFETENSORS_DTYPES)
    foreign = [s for s in specs if s.dtype not in held]
    narrow = [s for s in foreign if hasattr(ml_dtypes, s.dtype)]
    if len(foreign) > len(narrow):
        wide = next(s for s in foreign if s not in narrow)
        raise UnsupportedError(f"{format_name} cannot hold {wide.dtype}, which {wide.name} is; export to the other one")
    if narrow and not selection.upcast:
        raise UnsupportedError(
            f"{format_name} cannot hold {narrow[0].dtype}, which {_some([s.name for s in narrow])} are; export to "
            "safetensors, or give --upcast to widen them to float32"
        )
    return [Selected(spec=s, dtype=s.dtype if s.dtype in held else np.dtype(np.float32).name) for s in specs]


def _is_named(name: str, filters: Sequence[str]) -> bool:
    return not filters or any(fnmatchcase(name, pattern) for pattern in filters)


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(names[:_NAMED_MAX])
    return shown if len(names) <= _NAMED_MAX else f"{shown} and {len(names) - _NAMED_MAX} more"
