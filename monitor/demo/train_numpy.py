"""The demo's trainer where PyTorch is not installed: the same network and Adam in NumPy, saved as safetensors."""

from __future__ import annotations

import json
import os
import struct
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt

from monitor.demo.schedule import LAYER_WIDTHS, Schedule, batch, parse_schedule

Array = npt.NDArray[np.float32]
BETA1, BETA2, EPSILON = 0.9, 0.99, 1e-8


def write_safetensors(path: Path, tensors: dict[str, Array], metadata: dict[str, str]) -> None:
    """Write float32 tensors as a safetensors file under a temporary name, then rename it into place."""
    header: dict[str, object] = {"__metadata__": metadata}
    offset = 0
    for name, values in tensors.items():
        header[name] = {"dtype": "F32", "shape": values.shape, "data_offsets": [offset, offset + values.nbytes]}
        offset += values.nbytes
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)
    temporary = path.with_name(f".tmp-{path.name}")
    with temporary.open("wb") as stream:
        stream.write(struct.pack("<Q", len(encoded)) + encoded)
        for values in tensors.values():
            stream.write(np.ascontiguousarray(values, dtype="<f4").tobytes())
    os.replace(temporary, path)


def gradients(weights: dict[str, Array], inputs: Array, targets: Array) -> dict[str, Array]:
    """Return the gradients of the mean squared error of the ReLU network, by parameter name."""
    n_layers = len(LAYER_WIDTHS) - 1
    activations = [inputs]
    for layer in range(n_layers):
        output = activations[-1] @ weights[f"layers.{layer}.weight"].T + weights[f"layers.{layer}.bias"]
        activations.append(output if layer == n_layers - 1 else np.maximum(output, 0))
    delta: Array = (2 * (activations[-1] - targets) / np.float32(targets.size)).astype(np.float32)
    found: dict[str, Array] = {}
    for layer in reversed(range(n_layers)):
        found[f"layers.{layer}.weight"] = delta.T @ activations[layer]
        found[f"layers.{layer}.bias"] = delta.sum(axis=0)
        if layer:
            delta = ((delta @ weights[f"layers.{layer}.weight"]) * (activations[layer] > 0)).astype(np.float32)
    return found


def train(schedule: Schedule) -> None:
    """Train, and save weights and Adam state every `save_every` steps as ckpt-STEP.safetensors."""
    random = np.random.default_rng(schedule.seed)
    weights: dict[str, Array] = {}
    for layer, (n_in, n_out) in enumerate(pairwise(LAYER_WIDTHS)):
        bound = 1 / np.sqrt(n_in)
        weights[f"layers.{layer}.weight"] = random.uniform(-bound, bound, (n_out, n_in)).astype(np.float32)
        weights[f"layers.{layer}.bias"] = random.uniform(-bound, bound, n_out).astype(np.float32)
    first = {name: np.zeros_like(values) for name, values in weights.items()}
    second = {name: np.zeros_like(values) for name, values in weights.items()}
    for step in range(1, schedule.n_steps + 1):
        rate = np.float32(schedule.learning_rate_at(step))
        for name, gradient in gradients(weights, *batch(schedule, step)).items():
            first[name] += (1 - BETA1) * (gradient - first[name])
            second[name] += (1 - BETA2) * (gradient * gradient - second[name])
            unbiased = np.sqrt(second[name] / (1 - BETA2**step)) + EPSILON
            weights[name] = (weights[name] - rate * (first[name] / (1 - BETA1**step)) / unbiased).astype(np.float32)
        if step % schedule.save_every == 0:
            _save(schedule, step, weights, first, second)
        time.sleep(schedule.pause_seconds)


def _save(
    schedule: Schedule, step: int, weights: dict[str, Array], first: dict[str, Array], second: dict[str, Array]
) -> None:
    tensors = dict(weights)
    for index, name in enumerate(weights):
        tensors[f"optimizer.state.{index}.exp_avg"] = first[name].astype(np.float32)
        tensors[f"optimizer.state.{index}.exp_avg_sq"] = second[name].astype(np.float32)
        tensors[f"optimizer.state.{index}.step"] = np.array(step, dtype=np.float32)
    metadata = {
        "step": str(step),
        "optimizer.param_groups.0.lr": repr(schedule.learning_rate_at(step)),
        "optimizer.param_groups.0.betas.0": repr(BETA1),
        "optimizer.param_groups.0.betas.1": repr(BETA2),
    }
    write_safetensors(schedule.directory / f"ckpt-{step:05d}.safetensors", tensors, metadata)


if __name__ == "__main__":
    with np.errstate(all="ignore"):  # the run overflows on purpose; the checkpoints are what tells
        train(parse_schedule())
