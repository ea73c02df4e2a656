"""A training loop of two ranks that shards its checkpoints, run as a program; it knows nothing of ckptwatch.

Model and optimizer are sharded by FSDP2 and saved by torch.distributed.checkpoint in the background, as torchtitan
does; only the latest checkpoints are kept. The first rank starts the second one, saves when it reads a line, and
writes down what was true of every save, gathered from both ranks.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict
from torch.distributed.checkpoint.state_dict_saver import async_save
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from tests.support.training import SAVE_EVERY
from tests.support.truths import write_truth

WORLD = 2
FLAT = StateDictOptions(flatten_optimizer_state_dict=True)


class Training:
    """One rank's part of the training."""

    def __init__(self) -> None:
        torch.manual_seed(7)
        torch.set_num_threads(1)
        mesh = init_device_mesh("cpu", (WORLD,))
        self.model = torch.nn.Sequential(torch.nn.Linear(16, 63), torch.nn.ReLU(), torch.nn.Linear(63, 4))
        fully_shard(self.model, mesh=mesh)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=3e-3, betas=(0.9, 0.99))

    def train(self) -> None:
        """Train for SAVE_EVERY steps."""
        for _ in range(SAVE_EVERY):
            inputs = torch.randn(32, 16)
            self.optimizer.zero_grad()
            (self.model(inputs) - inputs[:, :4].tanh()).square().mean().backward()
            self.optimizer.step()

    def save(self, path: Path, step: int) -> dict[str, torch.Tensor]:
        """Save, and return what was saved, gathered."""
        weights, state = get_state_dict(self.model, self.optimizer, options=FLAT)
        saved = {**weights, "optimizer": state, "train_state": {"step": torch.tensor(step)}}
        async_save(saved, checkpoint_id=path).result()  # type: ignore[union-attr]
        tensors: dict[str, Any] = {**weights, **{f"optimizer.{name}": value for name, value in state.items()}}
        sharded = {name: value for name, value in tensors.items() if isinstance(value, DTensor)}
        return {name: value.full_tensor() for name, value in sharded.items()}


def _told_to_save(rank: int, *, waits: bool) -> bool:
    """Return whether to save once more, which the first rank is told and tells the other one."""
    told = torch.tensor([1 if rank != 0 or not waits or sys.stdin.readline() else 0])
    dist.broadcast(told, 0)
    return bool(told.item())


def main() -> None:
    """Train, save, and write down the truth."""
    parser = argparse.ArgumentParser()
    parser.add_argument("directory", type=Path)
    parser.add_argument("truth", type=Path)
    parser.add_argument("--mode", choices=["rotate"], required=True)
    parser.add_argument("--saves", type=int, default=4, help="saves that wait for a line")
    parser.add_argument("--hasty-saves", type=int, default=0, help="saves after that, which wait for nothing")
    parser.add_argument("--keep", type=int, default=2)
    parser.add_argument("--rank", type=int, default=0)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    rank, meeting = arguments.rank, arguments.truth / "meeting"
    if rank == 0:
        other = subprocess.Popen([sys.executable, *sys.argv, "--rank", "1"], stdin=subprocess.DEVNULL)
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(WORLD))
    dist.init_process_group("cpu:gloo", init_method=f"file://{meeting}", rank=rank, world_size=WORLD)
    training = Training()
    kept: list[Path] = []
    for save in range(1, arguments.saves + arguments.hasty_saves + 1):
        step = save * SAVE_EVERY
        training.train()
        if not _told_to_save(rank, waits=save <= arguments.saves + 1):
            break
        kept.append(arguments.directory / f"step-{step}")
        tensors = training.save(kept[-1], step)
        if rank == 0:
            write_truth(arguments.truth, step, {name: value.detach().numpy() for name, value in tensors.items()})
            if len(kept) > arguments.keep:
                shutil.rmtree(kept.pop(0))
    dist.destroy_process_group()
    if rank == 0 and other.wait() != 0:
        raise SystemExit("the other rank failed")


if __name__ == "__main__":
    main()
