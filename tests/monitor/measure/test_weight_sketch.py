"""One sketch of all parameters: what it is worth, and when two of them may be compared."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import pytest

from monitor.measure import sketch
from monitor.measure.options import MeasureOptions
from monitor.measure.weight_sketch import weight_sketch
from storage.records import Sketch, TensorKind, TensorSummary
from tests.support.measuring import summarise

K = 1021
Weights = Mapping[str, npt.NDArray[np.float32]]


def summaries(weights: Weights, seed: int = 0) -> list[TensorSummary]:
    options = MeasureOptions(histogram=False, sketch_seed=seed)
    return [summarise(values, options=options, name=name) for name, values in weights.items()]


def sketch_of(weights: Weights, seed: int = 0) -> Sketch:
    found = weight_sketch(summaries(weights, seed))
    assert found is not None
    return found


def random_weights(seed: int, n_tensors: int = 12) -> dict[str, npt.NDArray[np.float32]]:
    rng = np.random.default_rng(seed)
    return {f"layers.{i}.weight": rng.standard_normal(300 * (i + 1)).astype(np.float32) for i in range(n_tensors)}


def norm_of(weights: Weights) -> float:
    return math.sqrt(sum(float(np.sum(values.astype(np.float64) ** 2)) for values in weights.values()))


def change_all(weights: Weights) -> Weights:
    rng = np.random.default_rng(5)
    return {n: (w + 1e-3 * rng.standard_normal(w.size)).astype(np.float32) for n, w in weights.items()}


def change_one(weights: Weights) -> Weights:
    rng = np.random.default_rng(6)
    return {
        n: (w + rng.standard_normal(w.size)).astype(np.float32) if n.endswith("7.weight") else w
        for n, w in weights.items()
    }


def shift_all(weights: Weights) -> Weights:
    return {n: w + np.float32(0.01) for n, w in weights.items()}


@pytest.mark.parametrize("change", [change_all, change_one, shift_all])
def test_the_distance_of_all_parameters_is_estimated_without_bias(change: object) -> None:
    assert callable(change)
    old = random_weights(1)
    new = change(old)
    truth = norm_of({name: new[name].astype(np.float64) - old[name] for name in old})
    found = [sketch.difference_l2(sketch_of(new, seed), sketch_of(old, seed)) / truth for seed in range(60)]
    expected = 1 / math.sqrt(2 * K)
    assert math.sqrt(float(np.mean((np.array(found) - 1) ** 2))) < 1.35 * expected
    assert abs(float(np.mean(np.square(found))) - 1) < 4 * 2 * expected / math.sqrt(len(found))


def test_weights_that_fit_into_the_buckets_are_compared_exactly() -> None:
    old = {"w": np.arange(600, dtype=np.float32), "b": np.ones(400, np.float32)}
    new = {"w": old["w"] + 1, "b": old["b"] * 3}
    truth = norm_of({name: new[name] - old[name] for name in old})
    assert sketch.difference_l2(sketch_of(new), sketch_of(old)) == pytest.approx(truth, rel=1e-12)
    assert sketch.norm(sketch_of(new)) == pytest.approx(norm_of(new), rel=1e-12)


def test_order_dtype_and_everything_but_parameters_do_not_matter() -> None:
    weights = random_weights(2)
    tensors = summaries(weights)
    others = [
        dataclasses.replace(tensors[0], name="running_mean", kind=TensorKind.BUFFER),
        dataclasses.replace(tensors[0], name="head.weight", tied_to=tensors[0].name),
        summarise(np.empty(0, np.float32), name="empty"),
    ]
    assert weight_sketch([*others, *reversed(tensors)]) == weight_sketch(tensors)
    wide = sketch_of({name: values.astype(np.float64) for name, values in weights.items()})
    assert wide.dtype == "float64"
    assert sketch.difference_l2(wide, sketch_of(weights)) < 1e-6 * norm_of(weights)


def test_other_names_shapes_or_seeds_make_sketches_that_are_not_compared() -> None:
    weights = random_weights(3)
    renamed = {f"module.{name}": values for name, values in weights.items()}
    fewer = dict(list(weights.items())[:-1])
    reshaped = [dataclasses.replace(t, shape=(2, t.n_elements // 2)) for t in summaries(weights)]
    for other in (sketch_of(renamed), sketch_of(fewer), sketch_of(weights, seed=1), weight_sketch(reshaped)):
        assert other is not None
        assert not sketch.comparable(other, sketch_of(weights))


def test_weights_that_are_not_all_known_and_finite_have_no_sketch() -> None:
    tensors = summaries(random_weights(4))
    assert weight_sketch([]) is None
    assert weight_sketch([dataclasses.replace(t, kind=TensorKind.OPTIMIZER) for t in tensors]) is None
    assert weight_sketch([dataclasses.replace(tensors[0], sketch=None), *tensors[1:]]) is None
    assert weight_sketch([dataclasses.replace(tensors[0], n_nan=1), *tensors[1:]]) is None


def test_a_sum_too_large_for_float32_is_kept_in_float64() -> None:
    found = sketch_of({"w": np.full(3 * K, 3e38, np.float32), "v": np.full(3 * K, 3e38, np.float32)})
    assert found.dtype == "float64"
    assert np.isfinite(sketch.to_array(found)).all()
