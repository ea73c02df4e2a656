"""How well drift is estimated from sketches, over hundreds of changes of every structure; and for unlucky shapes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file

from monitor.measure import sketch
from monitor.measure.drift import sketch_drift
from monitor.measure.options import MeasureOptions
from monitor.measure.snapshot import measure_path
from tests.support.measuring import summarise

K = 1021
SIGMA = 1 / math.sqrt(2 * K)
# More rows or columns than buckets, so that rows and columns collide too; and shapes whose strides share factors with
# the number of buckets or lie next to it.
SHAPES = ((200, 700), (40, 4000), (4000, 40), (150, K), (80, 3 * K), (90, 2 * K), (150, K + 1), (K + 50, 90))
CHANGES_OF_A_KIND = 48

Matrix = npt.NDArray[np.float64]
Generator = np.random.Generator


def dense(rng: Generator, shape: tuple[int, int]) -> Matrix:
    return rng.standard_normal(shape)


def one_row(rng: Generator, shape: tuple[int, int]) -> Matrix:
    change = np.zeros(shape)
    change[rng.integers(shape[0])] = rng.standard_normal(shape[1])
    return change


def one_column(rng: Generator, shape: tuple[int, int]) -> Matrix:
    change = np.zeros(shape)
    change[:, rng.integers(shape[1])] = rng.standard_normal(shape[0])
    return change


def one_element(rng: Generator, shape: tuple[int, int]) -> Matrix:
    change = np.zeros(shape)
    change[rng.integers(shape[0]), rng.integers(shape[1])] = 1.0
    return change


def low_rank(rng: Generator, shape: tuple[int, int]) -> Matrix:
    rank = int(rng.integers(1, 4))
    found: Matrix = rng.standard_normal((shape[0], rank)) @ rng.standard_normal((rank, shape[1]))
    return found


KINDS = (dense, one_row, one_column, one_element, low_rank)


def ratios(change_of: Callable[[Generator, tuple[int, int]], Matrix], shapes: Sequence[tuple[int, int]]) -> Matrix:
    """Return estimate over truth for CHANGES_OF_A_KIND changes of random size, each with signs of its own."""
    rng = np.random.default_rng(20_261)
    olds = {shape: rng.standard_normal(shape).astype(np.float32) for shape in shapes}
    found = []
    for number in range(CHANGES_OF_A_KIND):
        shape = shapes[number % len(shapes)]
        old = olds[shape]
        new = (old + 10.0 ** rng.uniform(-2, 0) * change_of(rng, shape)).astype(np.float32)
        options = MeasureOptions(histogram=False, sketch_seed=number).for_shape(shape)
        a, b = summarise(new, options=options).sketch, summarise(old, options=options).sketch
        assert a is not None
        assert b is not None
        truth = float(np.linalg.norm(new.astype(np.float64) - old))
        found.append(sketch.difference_l2(a, b) / truth)
    return np.array(found)


@pytest.fixture(scope="module")
def all_ratios() -> dict[str, Matrix]:
    return {kind.__name__: ratios(kind, SHAPES) for kind in KINDS}


def test_every_estimate_lies_within_four_standard_deviations(all_ratios: dict[str, Matrix]) -> None:
    found = np.concatenate(list(all_ratios.values()))
    assert found.size >= 200
    assert float(np.abs(found - 1).max()) <= 4 * SIGMA


def test_ninety_five_in_a_hundred_lie_within_five_percent(all_ratios: dict[str, Matrix]) -> None:
    for kind, found in all_ratios.items():
        assert float(np.mean(np.abs(found - 1) <= 0.05)) >= 0.95, kind
    assert float(np.mean(np.abs(np.concatenate(list(all_ratios.values())) - 1) <= 0.05)) >= 0.95


def test_the_squared_distance_has_no_bias(all_ratios: dict[str, Matrix]) -> None:
    for kind, found in {**all_ratios, "all": np.concatenate(list(all_ratios.values()))}.items():
        errors = found**2 - 1
        standard_error = float(np.std(errors)) / math.sqrt(errors.size)
        assert abs(float(np.mean(errors))) <= 3 * standard_error + 1e-6, kind


def test_without_the_right_buckets_a_column_of_an_unlucky_matrix_would_be_lost() -> None:
    """The control: what `for_shape` is for."""
    old, new = np.zeros((300, K), np.float32), np.zeros((300, K), np.float32)
    new[:, 5] = np.random.default_rng(1).standard_normal(300)
    errors = []
    for seed in range(20):
        options = MeasureOptions(histogram=False, sketch_seed=seed)
        a, b = summarise(new, options=options).sketch, summarise(old, options=options).sketch
        assert a is not None
        assert b is not None
        errors.append(sketch.difference_l2(a, b) / float(np.linalg.norm(new)) - 1)
    assert float(np.sqrt(np.mean(np.square(errors)))) > 10 * SIGMA


@given(
    st.lists(st.sampled_from([1, 2, 3, 16, 241, 251, 1013, 1019, 1021, 2042, 4093, 4096]), max_size=5),
    st.sampled_from([251, 1021, 4093]),
)
def test_the_buckets_divide_no_stride_and_stay_near_what_was_asked_for(shape: list[int], n_buckets: int) -> None:
    options = MeasureOptions(sketch_buckets=n_buckets)
    chosen = options.for_shape(shape)
    strides = [math.prod(shape[axis + 1 :]) for axis, size in enumerate(shape) if size > 1]
    assert all(stride % chosen.sketch_buckets for stride in strides)
    assert n_buckets - 40 <= chosen.sketch_buckets <= n_buckets
    if all(size % n_buckets for size in shape):
        assert chosen is options


def test_shapes_without_elements_or_axes_keep_the_buckets() -> None:
    options = MeasureOptions()
    for shape in ((), (0,), (K, 0), (1, K), (K, 1)):
        assert options.for_shape(shape) is options


def test_one_column_of_an_unlucky_matrix_in_a_file_is_found_to_have_moved(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    old = rng.standard_normal((700, K)).astype(np.float32)
    new = old.copy()
    new[:, 77] += rng.standard_normal(700).astype(np.float32)
    for name, values in (("old", old), ("new", new)):
        save_file({"w": values, "b": np.ones(3, np.float32)}, tmp_path / name)
    before, after = (measure_path(str(tmp_path / name), MeasureOptions()).tensors for name in ("old", "new"))
    drift = next(sketch_drift(a, b, 1) for a, b in zip(after, before, strict=True) if a.name == "w")
    assert drift is not None
    truth = float(np.linalg.norm(new.astype(np.float64) - old))
    assert drift.difference_l2 == pytest.approx(truth, rel=4 * SIGMA)
