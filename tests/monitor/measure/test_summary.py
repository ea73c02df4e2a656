from __future__ import annotations

import itertools
import math
import random
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from monitor.measure.options import MeasureOptions
from monitor.measure.summary import SummaryBuilder
from storage.records import TensorKind
from tests.support.measuring import FLOATS, OPTIONS, Array, assert_equals_numpy, builder_of, dtype_of, finish, summarise

SIZES = (0, 1, 7, 1020, 1021, 1022, 4084, 4085, 12_345)
INTEGERS = ("int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64", "int4", "uint4", "bool")
BYTE_FLOATS = tuple(n for n in dir(ml_dtypes) if n.startswith("float") and n[5] in "468")


def _random(size: int, seed: int = 0) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    return np.random.default_rng(seed).standard_normal(size)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("size", SIZES)
def test_floats_of_every_size_equal_numpy(dtype: str, size: int) -> None:
    values = (_random(size) * 3).astype(dtype_of(dtype))
    assert_equals_numpy(summarise(values), values)


@pytest.mark.parametrize("dtype", INTEGERS)
def test_integers_and_bool_equal_numpy(dtype: str) -> None:
    values = (np.abs(_random(9000)) * 3).astype(np.int64).astype(dtype_of(dtype))
    summary = summarise(values)
    assert_equals_numpy(summary, values)
    assert summary.dtype == dtype


@pytest.mark.parametrize("dtype", FLOATS)
def test_elements_that_are_not_finite_are_counted_apart_and_left_out(dtype: str) -> None:
    values = _random(20_000).astype(dtype_of(dtype))
    values[::7] = math.nan
    if dtype not in ("float8_e4m3fn", "float8_e4m3fnuz"):  # no infinities there
        values[1::7], values[2::11] = math.inf, -math.inf
    values[3::7] = 0.0
    assert_equals_numpy(summarise(values), values)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_every_sixteen_bit_pattern_is_decoded_exactly(dtype: str) -> None:
    values = np.arange(2**16, dtype=np.uint16).view(dtype_of(dtype))
    assert_equals_numpy(summarise(values), values)
    for start in range(0, 2**16, 1021):  # raw sketches hold what was decoded
        piece = values[start : start + 1021]
        sketch = summarise(piece).sketch
        assert sketch is not None
        with np.errstate(invalid="ignore"):
            wide = piece.astype(np.float32)
        np.testing.assert_array_equal(np.frombuffer(sketch.values, "<f4"), np.where(np.isfinite(wide), wide, 0))


@pytest.mark.parametrize("dtype", BYTE_FLOATS)
def test_every_code_of_a_small_float_is_decoded_exactly(dtype: str) -> None:
    codes = np.arange(2 ** int(dtype[5]), dtype=np.uint8).view(dtype_of(dtype))
    values = np.tile(codes, 60)
    summary = summarise(values)
    assert_equals_numpy(summary, values)
    assert summary.dtype == dtype


TINY = float(np.finfo(np.float32).smallest_subnormal)
HARD: dict[str, Array] = {
    "all NaN": np.full(5000, math.nan, np.float32),
    "alternating infinities": np.tile(np.array([math.inf, -math.inf], np.float32), 4000),
    "one finite among NaN": np.where(np.arange(5000) == 4321, 2.5, math.nan).astype(np.float32),
    "float32 squares overflow": (_random(9000) * 1e37).astype(np.float32),
    "largest float32": np.full(9000, np.finfo(np.float32).max, np.float32),
    "smallest float32": np.full(9000, np.finfo(np.float32).min, np.float32),
    "float32 squares underflow": (_random(9000) * 1e-25).astype(np.float32),
    "subnormals": (np.arange(9000) % 100 * TINY).astype(np.float32),
    "one subnormal among zeros": np.where(np.arange(9000) == 17, TINY, 0).astype(np.float32),
    "zeros": np.zeros(9000, np.float32),
    "negative zeros": np.full(9000, -0.0, np.float32),
    "constant": np.full(9000, 0.1, np.float32),
    "nearly constant": np.where(np.arange(9000) % 2, 0.1, np.nextafter(np.float32(0.1), np.float32(1))).astype(
        np.float32
    ),
    "all negative": -np.abs(_random(9000)).astype(np.float32) - 1,
    "cancelling sum": np.tile(np.array([1e8, -1e8, 1.0], np.float32), 3000),
    "mean far above std": (1e4 + _random(50_000) * 1e-2).astype(np.float32),
    "first element far out": np.concatenate([[1e6], 1 + _random(9000) * 1e-3]).astype(np.float32),
    "first row far out": np.concatenate([np.full(1021, 1e6), 1 + _random(9000) * 1e-3]).astype(np.float32),
    "rows of very different scale": (_random(20_420) * 10.0 ** (np.arange(20_420) // 1021 - 12)).astype(np.float32),
    "ramp": np.linspace(-3, 1000, 30_000).astype(np.float32),
    "shifting mean": (np.arange(40_840) // 1021 * 100 + _random(40_840)).astype(np.float32),
    "float64 mean far above std": 1e9 + _random(50_000),
    "float64 tiny": _random(5000) * 1e-150,
    "float64 with subnormals": np.arange(5000) * 5e-324,
    "float64 all NaN": np.full(5000, math.nan),
    "float16 subnormals": (np.arange(5000) % 50 * 6e-8).astype(np.float16),
    "bfloat16 large": (_random(9000) * 1e37).astype(ml_dtypes.bfloat16),
    "bfloat16 all negative": (-np.abs(_random(9000)) - 1).astype(ml_dtypes.bfloat16),
}


@pytest.mark.parametrize("case", HARD)
def test_hard_values_equal_numpy(case: str) -> None:
    assert_equals_numpy(summarise(HARD[case]), HARD[case])


def test_a_norm_beyond_float64_is_none_and_never_infinite() -> None:
    summary = summarise(np.tile(np.array([1.7e308, -1.7e308]), 3000))
    assert (summary.n_nonfinite, summary.min, summary.max) == (0, -1.7e308, 1.7e308)
    assert (summary.norm_l1, summary.norm_l2, summary.std) == (None, None, None)


@st.composite
def _split_arrays(draw: st.DrawFn) -> tuple[Array, list[int]]:
    dtype = draw(st.sampled_from(FLOATS))
    size = draw(st.integers(0, 9000))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    scale = draw(st.sampled_from([1e-3, 1.0, 100.0]))
    shift = draw(st.sampled_from([0.0, 50.0]))
    values = np.clip(rng.standard_normal(size) * scale + shift, -400, 400).astype(dtype_of(dtype))
    for special in draw(st.lists(st.sampled_from([0.0, math.nan]), max_size=2)):
        values[rng.random(size) < draw(st.sampled_from([0.001, 0.3]))] = special
    cuts = draw(st.lists(st.integers(0, size), max_size=6))
    return values, cuts


@settings(deadline=None, max_examples=60)
@given(_split_arrays(), st.randoms(use_true_random=False))
def test_any_split_and_merge_in_any_order_gives_the_numpy_answer(
    split: tuple[Array, list[int]], shuffler: random.Random
) -> None:
    values, cuts = split
    edges = [0, *sorted(cuts), values.size]
    builders = []
    for start, end in itertools.pairwise(edges):
        builder = SummaryBuilder(values.dtype.name, values.size, OPTIONS)
        builder.update(start, values[start:end])
        builders.append(builder)
    shuffler.shuffle(builders)
    merged = builders[0]
    for builder in builders[1:]:
        merged.merge(builder)
    whole, cut, joined = summarise(values), summarise(values, cuts), finish(merged)
    for summary in (whole, cut, joined):
        assert_equals_numpy(summary, values)
        assert summary.histogram == whole.histogram
        assert summary.sketch is not None
        assert whole.sketch is not None
        np.testing.assert_allclose(
            np.frombuffer(summary.sketch.values, summary.sketch.dtype),
            np.frombuffer(whole.sketch.values, whole.sketch.dtype),
            rtol=0,
            atol=1e-6 * max(whole.norm_l2 or 0.0, 1e-30),
        )


SPECIAL = ("subnormals", "all NaN", "alternating infinities", "cancelling sum", "subnormals among ones", "the largest")


def _special(kind: str, dtype: str, size: int) -> Array:
    """Return values of the ends of a dtype's range; more than eight groups of sketch rows."""
    info, place = ml_dtypes.finfo(dtype_of(dtype)), np.arange(size)  # type: ignore[no-untyped-call]
    tiny, largest, infinity = float(info.smallest_subnormal), float(info.max), math.inf
    if "fnuz" in dtype or dtype == "float8_e4m3fn":
        infinity = math.nan  # it has none
    wide: dict[str, npt.NDArray[Any]] = {
        "subnormals": (place % 4 - 2) * tiny,
        "all NaN": np.full(size, math.nan),
        "alternating infinities": np.where(place % 2, infinity, -infinity),
        "cancelling sum": np.choose(place % 3, [largest / 4, -largest / 4, 1.0]),
        "subnormals among ones": np.where(place % 5, tiny, 1.0),
        "the largest": np.where(place // 5000 % 2, largest, 1.0),
    }
    return wide[kind].astype(dtype_of(dtype))


@pytest.mark.parametrize("dtype", [name for name in FLOATS if name != "float64"])
@pytest.mark.parametrize("kind", SPECIAL)
def test_the_ends_of_every_float_equal_numpy_under_any_split(dtype: str, kind: str) -> None:
    values = _special(kind, dtype, 45_001)
    cuts = sorted(random.Random(f"{dtype} {kind}").sample(range(45_001), 4))
    for chosen in ([], cuts, [4084], [1021, 8168]):
        assert_equals_numpy(summarise(values, chosen), values)


def test_complex_moments_are_over_both_parts_and_counts_over_elements() -> None:
    values = (_random(6000) + 1j * _random(6000, seed=1)).astype(np.complex64)
    values[10], values[11], values[12], values[13] = complex(math.nan, 1), complex(1, math.inf), -math.inf, 0
    summary = summarise(values)
    finite = values[np.isfinite(values)]
    parts = finite.view(np.float32).astype(np.float64)
    assert (summary.n_nan, summary.n_posinf, summary.n_neginf, summary.n_zero) == (1, 1, 1, 1)
    assert summary.norm_l2 == pytest.approx(float(np.linalg.norm(finite.astype(np.complex128))), rel=1e-9)
    assert (summary.min, summary.max) == (parts.min(), parts.max())
    assert summary.mean == pytest.approx(parts.mean(), rel=1e-9)
    assert summary.std == pytest.approx(parts.std(), rel=1e-9)


def test_integers_beyond_two_to_the_53_keep_their_magnitude() -> None:
    values = np.array([2**63 - 1, -(2**63), 0], dtype=np.int64)
    summary = summarise(values)
    assert (summary.min, summary.max, summary.n_zero) == (-(2.0**63), 2.0**63, 1)


def test_negative_zero_is_reported_as_zero() -> None:
    summary = summarise(np.full(10, -0.0, np.float32))
    assert [math.copysign(1.0, v) for v in (summary.min, summary.max) if v is not None] == [1.0, 1.0]


def test_an_empty_tensor_has_counts_of_zero_and_no_numbers() -> None:
    summary = summarise(np.empty(0, np.float32))
    assert (summary.n_elements, summary.n_zero, summary.mean, summary.quantiles) == (0, 0, None, {})
    assert summary.sketch is not None
    assert summary.sketch.values == b""


def test_without_histogram_there_are_no_quantiles() -> None:
    summary = summarise(_random(5000).astype(np.float32), options=MeasureOptions(histogram=False))
    assert summary.histogram is None
    assert summary.quantiles == {}


def test_an_unfinished_tensor_is_refused() -> None:
    builder = SummaryBuilder("float32", 10, OPTIONS)
    builder.update(0, np.zeros(4, np.float32))
    with pytest.raises(ValueError, match="saw 4 of 10"):
        builder.finish(name="w", kind=TensorKind.PARAMETER, shape=(10,), position=0)


@pytest.mark.parametrize(
    ("offset", "values"),
    [
        (0, np.zeros(3, np.float64)),
        (0, np.zeros((1, 3), np.float32)),
        (8, np.zeros(3, np.float32)),
        (-1, np.zeros(3, np.float32)),
    ],
)
def test_values_of_another_dtype_shape_or_place_are_refused(offset: int, values: Array) -> None:
    with pytest.raises(ValueError, match=r"expected|outside"):
        SummaryBuilder("float32", 10, OPTIONS).update(offset, values)


@pytest.mark.parametrize("other", [("float64", 10, OPTIONS), ("float32", 11, OPTIONS)])
def test_builders_of_different_tensors_do_not_merge(other: tuple[str, int, MeasureOptions]) -> None:
    with pytest.raises(ValueError, match="same tensor"):
        SummaryBuilder("float32", 10, OPTIONS).merge(SummaryBuilder(*other))


@pytest.mark.parametrize(
    "name", ["object", "str", "S4", "datetime64", "V8", "nonsense", "__class__", "iinfo", "f4,i4", ""]
)
def test_what_is_not_a_numeric_dtype_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="dtype"):
        SummaryBuilder(name, 1, OPTIONS)


def test_values_that_do_not_lie_together_in_memory_are_measured_all_the_same() -> None:
    values = _random(9000).astype(np.float32)[::2]
    assert_equals_numpy(finish(builder_of(values)), values)


def test_another_number_of_buckets_changes_no_statistic() -> None:
    values = (_random(30_000) + 5).astype(np.float32)
    for n_buckets in (2, 97, 8191):
        assert_equals_numpy(summarise(values, options=MeasureOptions(sketch_buckets=n_buckets)), values)
