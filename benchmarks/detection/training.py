"""An ordinary training loop in PyTorch that saves checkpoints, into which a fault may strike at a given one.

It knows nothing of ckptwatch: it writes files as training code does, and calls back after each. Beside them it hands
over what a hook inside the process would have seen at that step (gradients, loss, activity), for the comparison.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from benchmarks.detection.data import Batches

Arrays = dict[str, np.ndarray]
Hook = Callable[["Job"], None]
LOG_EVERY = 5
TANH_END = 9.4999  # where a published rule takes a tanh for saturated


@dataclass(slots=True, kw_only=True)
class Job:
    """One training as a fault can get at it; everything may be replaced while it goes on.

    `schedule` gives the factor of the learning rate at a step, `rate_factor` is what a fault multiplies it with.
    `clip` is the highest gradient norm. `autocast` and `scaler` are those of mixed precision. `average` holds an
    exponential moving average of the weights where one is saved. `before_step` hooks run on the finished gradients.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    batches: Batches
    loss: Callable[[Tensor, Tensor], Tensor]
    schedule: Callable[[int], float] = lambda step: 1.0  # noqa: ARG005
    clip: float | None = None
    accumulate: int = 1
    autocast: torch.dtype | None = None
    scaler: torch.amp.GradScaler | None = None
    average: nn.Module | None = None
    rate_factor: float = 1.0
    seed: int = 0
    before_step: list[Hook] = field(default_factory=list)
    after_step: list[Hook] = field(default_factory=list)
    damage: list[Callable[[dict[str, Any]], None]] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Remember the rates that the schedule scales, where a resumed optimizer would state them."""
        for group in self.optimizer.param_groups:
            group.setdefault("initial_lr", group["lr"])

    def weights(self) -> list[tuple[str, nn.Parameter]]:
        """Return the trained matrices by name, in the model's order."""
        return [(n, p) for n, p in self.model.named_parameters() if p.requires_grad and p.ndim >= 2]


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What a hook in the training process would have seen at one save.

    `weights` by name; `gradients` those of the last step, absent for a tensor without one; `activity` the share of
    positive outputs of each ReLU's unit, `saturation` the share of each tanh's inputs far out at its ends.
    """

    step: int
    weights: Arrays
    gradients: Arrays
    loss: float
    activity: Arrays
    saturation: Arrays


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How a training is saved: `writer` "torch" (model, optimizer, step in one file) or "weights" (safetensors).

    `resume_at` is the checkpoint after which the process is killed and starts anew from the one `resume_back` before.
    """

    save_every: int
    n_checkpoints: int = 30
    writer: str = "torch"
    log: bool = False
    resume_at: int | None = None
    resume_back: int = 0


def train(
    job: Job,
    plan: Plan,
    directory: Path,
    *,
    strike: Callable[[Job], None] | None,
    strike_after: int,
    saved: Callable[[Path, Seen], None],
) -> None:
    """Train and save; `strike` changes the job after checkpoint `strike_after` (0: at once).

    `saved` is called with each file as soon as it is written.
    """
    activity = _Activity(job.model)
    kept: dict[int, tuple[dict[str, Any], dict[str, Any]]] = {}
    number, resumed = 0, False
    if strike is not None and strike_after == 0:
        strike(job)
    while number < plan.n_checkpoints:
        for step in range(number * plan.save_every + 1, (number + 1) * plan.save_every + 1):
            activity.on = step % plan.save_every == 0
            loss = _step(job, step)
            if plan.log and step % LOG_EVERY == 0:
                with (directory / "log.jsonl").open("a") as log:
                    log.write(
                        json.dumps({"step": step, "loss": loss, "lr": job.optimizer.param_groups[0]["lr"]}) + "\n"
                    )
        number += 1
        seen = _seen(job, number * plan.save_every, loss, activity)
        saved(_save(job, plan, directory, number * plan.save_every), seen)
        if plan.resume_at is not None and not resumed:
            kept[number] = copy.deepcopy((job.model.state_dict(), job.optimizer.state_dict()))
        if number == plan.resume_at and not resumed:
            resumed = True
            number -= plan.resume_back
            model, optimizer = kept[number]
            job.model.load_state_dict(model)
            job.optimizer.load_state_dict(optimizer)
            kept.clear()
        if number == strike_after and strike is not None:
            strike(job)
            strike = None
    activity.close()


def _step(job: Job, step: int) -> float:
    job.model.train()
    for group in job.optimizer.param_groups:
        group["lr"] = group["initial_lr"] * job.schedule(step) * job.rate_factor
    job.optimizer.zero_grad(set_to_none=True)
    total = 0.0
    for part in range(job.accumulate):
        inputs, targets = job.batches(step * job.accumulate + part)
        with torch.autocast("cpu", job.autocast or torch.bfloat16, enabled=job.autocast is not None):
            loss = job.loss(job.model(inputs), targets) / job.accumulate
        (loss if job.scaler is None else job.scaler.scale(loss)).backward()  # type: ignore[no-untyped-call]
        total += float(loss.detach())
    if job.scaler is not None:
        job.scaler.unscale_(job.optimizer)
    for hook in job.before_step:
        hook(job)
    if job.clip is not None:
        nn.utils.clip_grad_norm_(job.model.parameters(), job.clip)
    if job.scaler is None:
        job.optimizer.step()
    else:
        job.scaler.step(job.optimizer)
        job.scaler.update()
    for hook in job.after_step:
        hook(job)
    if job.average is not None:
        with torch.no_grad():
            for mean, now in zip(job.average.parameters(), job.model.parameters(), strict=True):
                mean.lerp_(now, 0.01)
    return total


def _save(job: Job, plan: Plan, directory: Path, step: int) -> Path:
    payload: dict[str, Any] = {"model": job.model.state_dict(), "optimizer": job.optimizer.state_dict(), "step": step}
    if job.average is not None:
        payload["ema"] = job.average.state_dict()
    if job.scaler is not None:
        payload["scaler"] = job.scaler.state_dict()
    if job.damage:
        payload = copy.deepcopy(payload)
        for damage in job.damage:
            damage(payload)
    if plan.writer == "weights":
        path = directory / f"model-step-{step:06d}.safetensors"
        save_file({name: value.clone().contiguous() for name, value in payload["model"].items()}, path)
    else:
        path = directory / f"ckpt-{step:06d}.pt"
        torch.save(payload, path)
    return path


def _seen(job: Job, step: int, loss: float, activity: _Activity) -> Seen:
    named = list(job.model.named_parameters())
    return Seen(
        step=step,
        weights={n: p.detach().float().numpy().copy() for n, p in named},
        gradients={
            n: (p.grad.coalesce().values() if p.grad.is_sparse else p.grad).detach().float().numpy().copy()
            for n, p in named
            if p.grad is not None
        },
        loss=loss,
        activity=dict(activity.shares),
        saturation=dict(activity.saturation),
    )


class _Activity:
    """Hooks on the activations of a model: what each unit did in one batch, taken when `on` is set."""

    def __init__(self, model: nn.Module) -> None:
        self.on = False
        self.shares: Arrays = {}
        self.saturation: Arrays = {}
        self._handles = [
            module.register_forward_hook(self._hook(name))
            for name, module in model.named_modules()
            if isinstance(module, nn.ReLU | nn.Tanh)
        ]

    def _hook(self, name: str) -> Callable[[nn.Module, Any, Tensor], None]:
        def hook(module: nn.Module, inputs: Any, output: Tensor) -> None:
            if not self.on:
                return
            if isinstance(module, nn.ReLU):
                self.shares[name] = _by_unit(output.detach() > 0)
            else:
                self.saturation[name] = _by_unit(inputs[0].detach().abs() > TANH_END)

        return hook

    def close(self) -> None:
        for handle in self._handles:
            handle.remove()


def _by_unit(on: Tensor) -> np.ndarray:
    return on.float().mean(0).reshape(-1).numpy()
