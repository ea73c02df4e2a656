"""Checkpoints in the layout of DeepSpeed, written with torch.save.

DeepSpeed itself is not needed: this follows the source of its release 0.19.6, `runtime/engine.py`
(`_common_checkpoint_state`, names of files), `runtime/zero/stage_1_and_2.py` and `stage3.py` (`state_dict`), and the
inverse in `utils/zero_to_fp32.py`: names of files, keys, order of parameters, padding and cuts. The optimizer is a real
AdamW that steps on the flat partitions, as DeepSpeed's does.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

LR, BETAS = 0.125, (0.75, 0.96875)
STEPS = 2
ALIGNMENT = 2  # nccl_start_alignment_factor


@dataclass
class Trained:
    """Parameters in groups by name, trained as one optimizer does, and its state of each."""

    groups: list[dict[str, torch.Tensor]]
    gradients: list[dict[str, torch.Tensor]]
    weights: dict[str, torch.Tensor]
    state: dict[str, dict[str, torch.Tensor]]


def train(groups: list[dict[str, tuple[int, ...]]]) -> Trained:
    """Make parameters of these shapes, and train them for STEPS steps."""
    torch.manual_seed(5)
    start = [{name: torch.randn(shape) for name, shape in group.items()} for group in groups]
    gradients = [{name: torch.randn(shape) for name, shape in group.items()} for group in groups]
    weights = {name: torch.nn.Parameter(value.clone()) for group in start for name, value in group.items()}
    optimizer = _stepped(list(weights.values()), [g for group in gradients for g in group.values()])
    state = {name: dict(optimizer.state[weights[name]]) for name in weights}
    return Trained(start, gradients, {name: value.detach() for name, value in weights.items()}, state)


def _stepped(parameters: list[torch.nn.Parameter], gradients: list[torch.Tensor]) -> torch.optim.AdamW:
    optimizer = torch.optim.AdamW(parameters, lr=LR, betas=BETAS)
    for _ in range(STEPS):
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient.clone()
        optimizer.step()
    return optimizer


def _flat(values: list[torch.Tensor], n_ranks: int) -> torch.Tensor:
    """Lay tensors end to end, and fill up to a multiple of what all ranks need."""
    flat = torch.cat([value.reshape(-1) for value in values])
    return torch.nn.functional.pad(flat, (0, -flat.numel() % (ALIGNMENT * n_ranks)))


def _engine_state(trained: Trained, module: dict[str, torch.Tensor], n_ranks: int, **more: Any) -> dict[str, Any]:
    return {
        "module": OrderedDict(module),
        "buffer_names": ["steps_seen"],
        "optimizer": None,
        "param_shapes": [OrderedDict((name, value.shape) for name, value in group.items()) for group in trained.groups],
        "frozen_param_shapes": None,
        "shared_params": {},
        "frozen_param_fragments": None,
        "lr_scheduler": {"last_batch_iteration": STEPS},
        "data_sampler": None,
        "random_ltd": None,
        "sparse_tensor_module_names": set(),
        "skipped_steps": 0,
        "global_steps": 40,
        "global_samples": 1280,
        "dp_world_size": n_ranks,
        "mp_world_size": 1,
        "ds_config": {"zero_optimization": {"stage": 2}, "train_batch_size": 32},
        "ds_version": "0.18.0",
        **more,
    }


def write_stage_2(
    directory: Path,
    trained: Trained,
    n_ranks: int,
    *,
    prefix: str = "",
    mp_rank: int = 0,
    elastic: bool = False,
    **more: Any,
) -> None:
    """Write what stages 1 and 2 save, with bf16 weights in the model; `prefix` "bf16_" keeps padding."""
    directory.mkdir(parents=True, exist_ok=True)
    module = {name: value.to(torch.bfloat16) for name, value in trained.weights.items()}
    state = _engine_state(trained, {**module, "steps_seen": torch.tensor(7)}, n_ranks, **more)
    torch.save(state, directory / f"mp_rank_{mp_rank:02d}_model_states.pt")
    starts = [_flat(list(group.values()), n_ranks) for group in trained.groups]
    slopes = [_flat(list(group.values()), n_ranks) for group in trained.gradients]
    for rank in range(n_ranks):
        pieces, kept = [], []
        for start, slope, group in zip(starts, slopes, trained.groups, strict=True):
            n = start.numel() // n_ranks
            pieces.append((torch.nn.Parameter(start[rank * n : (rank + 1) * n].clone()), slope[rank * n :][:n]))
            kept.append(max(0, min(n, sum(v.numel() for v in group.values()) - rank * n)))
        optimizer = torch.optim.AdamW([{"params": [p]} for p, _ in pieces], lr=LR, betas=BETAS)
        for _ in range(STEPS):
            for parameter, slope in pieces:
                parameter.grad = slope.clone()
            optimizer.step()
        masters = [p.detach()[: None if prefix else n].clone() for (p, _), n in zip(pieces, kept, strict=True)]
        base: Any = optimizer.state_dict()
        once = {}
        if elastic:  # a state a group, without padding, and without a step where the groups keep it
            base = [
                {key: base["state"][index][key][:n].clone() for key in ("exp_avg", "exp_avg_sq")}
                for index, n in enumerate(kept)
            ]
            once = {"base_optimizer_state_step": STEPS}
        zero = {
            **once,
            "loss_scaler": 1.0,
            "dynamic_loss_scale": False,
            "overflow": False,
            "clip_grad": 1.0,
            "base_optimizer_state": base,
            "single_partition_of_fp32_groups": masters,
            "zero_stage": 2,
            "group_paddings": [p.numel() - n for (p, _), n in zip(pieces, kept, strict=True)],
            "partition_count": [n_ranks] * len(pieces),
            "ds_version": "0.18.0",
        }
        saved = {"optimizer_state_dict": zero, "ds_config": {}, "ds_version": "0.18.0"}
        torch.save(saved, directory / f"{prefix}zero_pp_rank_{rank}_mp_rank_{mp_rank:02d}_optim_states.pt")


def write_stage_3(
    directory: Path, trained: Trained, n_ranks: int, frozen: dict[str, torch.Tensor] | None = None
) -> None:
    """Write what stage 3 saves: every parameter cut over the ranks, each group a sub-group, husks in the model."""
    directory.mkdir(parents=True, exist_ok=True)
    frozen = frozen or {}
    husks = {name: torch.empty(0) for name in (*trained.weights, *frozen)}
    for rank in range(n_ranks):
        more = {
            "frozen_param_shapes": OrderedDict((k, v.shape) for k, v in frozen.items()) or None,
            "frozen_param_fragments": OrderedDict((k, _slice(v, rank, n_ranks)) for k, v in frozen.items()) or None,
        }
        state = _engine_state(trained, {**husks, "steps_seen": torch.tensor(7)}, n_ranks, **more)
        torch.save(state, directory / f"zero_pp_rank_{rank}_mp_rank_00_model_states.pt")
        pieces = [
            (
                torch.nn.Parameter(torch.cat([_slice(value, rank, n_ranks) for value in start.values()])),
                torch.cat([_slice(value, rank, n_ranks) for value in slopes.values()]),
            )
            for start, slopes in zip(trained.groups, trained.gradients, strict=True)
        ]
        optimizer = _stepped([p for p, _ in pieces], [g for _, g in pieces])
        zero = {
            "zero_stage": 3,
            "loss_scaler": 1.0,
            "dynamic_loss_scale": False,
            "overflow": False,
            "partition_count": n_ranks,
            "optimizer_state_dict": optimizer.state_dict(),
            "fp32_flat_groups": [p.detach().clone() for p, _ in pieces],
        }
        saved = {"optimizer_state_dict": zero, "ds_config": {}, "ds_version": "0.18.0"}
        torch.save(saved, directory / f"zero_pp_rank_{rank}_mp_rank_00_optim_states.pt")


def _slice(value: torch.Tensor, rank: int, n_ranks: int) -> torch.Tensor:
    n = -(-value.numel() // n_ranks)
    padded = torch.nn.functional.pad(value.reshape(-1), (0, n * n_ranks - value.numel()))
    return padded[rank * n : (rank + 1) * n].clone()
