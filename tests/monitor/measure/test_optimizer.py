from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import torch

from monitor.measure.optimizer import adam_states, gradient_estimate
from monitor.read.naming import ASSUMED_BETA2
from storage.records import TensorSummary
from tests.support.measuring import summarise

State = tuple[tuple[TensorSummary, ...], dict[str, float]]


def _flatten(optimizer: torch.optim.Optimizer) -> State:
    """Lay an optimizer's state out as the readers name it."""
    state = optimizer.state_dict()
    tensors = [
        summarise(value.numpy(), name=f"optimizer.state.{index}.{key}")
        for index, entry in state["state"].items()
        for key, value in entry.items()
        if isinstance(value, torch.Tensor)
    ]
    scalars: dict[str, float] = {}
    for number, group in enumerate(state["param_groups"]):
        scalars[f"optimizer.param_groups.{number}.params.length"] = float(len(group["params"]))
        scalars[f"optimizer.param_groups.{number}.betas.1"] = float(group["betas"][1])
    return tuple(tensors), scalars


class Training:
    """A small model trained for real, whose squared gradient norms are recorded."""

    def __init__(self, make: Callable[[torch.nn.Module], torch.optim.Optimizer]) -> None:
        self._generator = torch.Generator().manual_seed(0)
        torch.manual_seed(0)
        self.model = torch.nn.Sequential(torch.nn.Linear(20, 80), torch.nn.Tanh(), torch.nn.Linear(80, 3))
        self.optimizer = make(self.model)
        self.squares: list[float] = []

    def steps(self, n: int, scale: float = 1.0) -> State:
        for _ in range(n):
            x = torch.randn(16, 20, generator=self._generator)
            loss = scale * (self.model(x) - x[:, :3].sin()).square().mean()
            self.optimizer.zero_grad()
            loss.backward()
            grads = [p.grad for p in self.model.parameters() if p.grad is not None]
            self.squares.append(sum(float(g.double().square().sum()) for g in grads))
            self.optimizer.step()
        return _flatten(self.optimizer)

    def weighted_norm(self, beta2: float, k: int) -> float:
        weights = np.array([(1 - beta2) * beta2**j for j in range(k)])[::-1]
        return math.sqrt(float(weights @ np.array(self.squares[-k:])) / float(weights.sum()))


def _adam(beta2: float, **options: Any) -> Callable[[torch.nn.Module], torch.optim.Optimizer]:
    return lambda model: torch.optim.Adam(model.parameters(), lr=1e-3, betas=(0.9, beta2), **options)


def _adamw(beta2: float) -> Callable[[torch.nn.Module], torch.optim.Optimizer]:
    return lambda model: torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, beta2), weight_decay=0.1)


@pytest.mark.parametrize("make", [_adam, _adamw], ids=["Adam", "AdamW"])
@pytest.mark.parametrize("beta2", [0.999, 0.95])
@pytest.mark.parametrize("k", [1, 10, 60])
def test_the_window_norm_is_the_weighted_mean_over_just_the_steps_between(
    make: Callable[[float], Callable[[torch.nn.Module], torch.optim.Optimizer]], beta2: float, k: int
) -> None:
    training = Training(make(beta2))
    old = training.steps(40)
    new = training.steps(k, scale=3.0)
    estimate = gradient_estimate(*new, *old)
    assert estimate is not None
    assert (estimate.source, estimate.window_steps, estimate.beta2) == ("adam_window", k, beta2)
    assert estimate.norm == pytest.approx(training.weighted_norm(beta2, k), rel=1e-3)


def test_without_a_reference_the_norm_is_over_the_whole_memory() -> None:
    training = Training(_adam(0.99))
    estimate = gradient_estimate(*training.steps(50))
    assert estimate is not None
    assert (estimate.source, estimate.window_steps) == ("adam_ema", None)
    assert estimate.norm == pytest.approx(training.weighted_norm(0.99, 50), rel=1e-3)


def test_groups_have_their_own_beta2() -> None:
    def make(model: torch.nn.Module) -> torch.optim.Optimizer:
        first, second = model[0], model[2]  # type: ignore[index]
        groups = [{"params": first.parameters(), "betas": (0.9, 0.9)}, {"params": second.parameters()}]
        return torch.optim.Adam(groups, betas=(0.9, 0.99))

    training = Training(make)
    old, new = training.steps(20), training.steps(5)
    assert [s.beta2 for s in adam_states(*new)] == [0.9, 0.9, 0.99, 0.99]
    estimate = gradient_estimate(*new, *old)
    assert estimate is not None
    assert (estimate.source, estimate.beta2) == ("adam_window", None)
    assert min(training.squares[-5:]) ** 0.5 <= estimate.norm <= max(training.squares[-5:]) ** 0.5


def test_a_reset_optimizer_falls_back_to_its_own_memory() -> None:
    old = Training(_adam(0.999)).steps(30, scale=100.0)
    fresh = Training(_adam(0.999))
    for n in (10, 25):  # fewer steps than the reference has, then more, but far too small a sum
        estimate = gradient_estimate(*fresh.steps(n), *old)
        assert estimate is not None
        assert estimate.source == "adam_ema"
        assert estimate.norm == pytest.approx(fresh.weighted_norm(0.999, len(fresh.squares)), rel=1e-3)


def test_the_same_checkpoint_twice_has_no_window() -> None:
    state = Training(_adam(0.999)).steps(10)
    estimate = gradient_estimate(*state, *state)
    assert estimate is not None
    assert estimate.source == "adam_ema"


def test_a_parameter_that_began_to_train_within_the_window_counts_with_its_whole_memory() -> None:
    training = Training(_adam(0.99))
    for p in training.model[2].parameters():
        p.requires_grad_(False)
    old = training.steps(20)
    for p in training.model[2].parameters():
        p.requires_grad_(True)
    new = training.steps(10)
    estimate = gradient_estimate(*new, *old)
    assert estimate is not None
    assert (estimate.source, estimate.window_steps) == ("adam_window", 10)
    assert estimate.norm == pytest.approx(training.weighted_norm(0.99, 10), rel=1e-3)


def test_a_parameter_that_rests_adds_nothing() -> None:
    training = Training(_adam(0.99))
    old = training.steps(20)
    for p in training.model[2].parameters():
        p.requires_grad_(False)
        p.grad = None
    new = training.steps(10)
    estimate = gradient_estimate(*new, *old)
    assert estimate is not None
    assert estimate.source == "adam_window"
    assert estimate.norm == pytest.approx(training.weighted_norm(0.99, 10), rel=1e-3)


def _change(state: State, change: Callable[[TensorSummary], TensorSummary]) -> State:
    return tuple(change(t) if t.name == "optimizer.state.0.exp_avg_sq" else t for t in state[0]), state[1]


def test_a_state_that_is_not_finite_gives_no_estimate() -> None:
    state = Training(_adam(0.999)).steps(10)
    broken = _change(state, lambda t: dataclasses.replace(t, n_nan=1))
    assert gradient_estimate(*broken) is None
    estimate = gradient_estimate(*state, *broken)
    assert estimate is not None
    assert estimate.source == "adam_ema"


def test_a_negative_second_moment_is_no_second_moment() -> None:
    state = Training(_adam(0.999)).steps(10)
    assert gradient_estimate(*_change(state, lambda t: dataclasses.replace(t, min=-1.0))) is None


def test_without_a_stated_beta2_there_is_no_estimate() -> None:
    tensors, scalars = Training(_adam(0.999)).steps(10)
    assert gradient_estimate(tensors, {}) is None
    lengths = {k: v for k, v in scalars.items() if k.endswith("params.length")}
    assert gradient_estimate(tensors, lengths) is None
    too_short = {**scalars, "optimizer.param_groups.0.params.length": 3.0}  # the fourth state is in no group
    assert gradient_estimate(tensors, too_short) is None


def test_another_optimizer_gives_no_estimate() -> None:
    model = torch.nn.Linear(3, 3)
    assert gradient_estimate((summarise(model.weight.detach().numpy(), name="weight"),), {}) is None


def test_steps_and_betas_may_be_scalars_and_states_may_have_names() -> None:
    tensors = (summarise(np.full(8, 0.5, np.float32), name="optimizer.1.state.layer.weight.exp_avg_sq"),)
    scalars: Mapping[str, float] = {
        "optimizer.1.state.layer.weight.step": 3.0,
        "optimizer.1.param_groups.0.betas.1": 0.5,
    }
    estimate = gradient_estimate(tensors, scalars)
    assert estimate is not None
    assert estimate.norm == pytest.approx(math.sqrt(4.0 / (1 - 0.5**3)))
    assert gradient_estimate(tensors, {**scalars, "optimizer.1.param_groups.1.betas.1": 0.9}) is None


@pytest.mark.parametrize("step", [-1.0, 2.5, 0.0])
def test_a_step_that_counts_nothing_gives_no_estimate(step: float) -> None:
    tensors = (summarise(np.ones(4, np.float32), name="optimizer.state.0.exp_avg_sq"),)
    scalars = {"optimizer.state.0.step": step, "optimizer.param_groups.0.params.length": 1.0}
    assert gradient_estimate(tensors, {**scalars, "optimizer.param_groups.0.betas.1": 0.999}) is None


def test_an_assumed_beta2_is_used_only_where_none_is_stated_and_the_source_says_so() -> None:
    training = Training(lambda model: torch.optim.Adam(model.parameters(), betas=(0.9, 0.999)))
    (old, old_scalars), (new, new_scalars) = training.steps(30), training.steps(10)
    stated = gradient_estimate(new, new_scalars, old, old_scalars)
    unstated = [
        {n: v for n, v in s.items() if not n.endswith("betas.1")} | {ASSUMED_BETA2: 0.999}
        for s in (new_scalars, old_scalars)
    ]
    assumed = gradient_estimate(new, unstated[0], old, unstated[1])
    assert stated is not None
    assert assumed is not None
    assert (stated.source, assumed.source) == ("adam_window", "adam_window_assumed")
    assert (assumed.norm, assumed.window_steps) == (stated.norm, stated.window_steps)
    assert gradient_estimate(new, new_scalars | {ASSUMED_BETA2: 0.5}, old, old_scalars) == stated
