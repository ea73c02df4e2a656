from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from monitor.show.aggregate import STATISTICS, group_rows, nonfinite_by_kind, tensor_rows
from monitor.show.views import Measurement
from storage.records import TensorDrift, TensorKind, TensorSummary
from tests.support.show_records import drift, tensor

Values = npt.NDArray[np.float64]


def summarise(name: str, values: Values) -> TensorSummary:
    return tensor(
        name,
        shape=values.shape,
        n_elements=values.size,
        n_zero=int((values == 0).sum()),
        mean=float(values.mean()),
        std=float(values.std()),
        norm_l2=float(np.linalg.norm(values)),
        abs_max=float(np.abs(values).max()),
    )


def compare(name: str, new: Values, old: Values, reference_step: int) -> TensorDrift:
    difference = float(np.linalg.norm(new - old))
    norm = float(np.linalg.norm(old))
    return drift(
        name,
        reference_step=reference_step,
        difference_l2=difference,
        relative_l2=difference / norm if norm else None,
    )


# Below 1e-6 the squares that NumPy forms would lose digits before ours do.
ELEMENTS = st.floats(-1e6, 1e6).map(lambda value: value if abs(value) > 1e-6 else 0.0)
ARRAYS = hnp.arrays(np.float64, st.integers(1, 20), elements=ELEMENTS)


@settings(max_examples=60)
@given(st.lists(ARRAYS, min_size=1, max_size=6))
def test_a_group_has_the_statistics_of_all_its_elements_together(arrays: list[Values]) -> None:
    tensors = tuple(summarise(f"h.0.part{i}", values) for i, values in enumerate(arrays))
    (row,) = group_rows(Measurement(tensors=tensors), step=None)
    everything = np.concatenate(arrays)
    scale = float(np.abs(everything).max()) + 1e-300
    assert row.name == "h.0"
    assert row.values["mean"] == pytest.approx(everything.mean(), abs=1e-12 * scale)
    assert row.values["std"] == pytest.approx(everything.std(), rel=1e-9, abs=1e-12 * scale)
    assert row.values["weight_norm"] == pytest.approx(np.linalg.norm(everything), rel=1e-12)
    assert row.values["abs_max"] == np.abs(everything).max()
    assert row.values["zero_ratio"] == pytest.approx((everything == 0).mean())


def test_the_update_ratio_of_a_group_is_that_of_its_weights_joined() -> None:
    rng = np.random.default_rng(3)
    old = {name: rng.normal(size=9) for name in ("h.1.a", "h.1.b", "h.1.frozen")}
    new = {name: values + (0.0 if "frozen" in name else 0.1) * rng.normal(size=9) for name, values in old.items()}
    measurement = Measurement(
        tensors=tuple(summarise(name, values) for name, values in new.items()),
        drifts=tuple(compare(name, new[name], old[name], 900) for name in new),
    )
    (row,) = group_rows(measurement, step=1000)
    joined_new, joined_old = np.concatenate(list(new.values())), np.concatenate(list(old.values()))
    expected = np.linalg.norm(joined_new - joined_old) / np.linalg.norm(joined_old) / 100
    assert row.values["update_ratio"] == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("step", "change"),
    [
        pytest.param(None, {}, id="unknown step"),
        pytest.param(1100, {}, id="no step between"),
        pytest.param(1000, {}, id="an older step"),
        pytest.param(1200, {"reference_step": None}, id="unknown reference step"),
        pytest.param(1200, {"difference_l2": None, "relative_l2": None}, id="not finite"),
        pytest.param(1200, {"relative_l2": None}, id="zero reference"),
    ],
)
def test_an_update_ratio_that_is_not_known_is_absent(step: int | None, change: dict[str, Any]) -> None:
    measurement = Measurement(tensors=(tensor(),), drifts=(drift(),))
    assert "update_ratio" in tensor_rows(measurement, 1200)[0].values
    broken = Measurement(tensors=(tensor(),), drifts=(drift(**change),))
    assert "update_ratio" not in tensor_rows(broken, step)[0].values


def test_a_tensor_without_finite_elements_has_only_counts() -> None:
    nothing = tensor(n_nan=64, min=None, max=None, mean=None, std=None, norm_l1=None, norm_l2=None, abs_max=None)
    (row,) = tensor_rows(Measurement(tensors=(nothing,)), step=1)
    assert row.values == {"zero_ratio": 0.0, "nonfinite_elements": 64.0}


def test_numbers_that_overflow_are_absent_and_every_value_is_finite() -> None:
    huge = tuple(tensor(f"h.0.{i}", norm_l2=1.7e308, mean=1.7e308, std=1.7e308, abs_max=1.7e308) for i in range(4))
    (row,) = group_rows(Measurement(tensors=huge), step=None)
    assert "weight_norm" not in row.values
    assert row.values["abs_max"] == 1.7e308
    assert all(math.isfinite(value) for value in row.values.values())


def test_tied_tensors_count_once_in_a_group_and_have_their_own_row() -> None:
    tensors = (tensor("wte.weight"), tensor("wte.tied", tied_to="wte.weight"))
    assert group_rows(Measurement(tensors=tensors), None)[0].values["weight_norm"] == 4.0
    assert [row.name for row in tensor_rows(Measurement(tensors=tensors), None)] == ["wte.weight", "wte.tied"]


def test_buffers_count_only_as_nonfinite_and_optimizer_state_not_at_all() -> None:
    tensors = (
        tensor("bn.weight"),
        tensor("bn.running_var", kind=TensorKind.BUFFER, norm_l2=1e9, abs_max=1e9, n_posinf=3),
        tensor("optimizer.state.0.exp_avg", kind=TensorKind.OPTIMIZER, n_nan=5),
    )
    (row,) = group_rows(Measurement(tensors=tensors), None)
    assert row.values["weight_norm"] == 4.0
    assert row.values["nonfinite_elements"] == 3.0
    counts = nonfinite_by_kind(tensors)
    assert counts == {
        TensorKind.PARAMETER: 0,
        TensorKind.BUFFER: 3,
        TensorKind.OPTIMIZER: 5,
        TensorKind.OTHER: 0,
    }


def test_the_gradient_of_a_group_is_inferred_from_the_state_of_its_parameters() -> None:
    state = [
        tensor(f"optimizer.state.{i}.{key}", kind=TensorKind.OPTIMIZER, shape=shape, n_elements=n, mean=mean)
        for i, gradient in ((0, 4.0), (1, 16.0))
        for key, shape, n, mean in (("exp_avg_sq", (8, 8), 64, gradient), ("step", (), 1, 1e9))
    ]
    scalars = {"optimizer.param_groups.0.betas.1": 0.999, "optimizer.param_groups.0.params.length": 2.0}
    measurement = Measurement(tensors=(tensor("h.0.a"), tensor("h.0.b"), *state), scalars=scalars)
    assert group_rows(measurement, 1)[0].values["gradient_rms"] == pytest.approx(math.sqrt(10.0))
    assert [row.values["gradient_rms"] for row in tensor_rows(measurement, 1)] == pytest.approx([2.0, 4.0])


def test_rows_name_only_known_statistics() -> None:
    (row,) = group_rows(Measurement(tensors=(tensor(),), drifts=(drift(),)), 1200)
    assert set(row.values) <= set(STATISTICS)


def test_a_tensor_that_could_not_be_measured_has_no_row() -> None:
    assert tensor_rows(Measurement(tensors=(tensor(problem="sparse"),)), 1) == ()
