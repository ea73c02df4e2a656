"""Measured to JSON and back, since results cross a pipe from a worker that a hostile file may have taken over.

The way out trusts; the way back trusts nothing: every type, range, length and relation is checked, and ValueError
says which field was wrong. Nothing else than Measured and PairResults crosses. Floats are finite or None; bytes are
base64.
"""

from __future__ import annotations

import base64
import binascii
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

import numpy as np

from monitor.measure.comparison import PairResult
from monitor.measure.histogram import BINS_PER_SIGN
from monitor.measure.measured import Measured, count_parameters
from monitor.measure.options import SKETCH_BUCKETS_MAX
from monitor.measure.sketch import to_array
from storage.records import Histogram, Sketch, TensorDrift, TensorKind, TensorSummary

TENSORS_MAX = 1_000_000
SCALARS_MAX = 100_000
TEXT_CHARACTERS_MAX = 4096
DIMENSIONS_MAX = 64
BINS_MAX = 2 * BINS_PER_SIGN + 1
QUANTILES_MAX = 64
_INTEGER_MAX = 2**63 - 1
_DTYPE_CHARACTERS_MAX = 64
_HASH_CHARACTERS = 64
_HEXADECIMAL = frozenset("0123456789abcdef")

_T = TypeVar("_T")


def measured_to_json(measured: Measured) -> dict[str, Any]:
    """Return a document of plain JSON types."""
    return {
        "format": measured.format,
        "step": measured.step,
        "epoch": measured.epoch,
        "scalars": dict(measured.scalars),
        "tensors": [_tensor_to_json(t) for t in measured.tensors],
        "exact_drifts": [_drift_to_json(d) for d in measured.exact_drifts],
        "bytes_read": measured.bytes_read,
        "n_parameters": measured.n_parameters,
    }


def pairs_to_json(results: Iterable[PairResult]) -> dict[str, Any]:
    """Return a document of plain JSON types."""
    return {
        "pairs": [
            {name: getattr(r, name) for name in PairResult.__slots__}
            | {"drift": None if r.drift is None else _drift_to_json(r.drift)}
            for r in results
        ]
    }


def pairs_from_json(document: object, new: Mapping[str, TensorSummary]) -> tuple[PairResult, ...]:
    """Return the pairs that a worker compared, `new` by name; ValueError when the document is anything else."""
    fields = _Fields(document, "compared", ("pairs",))
    found = []
    for place, item in enumerate(fields.items("pairs", TENSORS_MAX)):
        where = f"pairs[{place}]"
        pair = _Fields(item, where, tuple(PairResult.__slots__))
        name, drift = pair.text("name", empty=False), pair.raw("drift")
        if name not in new:
            raise ValueError(f"{where}.name: names no tensor of this checkpoint")
        found.append(
            PairResult(
                name=name,
                other_name=pair.text("other_name", empty=False),
                layout=pair.optional("layout", pair.text),
                drift=None if drift is None else _drift_from_json(drift, f"{where}.drift", {name: new[name]}),
                note=pair.optional("note", pair.text),
            )
        )
    return tuple(found)


def _drift_to_json(drift: TensorDrift) -> dict[str, Any]:
    return {name: getattr(drift, name) for name in TensorDrift.__slots__}


def _tensor_to_json(tensor: TensorSummary) -> dict[str, Any]:
    document = {name: getattr(tensor, name) for name in TensorSummary.__slots__}
    document["kind"] = tensor.kind.value
    document["shape"] = list(tensor.shape)
    document["quantiles"] = dict(tensor.quantiles)
    if tensor.histogram is not None:
        document["histogram"] = {
            "bin_indices": list(tensor.histogram.bin_indices),
            "counts": list(tensor.histogram.counts),
            "n_sampled": tensor.histogram.n_sampled,
            "exact": tensor.histogram.exact,
        }
    if tensor.sketch is not None:
        document["sketch"] = {
            "kind": tensor.sketch.kind,
            "n_buckets": tensor.sketch.n_buckets,
            "seed": tensor.sketch.seed,
            "dtype": tensor.sketch.dtype,
            "values": base64.b64encode(tensor.sketch.values).decode("ascii"),
        }
    return document


def measured_from_json(document: object) -> Measured:
    """Return the Measured that a worker sent; ValueError when the document is anything else than that."""
    fields = _Fields(document, "measured", tuple(Measured.__slots__))
    tensors = tuple(
        _tensor_from_json(item, f"tensors[{place}]") for place, item in enumerate(fields.items("tensors", TENSORS_MAX))
    )
    _check_tensors(tensors)
    by_name = {t.name: t for t in tensors}
    drifts = tuple(
        _drift_from_json(item, f"exact_drifts[{place}]", by_name)
        for place, item in enumerate(fields.items("exact_drifts", TENSORS_MAX))
    )
    if len({d.name for d in drifts}) != len(drifts):
        raise ValueError("exact_drifts: a tensor has one drift")
    n_parameters = fields.integer("n_parameters")
    if n_parameters != count_parameters(tensors):
        raise ValueError("n_parameters is not the number of elements of the parameters")
    return Measured(
        format=fields.text("format", 64, empty=False),
        step=fields.optional("step", lambda name: fields.integer(name, low=-_INTEGER_MAX)),
        epoch=fields.optional("epoch", fields.number),
        scalars=fields.numbers("scalars", SCALARS_MAX),
        tensors=tensors,
        exact_drifts=drifts,
        bytes_read=fields.integer("bytes_read"),
        n_parameters=n_parameters,
    )


class _Fields:
    """One JSON object whose fields are taken out with checks; `where` is its path in messages."""

    def __init__(self, document: object, where: str, names: tuple[str, ...]) -> None:
        if not isinstance(document, dict) or set(document) != set(names):
            raise ValueError(f"{where}: expected an object with exactly the fields {', '.join(names)}")
        self._document: dict[str, object] = document
        self._where = where

    def _wrong(self, name: str, expected: str) -> ValueError:
        return ValueError(f"{self._where}.{name}: expected {expected}")

    def raw(self, name: str) -> object:
        return self._document[name]

    def optional(self, name: str, take: Callable[[str], _T]) -> _T | None:
        return None if self._document[name] is None else take(name)

    def integer(self, name: str, *, low: int = 0, high: int = _INTEGER_MAX) -> int:
        value = self._document[name]
        if type(value) is not int or not low <= value <= high:
            raise self._wrong(name, f"an integer in {low}..{high}")
        return value

    def number(self, name: str, *, low: float = -math.inf, high: float = math.inf) -> float:
        return _number(self._document[name], f"{self._where}.{name}", low, high)

    def text(self, name: str, characters_max: int = TEXT_CHARACTERS_MAX, *, empty: bool = True) -> str:
        value = self._document[name]
        if not isinstance(value, str) or len(value) > characters_max or not value.isprintable() or not (value or empty):
            raise self._wrong(name, f"printable text of at most {characters_max} characters")
        return value

    def flag(self, name: str) -> bool:
        value = self._document[name]
        if not isinstance(value, bool):
            raise self._wrong(name, "true or false")
        return value

    def items(self, name: str, length_max: int) -> list[object]:
        value = self._document[name]
        if not isinstance(value, list) or len(value) > length_max:
            raise self._wrong(name, f"a list of at most {length_max} items")
        return value

    def integers(self, name: str, length_max: int, low: int, high: int) -> tuple[int, ...]:
        values = self.items(name, length_max)
        if not all(type(v) is int and low <= v <= high for v in values):
            raise self._wrong(name, f"integers in {low}..{high}")
        return tuple(v for v in values if isinstance(v, int))

    def numbers(self, name: str, length_max: int) -> dict[str, float]:
        value = self._document[name]
        if not isinstance(value, dict) or len(value) > length_max:
            raise self._wrong(name, f"an object of at most {length_max} numbers")
        for key in value:
            if not isinstance(key, str) or len(key) > TEXT_CHARACTERS_MAX or not key.isprintable():
                raise self._wrong(name, "printable keys")
        return {key: _number(v, f"{self._where}.{name}", -math.inf, math.inf) for key, v in value.items()}


def _number(value: object, where: str, low: float, high: float) -> float:
    if type(value) is int and abs(value) <= _INTEGER_MAX:
        value = float(value)
    if type(value) is not float or not math.isfinite(value) or not low <= value <= high:
        raise ValueError(f"{where}: expected a finite number in {low}..{high}")
    return value


def _tensor_from_json(document: object, where: str) -> TensorSummary:
    fields = _Fields(document, where, tuple(TensorSummary.__slots__))
    kind = fields.text("kind")
    if kind not in set(TensorKind):
        raise ValueError(f"{where}.kind: unknown kind")
    sketch, histogram = fields.raw("sketch"), fields.raw("histogram")
    tensor = TensorSummary(
        name=fields.text("name", empty=False),
        kind=TensorKind(kind),
        dtype=fields.text("dtype", _DTYPE_CHARACTERS_MAX, empty=False),
        shape=fields.integers("shape", DIMENSIONS_MAX, 0, _INTEGER_MAX),
        position=fields.integer("position", high=TENSORS_MAX),
        n_elements=fields.integer("n_elements"),
        n_nan=fields.integer("n_nan"),
        n_posinf=fields.integer("n_posinf"),
        n_neginf=fields.integer("n_neginf"),
        n_zero=fields.integer("n_zero"),
        min=fields.optional("min", fields.number),
        max=fields.optional("max", fields.number),
        mean=fields.optional("mean", fields.number),
        std=fields.optional("std", lambda name: fields.number(name, low=0.0)),
        norm_l1=fields.optional("norm_l1", lambda name: fields.number(name, low=0.0)),
        norm_l2=fields.optional("norm_l2", lambda name: fields.number(name, low=0.0)),
        abs_max=fields.optional("abs_max", lambda name: fields.number(name, low=0.0)),
        quantiles=fields.numbers("quantiles", QUANTILES_MAX),
        histogram=None if histogram is None else _histogram_from_json(histogram, f"{where}.histogram"),
        sketch=None if sketch is None else _sketch_from_json(sketch, f"{where}.sketch"),
        tied_to=fields.optional("tied_to", lambda name: fields.text(name, empty=False)),
        problem=fields.optional("problem", fields.text),
        content_hash=fields.optional("content_hash", lambda name: fields.text(name, _HASH_CHARACTERS)),
    )
    _check_tensor(tensor, where)
    return tensor


def _check_tensor(tensor: TensorSummary, where: str) -> None:
    """Refuse a tensor whose numbers contradict each other."""
    if math.prod(tensor.shape) != tensor.n_elements:
        raise ValueError(f"{where}: n_elements is not the product of the shape")
    if tensor.n_nonfinite + tensor.n_zero > tensor.n_elements:
        raise ValueError(f"{where}: more elements counted than there are")
    hashed = tensor.content_hash
    if hashed is not None and (tensor.problem is None or len(hashed) != _HASH_CHARACTERS or set(hashed) - _HEXADECIMAL):
        raise ValueError(f"{where}.content_hash: expected 64 hexadecimal digits, of a tensor with a problem")
    if (tensor.min is None) != (tensor.max is None):
        raise ValueError(f"{where}: min and max are known together or not at all")
    if tensor.min is not None and tensor.max is not None and tensor.min > tensor.max:
        raise ValueError(f"{where}: min is above max")
    if tensor.histogram is not None and tensor.histogram.n_sampled > 2 * tensor.n_elements:  # complex has two parts
        raise ValueError(f"{where}: more elements in the histogram than there are")
    if tensor.sketch is not None and tensor.sketch.kind == "raw":
        width = 4 if tensor.sketch.dtype == "float32" else 8
        parts = 2 if tensor.dtype.startswith("complex") else 1
        if len(tensor.sketch.values) != width * parts * tensor.n_elements:
            raise ValueError(f"{where}: a raw sketch holds every element")


def _check_tensors(tensors: tuple[TensorSummary, ...]) -> None:
    """Refuse tensors out of order, of one name, or tied to one that does not come earlier."""
    earlier: set[str] = set()
    for place, tensor in enumerate(tensors):
        if tensor.position != place or tensor.name in earlier:
            raise ValueError(f"tensors[{place}]: positions count up from 0 and names are unique")
        if tensor.tied_to is not None and tensor.tied_to not in earlier:
            raise ValueError(f"tensors[{place}].tied_to: names no earlier tensor")
        earlier.add(tensor.name)


def _histogram_from_json(document: object, where: str) -> Histogram:
    fields = _Fields(document, where, tuple(Histogram.__slots__))
    indices = fields.integers("bin_indices", BINS_MAX, -BINS_PER_SIGN, BINS_PER_SIGN)
    counts = fields.integers("counts", BINS_MAX, 1, _INTEGER_MAX)
    if len(indices) != len(counts) or list(indices) != sorted(set(indices)):
        raise ValueError(f"{where}: expected one count for each bin, bins in increasing order")
    n_sampled = fields.integer("n_sampled")
    if n_sampled != sum(counts):
        raise ValueError(f"{where}.n_sampled: is not the sum of the counts")
    return Histogram(bin_indices=indices, counts=counts, n_sampled=n_sampled, exact=fields.flag("exact"))


def _sketch_from_json(document: object, where: str) -> Sketch:
    fields = _Fields(document, where, tuple(Sketch.__slots__))
    kind, dtype = fields.text("kind"), fields.text("dtype")
    n_buckets = fields.integer("n_buckets", low=2, high=SKETCH_BUCKETS_MAX)
    encoded = fields.text("values", 4 * SKETCH_BUCKETS_MAX * 8, empty=True)
    if kind not in ("raw", "sketch") or dtype not in ("float32", "float64"):
        raise ValueError(f"{where}: unknown kind or dtype")
    try:
        values = base64.b64decode(encoded, validate=True)
    except binascii.Error as error:
        raise ValueError(f"{where}.values: expected base64") from error
    width = 4 if dtype == "float32" else 8
    length_ok = len(values) == width * n_buckets if kind == "sketch" else len(values) <= width * n_buckets
    if not length_ok or len(values) % width:
        raise ValueError(f"{where}.values: the length does not fit {n_buckets} buckets of {dtype}")
    sketch = Sketch(kind=kind, n_buckets=n_buckets, seed=fields.integer("seed"), dtype=dtype, values=values)
    if not np.isfinite(to_array(sketch)).all():
        raise ValueError(f"{where}.values: expected finite numbers")
    return sketch


def _drift_from_json(document: object, where: str, tensors: Mapping[str, TensorSummary]) -> TensorDrift:
    fields = _Fields(document, where, tuple(TensorDrift.__slots__))
    name = fields.text("name", empty=False)
    if name not in tensors:
        raise ValueError(f"{where}.name: names no tensor of this checkpoint")
    if fields.raw("method") != "exact":
        raise ValueError(f"{where}.method: a worker sends exact drift only")

    def positive(field: str) -> float:
        return fields.number(field, low=0.0)

    return TensorDrift(
        name=name,
        reference_step=fields.optional("reference_step", lambda field: fields.integer(field, low=-_INTEGER_MAX)),
        method="exact",
        difference_l2=fields.optional("difference_l2", positive),
        relative_l2=fields.optional("relative_l2", positive),
        cosine_distance=fields.optional("cosine_distance", lambda field: fields.number(field, low=0.0, high=2.0)),
        max_abs_difference=fields.optional("max_abs_difference", positive),
        n_changed=fields.optional("n_changed", lambda field: fields.integer(field, high=tensors[name].n_elements)),
    )
