"""Estimates from real optimizers, against the squared gradient norms that they were given."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pytest
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.neural_network import MLPRegressor
from transformers.optimization import Adafactor as HuggingFaceAdafactor

from monitor.measure.optimizer import gradient_estimate
from monitor.measure.options import MeasureOptions
from monitor.measure.snapshot import measure_path
from storage.records import GradientEstimate, TensorSummary
from tests.support.measuring import summarise

State = tuple[tuple[TensorSummary, ...], dict[str, float]]
Make = Callable[[Iterable[torch.nn.Parameter]], torch.optim.Optimizer]


def _flatten(optimizer: torch.optim.Optimizer) -> State:
    """Lay an optimizer's state out as the readers name it."""
    state = optimizer.state_dict()
    tensors = []
    scalars: dict[str, float] = {}
    for index, entry in state["state"].items():
        for key, value in entry.items():
            if isinstance(value, torch.Tensor):
                tensors.append(summarise(value.numpy(), name=f"optimizer.state.{index}.{key}"))
            elif isinstance(value, int | float):
                scalars[f"optimizer.state.{index}.{key}"] = float(value)
    for number, group in enumerate(state["param_groups"]):
        prefix = f"optimizer.param_groups.{number}"
        scalars[f"{prefix}.params.length"] = float(len(group["params"]))
        for key, value in group.items():
            for place, part in enumerate(value if isinstance(value, tuple) else [value]):
                if isinstance(part, int | float):
                    scalars[f"{prefix}.{key}.{place}" if isinstance(value, tuple) else f"{prefix}.{key}"] = float(part)
    return tuple(tensors), scalars


class Training:
    """A small model trained for real, whose squared gradient norms are recorded."""

    def __init__(self, make: Make) -> None:
        torch.manual_seed(0)
        self.model = torch.nn.Sequential(torch.nn.Linear(20, 40), torch.nn.Tanh(), torch.nn.Linear(40, 3))
        self.optimizer = make(self.model.parameters())
        self.squares: list[float] = []

    def steps(self, n: int, scale: float = 1.0) -> State:
        for _ in range(n):
            x = torch.randn(16, 20)
            loss = scale * (self.model(x) - x[:, :3].sin()).square().mean()
            self.optimizer.zero_grad()
            loss.backward()
            grads = [p.grad for p in self.model.parameters() if p.grad is not None]
            self.squares.append(sum(float(g.double().square().sum()) for g in grads))
            self.optimizer.step()
        return _flatten(self.optimizer)

    def norm(self, kept: Callable[[int], float], k: int) -> float:
        """Return the weighted norm over the last k steps; `kept(t)` is what step t leaves of the sum before it."""
        n = len(self.squares)
        weights, left = [], 1.0
        for t in range(n, n - k, -1):
            weights.append(left * (1.0 - kept(t)))
            left *= kept(t)
        squares = np.array(self.squares[n - k :][::-1])
        return math.sqrt(float(np.array(weights) @ squares) / math.fsum(weights))


def _estimate(new: State, old: State | None = None) -> GradientEstimate:
    found = gradient_estimate(*new, *(old if old is not None else ()))
    assert found is not None
    return found


def _rmsprop(p: Any) -> torch.optim.Optimizer:
    return torch.optim.RMSprop(p, lr=1e-3, alpha=0.95)


def _centered(p: Any) -> torch.optim.Optimizer:
    return torch.optim.RMSprop(p, lr=1e-3, alpha=0.95, centered=True, momentum=0.5)


def _adadelta(p: Any) -> torch.optim.Optimizer:
    return torch.optim.Adadelta(p, rho=0.95)


def _torch_adafactor(p: Any) -> torch.optim.Optimizer:
    return torch.optim.Adafactor(p, lr=1e-3)


def _hf_adafactor(p: Any) -> torch.optim.Optimizer:
    make: Any = HuggingFaceAdafactor
    made: torch.optim.Optimizer = make(p, lr=1e-3, relative_step=False, scale_parameter=False)
    return made


@pytest.mark.parametrize(
    ("make", "source", "kept"),
    [
        (_rmsprop, "rmsprop", lambda t: 0.95),
        (_centered, "rmsprop", lambda t: 0.95),
        (_adadelta, "rmsprop", lambda t: 0.95),
        (_torch_adafactor, "adafactor", lambda t: 1.0 - t**-0.8),
        (_hf_adafactor, "adafactor", lambda t: 1.0 - t**-0.8),
    ],
)
def test_a_second_moment_gives_the_weighted_norm_over_the_window_and_over_the_memory(
    make: Make, source: str, kept: Callable[[int], float]
) -> None:
    training = Training(make)
    old = training.steps(12)
    assert _estimate(old).norm == pytest.approx(training.norm(kept, 12), rel=1e-4)
    assert _estimate(old).source == f"{source}_ema"
    new = training.steps(7, scale=5.0)
    found = _estimate(new, old)
    assert (found.source, found.window_steps) == (f"{source}_window", 7)
    assert found.norm == pytest.approx(training.norm(kept, 7), rel=1e-4)


def test_adagrads_sum_gives_the_plain_mean_over_the_window() -> None:
    training = Training(lambda p: torch.optim.Adagrad(p, initial_accumulator_value=0.1))
    old = training.steps(12)
    found = _estimate(training.steps(5, scale=3.0), old)
    assert (found.source, found.window_steps) == ("adagrad_window", 5)
    assert found.norm == pytest.approx(math.sqrt(math.fsum(training.squares[-5:]) / 5), rel=1e-4)


def test_adamax_never_says_less_than_the_last_gradient() -> None:
    training = Training(torch.optim.Adamax)
    found = _estimate(training.steps(15))
    assert found.source == "adamax_max"
    assert found.norm >= math.sqrt(training.squares[-1])


def test_sgd_momentum_of_noise_is_scaled_back_to_the_gradient() -> None:
    parameter = torch.nn.Parameter(torch.zeros(100, 100))
    optimizer = torch.optim.SGD([parameter], lr=1e-3, momentum=0.9, dampening=0.5)
    generator = torch.Generator().manual_seed(1)
    for _ in range(80):
        parameter.grad = torch.randn(100, 100, generator=generator)
        optimizer.step()
    found = _estimate(_flatten(optimizer))
    assert (found.source, found.window_steps) == ("sgd_momentum", None)
    assert found.norm == pytest.approx(100.0, rel=0.05)


def test_lions_momentum_of_noise_is_scaled_back_to_the_gradient() -> None:
    generator = np.random.default_rng(2)
    moment = np.zeros((100, 100))
    for _ in range(600):
        moment = 0.99 * moment + 0.01 * generator.normal(size=(100, 100))
    state = (summarise(moment.astype(np.float32), name="optimizer.state.0.exp_avg"),)
    found = _estimate((state, {"optimizer.param_groups.0.betas.1": 0.99}))
    assert found.source == "lion_momentum"
    assert found.norm == pytest.approx(100.0, rel=0.05)


def test_a_state_that_was_reset_has_no_window() -> None:
    old = Training(_rmsprop).steps(30, scale=100.0)
    assert _estimate(Training(_rmsprop).steps(40, scale=0.01), old).source == "rmsprop_ema"


def test_groups_with_decays_of_their_own_are_told_apart() -> None:
    def make(parameters: Iterable[torch.nn.Parameter]) -> torch.optim.Optimizer:
        held = list(parameters)
        return torch.optim.RMSprop([{"params": held[:1], "alpha": 0.5}, {"params": held[1:], "alpha": 0.99}], lr=1e-3)

    training = Training(make)
    new = training.steps(10)
    low = training.norm(lambda t: 0.5, 10)
    high = training.norm(lambda t: 0.99, 10)
    assert min(low, high) * 0.5 < _estimate(new).norm < max(low, high) * 2.0
    assert _estimate(new).norm != pytest.approx(low, rel=1e-3)


def test_a_long_window_of_adafactor_is_the_same_by_integral_as_by_product() -> None:
    from monitor.measure.other_optimizers import _kept_by_adafactor

    exact = math.exp(math.fsum(math.log1p(-(float(t) ** -0.8)) for t in range(500_001, 530_001)))
    assert _kept_by_adafactor(500_000, 530_000, -0.8) == pytest.approx(exact, rel=1e-2)


@pytest.mark.parametrize("make", [lambda p: torch.optim.SGD(p, lr=0.1), torch.optim.Rprop])
def test_an_optimizer_that_keeps_no_gradients_gives_no_estimate(make: Make) -> None:
    assert gradient_estimate(*Training(make).steps(5)) is None


def test_scikit_learns_sgd_solver_keeps_the_rate_in_its_velocities(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 8))
    estimates = []
    for rate in (1e-3, 4e-3):
        model = MLPRegressor(
            hidden_layer_sizes=(16,), solver="sgd", learning_rate_init=rate, max_iter=3, random_state=0
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            model.fit(x, x[:, 0])
        joblib.dump(model, tmp_path / "model.joblib")
        measured = measure_path(str(tmp_path / "model.joblib"), MeasureOptions())
        found = gradient_estimate(measured.tensors, measured.scalars)
        assert found is not None
        assert found.source == "sgd_momentum"
        squares = sum(float(np.square(v).sum()) for v in model._optimizer.velocities)
        assert found.norm == pytest.approx(math.sqrt((1 - 0.9**2) * squares) / rate, rel=1e-6)
        estimates.append(found.norm)
    assert 0.3 < estimates[1] / estimates[0] < 3.0  # four times the rate is not four times the gradient


@pytest.mark.slow
@pytest.mark.timeout(600)  # TensorFlow alone takes its time
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of Keras over NumPy
def test_every_optimizer_of_keras_gives_about_the_same_estimate_of_the_same_training(tmp_path: Path) -> None:
    keras = pytest.importorskip("keras")
    made = keras.optimizers
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(64, 8)).astype("float32"), rng.normal(size=(64, 1)).astype("float32")
    norms = {}
    for optimizer in (
        made.Adam(1e-4),
        made.SGD(1e-4, momentum=0.9),
        made.RMSprop(1e-5),
        made.Adadelta(1e-4),
        made.Adagrad(1e-4, initial_accumulator_value=0.0),
        made.Lion(1e-5),
    ):
        keras.utils.set_random_seed(1)
        model = keras.Sequential([keras.layers.Input((8,)), keras.layers.Dense(16, "relu"), keras.layers.Dense(1)])
        model.compile(optimizer, "mse")
        model.fit(x, y, epochs=3, batch_size=16, verbose=0)
        path = tmp_path / f"{optimizer.name}.keras"
        model.save(path)
        measured = measure_path(str(path), MeasureOptions())
        found = gradient_estimate(measured.tensors, measured.scalars)
        assert found is not None, optimizer.name
        norms[optimizer.name] = found.norm
    assert max(norms.values()) < 2.5 * min(norms.values()), norms


def eight_bit(moment: np.ndarray[Any, Any]) -> dict[str, torch.Tensor]:
    """Quantise a second moment as bitsandbytes does: 256 codes, and the largest of each block of 256 elements."""
    codes = np.linspace(0.0, 1.0, 256, dtype=np.float32)
    blocks = np.pad(moment, (0, -moment.size % 256)).reshape(-1, 256)
    largest = blocks.max(axis=1)
    state = np.searchsorted(codes, (blocks / largest[:, None]).reshape(-1)[: moment.size]).astype(np.uint8)
    found = {"state2": state, "absmax2": largest.astype(np.float32), "qmap2": codes}
    return {key: torch.from_numpy(value) for key, value in found.items()}


@pytest.mark.parametrize("nested", [False, True])
def test_eight_bit_moments_give_a_bound_that_follows_the_gradients(tmp_path: Path, nested: bool) -> None:
    rng = np.random.default_rng(0)
    found = []
    for scale in (1.0, 50.0):
        large, small = (scale**2 * rng.chisquare(1, n).astype(np.float32) for n in (10_000, 100))
        packed: dict[str, Any] = eight_bit(large)
        if nested:
            names = ("absmax2", "qmap2")
            packed["__bnb_optimizer_quant_state__"] = {name: packed.pop(name) for name in names}
        state = {0: {"step": 3000, **packed}, 1: {"step": 3000, "state2": torch.from_numpy(small)}}
        group = {"lr": 1e-3, "betas": (0.9, 0.99), "eps": 1e-8, "weight_decay": 0.0, "params": [0, 1]}
        torch.save({"optimizer": {"state": state, "param_groups": [group]}}, tmp_path / "optimizer.pt")
        measured = measure_path(str(tmp_path / "optimizer.pt"), MeasureOptions())
        estimate = gradient_estimate(measured.tensors, measured.scalars)
        assert estimate is not None
        assert estimate.source == "adam_8bit_bound"
        true = math.sqrt(float(large.sum()) + float(small.sum()))
        assert true <= estimate.norm <= 4.0 * true
        found.append(estimate.norm)
    assert found[1] / found[0] == pytest.approx(50.0, rel=0.1)
