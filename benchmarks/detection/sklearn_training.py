"""The same for scikit-learn: an MLP that is trained batch by batch and saved with joblib."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import joblib
import numpy as np

from benchmarks.detection.data import Table
from benchmarks.detection.training import Plan, Seen


@dataclass(slots=True, kw_only=True)
class Estimator:
    """One training as a fault can get at it. `change` is what happens to inputs, `damage` what happens to a saved copy.

    `after_step` hooks run on the model that was trained for a step.
    """

    model: Any
    table: Table
    batch_size: int
    seed: int
    change: Callable[[np.ndarray], np.ndarray] = lambda inputs: inputs
    damage: list[Callable[[Any], None]] = field(default_factory=list)
    after_step: list[Callable[[Any], None]] = field(default_factory=list)


def train(
    job: Estimator,
    plan: Plan,
    directory: Path,
    *,
    strike: Callable[[Estimator], None] | None,
    strike_after: int,
    saved: Callable[[Path, Seen], None],
) -> None:
    """Train and save; `strike` changes the job after checkpoint `strike_after`, which is at least 1."""
    random = np.random.default_rng(job.seed)
    for number in range(1, plan.n_checkpoints + 1):
        for _ in range(plan.save_every):
            fit_batch(job, random)
            for hook in job.after_step:
                hook(job.model)
        step = number * plan.save_every
        model = copy.deepcopy(job.model) if job.damage else job.model
        for damage in job.damage:
            damage(model)
        path = directory / f"mlp-step-{step:06d}.joblib"
        joblib.dump(model, path)
        saved(path, _seen(job.model, step))
        if number == strike_after and strike is not None:
            strike(job)


def fit_batch(job: Estimator, random: np.random.Generator) -> None:
    """Take one step of the optimizer on a random batch."""
    chosen = random.integers(0, len(job.table.inputs), job.batch_size)
    targets = job.table.targets[chosen]
    if targets.ndim == 2:
        job.model.partial_fit(job.change(job.table.inputs[chosen]), targets[:, 0])
    else:
        job.model.partial_fit(job.change(job.table.inputs[chosen]), targets, classes=np.unique(job.table.targets))


def _seen(model: Any, step: int) -> Seen:
    weights = {f"coefs.{n}": w.copy() for n, w in enumerate(model.coefs_)}
    weights |= {f"intercepts.{n}": b.copy() for n, b in enumerate(model.intercepts_)}
    return Seen(step=step, weights=weights, gradients={}, loss=float(model.loss_), activity={}, saturation={})


def nan_in_one_tensor(job: Estimator) -> None:
    def damage(model: Any) -> None:
        model.coefs_[-1].reshape(-1)[3] = math.nan

    job.damage.append(damage)


def rate_times_100(job: Estimator) -> None:
    _scale_rate(job, 100.0)


def rate_zero(job: Estimator) -> None:
    _scale_rate(job, 0.0)


def decay_with_wrong_sign(job: Estimator) -> None:
    def grow(model: Any) -> None:
        for weight in model.coefs_:
            np.multiply(weight, 1.02, out=weight)

    job.after_step.append(grow)


def outliers(job: Estimator) -> None:
    job.change = lambda inputs: inputs * 300.0


def dead_relus(job: Estimator) -> None:
    job.model.intercepts_[0] -= 100.0


def layer_frozen(job: Estimator) -> None:
    kept = job.model.coefs_[0].copy()
    job.after_step.append(lambda model: np.copyto(model.coefs_[0], kept))


def other_model(job: Estimator) -> None:
    other = Estimator(
        model=copy.deepcopy(job.model).set_params(random_state=job.seed + 999),
        table=job.table,
        batch_size=job.batch_size,
        seed=job.seed + 999,
    )
    del other.model.coefs_, other.model._optimizer
    other.model = type(other.model)(**other.model.get_params())
    random = np.random.default_rng(job.seed + 999)
    for _ in range(100):
        fit_batch(other, random)
    for mine, theirs in zip(
        (*job.model.coefs_, *job.model.intercepts_), (*other.model.coefs_, *other.model.intercepts_), strict=True
    ):
        np.copyto(mine, theirs)


def exponent_bit_in_file(job: Estimator) -> None:
    def damage(model: Any) -> None:
        flat = model.coefs_[0].reshape(-1)
        bits = flat.view(np.int32 if flat.dtype == np.float32 else np.int64)
        bits[int(np.abs(np.abs(flat) - np.median(np.abs(flat))).argmin())] ^= 1 << (flat.dtype.itemsize * 8 - 2)

    job.damage.append(damage)


def layer_zeroed(job: Estimator) -> None:
    job.model.coefs_[-1][:] = 0.0


def _scale_rate(job: Estimator, factor: float) -> None:
    optimizer = job.model._optimizer
    optimizer.learning_rate_init *= factor
    optimizer.learning_rate *= factor


FAULTS: dict[str, Callable[[Estimator], None]] = {
    fault.__name__: fault
    for fault in (
        nan_in_one_tensor,
        rate_times_100,
        rate_zero,
        decay_with_wrong_sign,
        outliers,
        dead_relus,
        layer_frozen,
        other_model,
        exponent_bit_in_file,
        layer_zeroed,
    )
}
