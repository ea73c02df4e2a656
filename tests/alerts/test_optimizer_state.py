"""What real Adam states look like, and that the bound holds for them and for nothing that was damaged."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from alerts.optimizer_state import adam_states, magnitude_bounds, moment_ratio_max, share_below, share_beyond, states
from monitor.measure.histogram import bin_edges
from storage.records import Histogram
from tests.support.measuring import summarise


def _histogram(values: np.ndarray) -> Histogram:
    found = summarise(values.astype(np.float32), name="x").histogram
    assert found is not None
    return found


@given(st.integers(-16_000, 16_000))
def test_bins_mean_the_same_here_and_where_they_are_counted(index: int) -> None:
    low, high = sorted(abs(edge) for edge in bin_edges(index))
    assert magnitude_bounds(index) == pytest.approx((low, high))


@pytest.mark.parametrize(
    ("betas", "bound"), [((0.9, 0.999), 7.27), ((0.9, 0.95), 1.165), ((0.9, 0.98), 1.698), ((0.95, 0.999), 5.087)]
)
def test_the_bound_is_the_known_one_and_is_reached_by_the_worst_gradients(
    betas: tuple[float, float], bound: float
) -> None:
    found = moment_ratio_max(*betas)
    assert found == pytest.approx(bound, rel=1e-3)
    m = v = 0.0
    for age in range(2000, -1, -1):  # gradients that grow as the proof says: (b1 / b2)^age
        gradient = (betas[0] / betas[1]) ** age
        m = betas[0] * m + (1 - betas[0]) * gradient
        v = betas[1] * v + (1 - betas[1]) * gradient**2
    assert found is not None
    assert m / v**0.5 == pytest.approx(found, rel=1e-3)
    assert m / v**0.5 <= found * (1 + 1e-9)


def test_betas_without_a_bound_have_none() -> None:
    assert moment_ratio_max(0.99, 0.9) is None
    assert moment_ratio_max(0.9, 1.0) is None


@settings(max_examples=30)
@given(st.integers(0, 2**32 - 1), st.integers(1, 60), st.floats(-3, 3))
def test_no_sequence_of_gradients_looks_impossible(seed: int, n_steps: int, growth: float) -> None:
    generator = np.random.default_rng(seed)
    m, v = np.zeros(200), np.zeros(200)
    for step in range(n_steps):
        scale = 10.0 ** (growth * step / 10) * 10.0 ** generator.uniform(-4, 2, size=200)
        gradient = generator.normal(size=200) * np.clip(scale, 0, 1e12)
        m, v = 0.9 * m + 0.1 * gradient, 0.999 * v + 0.001 * gradient**2
    bound = moment_ratio_max(0.9, 0.999)
    assert bound is not None
    assert share_beyond(_histogram(m), _histogram(v), bound * 1.001) == 0.0


def test_second_moments_rounded_to_zero_are_counted() -> None:
    generator = np.random.default_rng(0)
    m = generator.normal(size=1000) * 1e-3
    v = m**2
    v[:300] = 0.0
    assert share_beyond(_histogram(m), _histogram(v), 7.27) == pytest.approx(0.3, abs=0.05)
    assert share_beyond(_histogram(m * 1000), _histogram(m**2), 7.27) > 0.9


def test_a_share_below_counts_zeros_and_whole_bins_only() -> None:
    histogram = _histogram(np.array([0.0, 0.0, 1e-3, 1.0]))
    assert share_below(histogram, 0.0) == 0.5
    assert share_below(histogram, 0.1) == 0.75
    assert share_below(histogram, 100.0) == 1.0


def test_states_are_found_by_number_and_by_name_with_the_numbers_of_their_group() -> None:
    parameters = [torch.nn.Parameter(torch.ones(3, 2)), torch.nn.Parameter(torch.ones(4))]
    optimizer = torch.optim.Adam([{"params": parameters[:1], "lr": 0.1}, {"params": parameters[1:], "lr": 0.2}])
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    state = optimizer.state_dict()
    scalars: dict[str, float] = {}
    for g, group in enumerate(state["param_groups"]):
        prefix = f"optimizer.param_groups.{g}"
        scalars |= {f"{prefix}.lr": group["lr"], f"{prefix}.params.length": 1.0}
        scalars |= {f"{prefix}.betas.0": group["betas"][0], f"{prefix}.betas.1": group["betas"][1]}
    for names in (("0", "1"), ("a.weight", "a.bias")):
        tensors = [
            summarise(value.numpy(), name=f"optimizer.state.{names[index]}.{part}")
            for index, entry in state["state"].items()
            for part, value in entry.items()
        ]
        found = adam_states(tensors, scalars)
        assert [(s.name.rpartition("state.")[2], s.shape, s.step) for s in found] == [
            (names[0], (6,), 1.0),
            (names[1], (4,), 1.0),
        ]
        assert all(s.options["betas.1"] == 0.999 for s in found)
        rates = [s.options.get("lr") for s in found]
        assert rates == ([0.1, 0.2] if names[0] == "0" else [None, None])


def test_a_state_with_parts_of_another_optimizer_is_no_adam() -> None:
    tensors = [summarise(np.ones(3, np.float32), name=f"optimizer.state.0.{p}") for p in ("exp_avg", "exp_avg_sq", "z")]
    scalars = {"optimizer.param_groups.0.betas.0": 0.9, "optimizer.param_groups.0.betas.1": 0.999}
    assert adam_states(tensors, scalars) == []
    assert len(states(tensors, scalars)) == 1
    assert len(adam_states(tensors[:2], scalars)) == 1
