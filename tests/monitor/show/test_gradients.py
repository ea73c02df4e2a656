from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from monitor.show.gradients import mean_squared_gradients
from storage.records import TensorKind, TensorSummary
from tests.support.show_records import tensor

BETA2 = 0.999
SCALARS = {"optimizer.param_groups.0.betas.1": BETA2, "optimizer.param_groups.0.params.length": 2.0}


def parameter(name: str, shape: tuple[int, ...]) -> TensorSummary:
    return tensor(name, shape=shape, n_elements=math.prod(shape))


def state(index: int, shape: tuple[int, ...], mean: float | None, step: float = 10.0) -> list[TensorSummary]:
    name = f"optimizer.state.{index}"
    return [
        tensor(f"{name}.exp_avg_sq", kind=TensorKind.OPTIMIZER, shape=shape, n_elements=math.prod(shape), mean=mean),
        tensor(f"{name}.step", kind=TensorKind.OPTIMIZER, shape=(), n_elements=1, mean=step),
    ]


def test_the_mean_square_equals_what_adam_averaged() -> None:
    rng = np.random.default_rng(7)
    gradients = rng.normal(size=(10, 4, 3))
    second_moment = np.zeros((4, 3))
    for gradient in gradients:
        second_moment = BETA2 * second_moment + (1 - BETA2) * gradient**2
    tensors = [
        parameter("a.weight", (4, 3)),
        parameter("a.bias", (4,)),
        *state(0, (4, 3), float(second_moment.mean())),
        *state(1, (4,), 0.0),
    ]
    weights = BETA2 ** np.arange(9, -1, -1)
    expected = float(np.average((gradients**2).mean(axis=(1, 2)), weights=weights))
    found = mean_squared_gradients(tensors, SCALARS)
    assert found == pytest.approx({"a.weight": expected, "a.bias": 0.0}, rel=1e-12)


def test_matrices_before_vectors_are_matched_by_shape() -> None:
    tensors = [
        parameter("a.weight", (4, 3)),
        parameter("a.bias", (4,)),
        parameter("b.weight", (2, 4)),
        *state(0, (4, 3), 1.0, step=1e9),
        *state(1, (2, 4), 2.0, step=1e9),
        *state(2, (4,), 3.0, step=1e9),
    ]
    scalars = {
        "optimizer.param_groups.0.betas.1": 0.999,
        "optimizer.param_groups.0.params.length": 2.0,
        "optimizer.param_groups.1.betas.1": 0.95,
        "optimizer.param_groups.1.params.length": 1.0,
    }
    assert mean_squared_gradients(tensors, scalars) == pytest.approx({"a.weight": 1.0, "b.weight": 2.0, "a.bias": 3.0})


def test_state_numbers_are_ordered_as_numbers() -> None:
    parameters = [parameter(f"p{i}", (i + 1,)) for i in range(12)]
    states = [s for i in sorted(range(12), key=str) for s in state(i, (i + 1,), float(i), step=1e9)]
    scalars = {"optimizer.param_groups.0.betas.1": 0.9, "optimizer.param_groups.0.params.length": 12.0}
    found = mean_squared_gradients([*parameters, *states], scalars)
    assert found == pytest.approx({f"p{i}": float(i) for i in range(12)})


FITTING = (parameter("a.weight", (4, 3)), parameter("a.bias", (4,)), *state(0, (4, 3), 1.0), *state(1, (4,), 1.0))


@pytest.mark.parametrize(
    ("tensors", "scalars"),
    [
        pytest.param((), SCALARS, id="no optimizer"),
        pytest.param(FITTING, {}, id="unknown beta2"),
        pytest.param(FITTING, {**SCALARS, "optimizer.param_groups.0.betas.1": 1.0}, id="impossible beta2"),
        pytest.param(FITTING[:-2], SCALARS, id="a parameter without state"),
        pytest.param((parameter("a.weight", (3, 4)), *FITTING[1:]), SCALARS, id="another shape"),
        pytest.param((*FITTING[:2], *state(0, (4, 3), None), *state(1, (4,), -1.0)), SCALARS, id="broken moments"),
        pytest.param((*FITTING[:2], *state(0, (4, 3), 1.0, 0.0), *state(1, (4,), 1.0, 0.0)), SCALARS, id="no step yet"),
    ],
)
def test_nothing_is_guessed(tensors: Sequence[TensorSummary], scalars: dict[str, float]) -> None:
    assert FITTING[0].name in mean_squared_gradients(FITTING, SCALARS)
    assert mean_squared_gradients(tensors, scalars) == {}


def test_state_that_bears_its_parameters_names_needs_no_guess() -> None:
    def named(name: str, shape: tuple[int, ...], mean: float) -> list[TensorSummary]:
        moment, step = state(0, shape, mean)
        prefix = f"optimizer.state.{name}"
        return [replace(moment, name=f"{prefix}.exp_avg_sq"), replace(step, name=f"{prefix}.step")]

    tensors = [
        parameter("a.weight", (4, 3)),
        parameter("b.weight", (4, 3)),
        *named("b.weight", (4, 3), 2.0),
        *named("a.weight", (4, 3), 1.0),
        *named("stranger", (4, 3), 3.0),
    ]
    correction = 1 - BETA2**10
    found = mean_squared_gradients(tensors, SCALARS)
    assert found == pytest.approx({"a.weight": 1.0 / correction, "b.weight": 2.0 / correction})
    assert mean_squared_gradients(tensors, {**SCALARS, "optimizer.param_groups.1.betas.1": 0.9}) == {}
