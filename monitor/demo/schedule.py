"""What both demo trainers share: the task to learn, when to save, and the learning rate that goes wrong on purpose.

The fault is a schedule bug as it happens in real life: after `fault_step` the learning rate grows by a factor at every
step, so the gradients explode first and the weights turn NaN some checkpoints later. Standard library and NumPy only.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

LAYER_WIDTHS = (32, 256, 256, 128, 8)
BATCH_SIZE = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """When the demo run saves and goes wrong; `pause_seconds` is slept after each step so that one can watch."""

    directory: Path
    n_steps: int = 400
    save_every: int = 10
    fault_step: int = 200
    learning_rate: float = 1e-3
    fault_growth: float = 1.35
    pause_seconds: float = 0.02
    seed: int = 20

    def learning_rate_at(self, step: int) -> float:
        """Return the learning rate of a step: constant, then growing without bound after `fault_step`."""
        if step <= self.fault_step:
            return self.learning_rate
        return float(min(self.learning_rate * 100 * self.fault_growth ** (step - self.fault_step), 1e30))


def parse_schedule(arguments: list[str] | None = None) -> Schedule:
    """Read a trainer's command line into a Schedule and create its directory."""
    parser = argparse.ArgumentParser(description="A small training run that goes wrong on purpose.")
    parser.add_argument("directory", type=Path)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--save-every", type=int, default=10)
    parser.add_argument("--fault-step", type=int, default=200)
    parser.add_argument("--pause-seconds", type=float, default=0.02)
    parsed = parser.parse_args(arguments)
    parsed.directory.mkdir(parents=True, exist_ok=True)
    return Schedule(
        directory=parsed.directory,
        n_steps=parsed.steps,
        save_every=parsed.save_every,
        fault_step=parsed.fault_step,
        pause_seconds=parsed.pause_seconds,
    )


def batch(schedule: Schedule, step: int) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Return the inputs (BATCH_SIZE, first width) and targets (BATCH_SIZE, last width) of a step; always the same."""
    random = np.random.default_rng([schedule.seed, step])
    teacher = np.random.default_rng(schedule.seed).standard_normal((LAYER_WIDTHS[0], LAYER_WIDTHS[-1]))
    inputs = random.standard_normal((BATCH_SIZE, LAYER_WIDTHS[0]))
    targets = np.tanh(inputs @ teacher / np.sqrt(LAYER_WIDTHS[0]))
    return inputs.astype(np.float32), targets.astype(np.float32)
