"""Two real trainings side by side, one of them with a fault, for whatever has to be looked at.

A small network learns with AdamW and is saved by torch with its optimizer; in the second run one element
of one weight turns NaN after the optimizer's step, and training goes on and spreads it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path

import torch

POISONED = "encoder.1.weight"
STEPS_A_SAVE = 20


def train(directory: Path, *, n_saves: int, seed: int, poisoned_save: int | None = None) -> Iterator[int]:
    """Train into `directory` and yield the step after every save; the loss is logged beside the checkpoints."""
    directory.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(seed)
    model = torch.nn.ModuleDict(
        {
            "embed": torch.nn.Linear(32, 64),
            "encoder": torch.nn.Sequential(torch.nn.Linear(64, 96), torch.nn.Linear(96, 64), torch.nn.LayerNorm(64)),
            "head": torch.nn.Linear(64, 8),
        }
    )
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) / math.sqrt(parameter.shape[1]))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    target = torch.randn(32, 8, generator=generator)
    with (directory / "log.jsonl").open("w") as log:
        for save in range(1, n_saves + 1):
            for offset in range(1, STEPS_A_SAVE + 1):
                inputs = torch.randn(64, 32, generator=generator)
                hidden = torch.tanh(model["embed"](inputs))
                loss = (model["head"](torch.tanh(model["encoder"](hidden))) - inputs @ target).square().mean()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                step = (save - 1) * STEPS_A_SAVE + offset
                log.write(
                    json.dumps({"step": step, "loss": loss.item() if math.isfinite(loss.item()) else None}) + "\n"
                )
            log.flush()
            if save == poisoned_save:
                model.state_dict()[POISONED].view(-1)[5] = math.nan
            state = {"step": step, "model": model.state_dict(), "optimizer": optimizer.state_dict()}
            unfinished = directory / f"checkpoint-{step}.pt.tmp"
            torch.save(state, unfinished)
            unfinished.rename(directory / f"checkpoint-{step}.pt")
            yield step
