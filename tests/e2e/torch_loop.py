"""An ordinary PyTorch training loop, run in a process of its own; ckptwatch is not known to it.

Beside the checkpoints it writes, into another directory, what was true: for each save the float64 NumPy statistics of
every tensor and the weighted mean of the squared gradient norm over the steps since the save before.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

BETA2 = 0.99


def statistics(values: torch.Tensor) -> dict[str, Any]:
    """Return what NumPy says in float64 about the finite elements."""
    array = values.detach().double().numpy().ravel()
    finite = array[np.isfinite(array)]
    truth: dict[str, Any] = {
        "shape": list(values.shape),
        "n_nan": int(np.isnan(array).sum()),
        "n_zero": int((array == 0).sum()),
    }
    if finite.size:
        truth |= {
            "min": float(finite.min()),
            "max": float(finite.max()),
            "mean": float(finite.mean()),
            "std": float(finite.std()),
            "norm_l1": float(np.abs(finite).sum()),
            "norm_l2": float(np.sqrt((finite**2).sum())),
            "abs_max": float(np.abs(finite).max()),
        }
    return truth


def main() -> None:
    """Train, save, and write down the truth."""
    parser = argparse.ArgumentParser()
    parser.add_argument("directory", type=Path)
    parser.add_argument("truth", type=Path)
    parser.add_argument("--mode", choices=["overwrite", "rotate"], required=True)
    parser.add_argument("--saves", type=int, default=30)
    parser.add_argument("--save-every", type=int, default=5)
    parser.add_argument("--pause-seconds", type=float, default=0.8)
    parser.add_argument("--keep", type=int, default=3)
    parser.add_argument("--nan-at", type=int, default=0, help="poison one tensor in the saves from this number on")
    parser.add_argument("--recover-at", type=int, default=0, help="restore the weights before this save")
    arguments = parser.parse_args()
    torch.manual_seed(7)
    torch.set_num_threads(1)
    model = torch.nn.Sequential(
        torch.nn.Linear(16, 64), torch.nn.BatchNorm1d(64), torch.nn.ReLU(), torch.nn.Linear(64, 4)
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, betas=(0.9, BETA2))
    kept: list[Path] = []
    squared_norms: list[float] = []
    clean = {name: value.clone() for name, value in model.state_dict().items()}
    for save in range(1, arguments.saves + 1):
        if save == arguments.recover_at:
            model.load_state_dict(clean)
        for _ in range(arguments.save_every):
            inputs = torch.randn(32, 16)
            loss = (model(inputs) - inputs[:, :4].tanh()).square().mean()
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            squared_norms.append(sum(float(p.grad.double().square().sum()) for p in model.parameters() if p.grad is not None))
            if arguments.nan_at and save >= arguments.nan_at and not arguments.recover_at:
                continue  # a poisoned run keeps saving its poisoned weights
            if not (arguments.nan_at <= save < arguments.recover_at):
                optimizer.step()
        if save < arguments.nan_at or not arguments.nan_at:
            clean = {name: value.clone() for name, value in model.state_dict().items()}
        if save == arguments.nan_at:
            with torch.no_grad():
                model[3].weight.view(-1)[5] = math.nan
        _save(arguments, model, optimizer, save, kept, squared_norms)
        time.sleep(arguments.pause_seconds)


def _save(
    arguments: argparse.Namespace,
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    save: int,
    kept: list[Path],
    squared_norms: list[float],
) -> None:
    step = save * arguments.save_every
    name = "latest.pt" if arguments.mode == "overwrite" else f"ckpt-{step:06d}.pt"
    path = arguments.directory / name
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step}, path)
    if arguments.mode == "rotate":
        kept.append(path)
        if len(kept) > arguments.keep:
            kept.pop(0).unlink()
    window = squared_norms[-arguments.save_every :]
    weights = [(1 - BETA2) * BETA2**j for j in range(len(window))]
    mean = sum(w * g for w, g in zip(weights, reversed(window), strict=True)) / sum(weights)
    truth = {
        "step": step,
        "path": str(path),
        "window_norm": math.sqrt(mean),
        "saved_at": time.time(),
        "tensors": {name: statistics(value) for name, value in model.state_dict().items()},
    }
    temporary = arguments.truth / f".{step}.json"
    temporary.write_text(json.dumps(truth))
    os.replace(temporary, arguments.truth / f"{step:06d}.json")


if __name__ == "__main__":
    main()
