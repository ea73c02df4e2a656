"""An ordinary PyTorch training loop, run in a process of its own; it knows nothing of ckptwatch.

Beside the checkpoints it writes, into another directory, what was true: for each save the float64 NumPy statistics of
every tensor and the squared gradient norm of every step since the save before. It saves when it reads a line from its
standard input; one more line lets a last stretch of saves begin that comes without any pause.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Mapping
from pathlib import Path

import torch

from tests.support.truths import write_truth

BETA2 = 0.99
POISONED = "3.weight"


class Training:
    """A small network with batch normalisation, AdamW, and the gradient norms that it had."""

    def __init__(self) -> None:
        torch.manual_seed(7)
        torch.set_num_threads(1)
        self.model = torch.nn.Sequential(
            torch.nn.Linear(16, 64), torch.nn.BatchNorm1d(64), torch.nn.ReLU(), torch.nn.Linear(64, 4)
        )
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=3e-3, betas=(0.9, BETA2))
        self.squared_norms: list[float] = []
        self.clean: dict[str, torch.Tensor] = {}

    def step(self) -> None:
        """Train on one batch."""
        inputs = torch.randn(32, 16)
        loss = (self.model(inputs) - inputs[:, :4].tanh()).square().mean()
        self.optimizer.zero_grad()
        loss.backward()
        gradients = [p.grad.double() for p in self.model.parameters() if p.grad is not None]
        self.squared_norms.append(sum(float(g.square().sum()) for g in gradients))
        self.optimizer.step()

    def poison(self) -> None:
        """Write NaN into one element of one weight, and remember how it was."""
        self.clean = {name: value.clone() for name, value in self.model.state_dict().items()}
        self.model.state_dict()[POISONED].view(-1)[5] = math.nan

    def heal(self) -> None:
        """Put the weights back."""
        self.model.load_state_dict(self.clean)

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return every tensor that is saved: those of the model by its own names, those of the optimizer by path."""
        found = dict(self.model.state_dict())
        states: Mapping[int, Mapping[str, torch.Tensor]] = self.optimizer.state_dict()["state"]
        names = [name for name, _ in self.model.named_parameters()]
        for index, state in states.items():
            found |= {f"optimizer.state.{names[index]}.{key}": value for key, value in state.items()}
        return found


class Files:
    """Where checkpoints and the truth about them go."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.directory: Path = arguments.directory
        self.truth: Path = arguments.truth
        self.rotates: bool = arguments.mode == "rotate"
        self.keep: int = arguments.keep
        self.kept: list[Path] = []

    def save(self, training: Training, step: int, n_new_steps: int) -> None:
        """Save model and optimizer the usual way, delete what is too old, and write down what was saved."""
        path = self.directory / (f"ckpt-{step:06d}.pt" if self.rotates else "latest.pt")
        state = {"model": training.model.state_dict(), "optimizer": training.optimizer.state_dict(), "step": step}
        torch.save(state, path)
        if self.rotates:
            self.kept.append(path)
            if len(self.kept) > self.keep:
                self.kept.pop(0).unlink()
        squared_norms = training.squared_norms[len(training.squared_norms) - n_new_steps :]
        tensors = {name: value.detach().numpy() for name, value in training.tensors().items()}
        write_truth(self.truth, step, tensors, path=str(path), squared_norms=squared_norms)


def main() -> None:
    """Train, save, and write down the truth."""
    parser = argparse.ArgumentParser()
    parser.add_argument("directory", type=Path)
    parser.add_argument("truth", type=Path)
    parser.add_argument("--mode", choices=["overwrite", "rotate"], required=True)
    parser.add_argument("--saves", type=int, default=30, help="saves that wait for a line")
    parser.add_argument("--hasty-saves", type=int, default=0, help="saves after that, which wait for nothing")
    parser.add_argument("--save-every", type=int, default=5)
    parser.add_argument("--keep", type=int, default=3)
    parser.add_argument("--poison-at", type=int, default=0, help="the save from which on a weight is NaN")
    parser.add_argument("--heal-at", type=int, default=0, help="the save from which on it is not any more")
    arguments = parser.parse_args()
    training, files = Training(), Files(arguments)
    for save in range(1, arguments.saves + arguments.hasty_saves + 1):
        is_poisoned = arguments.poison_at and arguments.poison_at <= save < (arguments.heal_at or math.inf)
        n_steps = 0 if is_poisoned else arguments.save_every
        if save == arguments.heal_at:
            training.heal()
        for _ in range(n_steps):
            training.step()
        if save == arguments.poison_at:
            training.poison()
        if save <= arguments.saves + 1 and not sys.stdin.readline():
            return
        files.save(training, save * arguments.save_every, n_steps)


if __name__ == "__main__":
    main()
