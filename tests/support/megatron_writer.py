"""Checkpoints in the layout of Megatron-LM, written with torch.save and torch.distributed.checkpoint.

Megatron-LM itself is not needed: this follows the source of its core 0.20, `training/checkpointing.py`
(`get_checkpoint_name`, `generate_state_dict`), what the optimizers of `core/optimizer` put into their state dicts, and
`core/dist_checkpointing`: names of sharded tensors, `common.pt` (older) or `common_state` (newer), `metadata.json`.
"""

from __future__ import annotations

import argparse
import io
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.planner import WriteItem
from torch.distributed.checkpoint.state_dict_saver import save

ITERATION = 300
LR, BETAS, EPS = 0.125, (0.75, 0.96875), 1e-8
SHAPES: dict[str, tuple[int, ...]] = {
    "embedding.word_embeddings.weight": (11, 4),
    "decoder.layers.0.mlp.linear_fc1.weight": (8, 4),
    "decoder.layers.0.mlp.linear_fc1.bias": (8,),
    "decoder.final_layernorm.weight": (4,),
}


@dataclass
class Rank:
    """The weights of one rank, and Adam's state of each."""

    weights: dict[str, torch.Tensor]
    exp_avg: dict[str, torch.Tensor] = field(default_factory=dict)
    exp_avg_sq: dict[str, torch.Tensor] = field(default_factory=dict)


def make_rank(seed: int) -> Rank:
    """Return made-up weights with a made-up state, both different for each seed."""
    torch.manual_seed(seed)
    rank = Rank({name: torch.randn(shape) for name, shape in SHAPES.items()})
    for name, value in rank.weights.items():
        rank.exp_avg[name] = torch.randn_like(value)
        rank.exp_avg_sq[name] = torch.rand_like(value)
    return rank


def _settings(names: list[str], indices: list[int]) -> dict[str, Any]:
    group = {"lr": LR, "betas": BETAS, "eps": EPS, "weight_decay": 0.01 if len(names) > 1 else 0.0, "step": ITERATION}
    return {**group, "params": indices, "wd_mult": 1.0, "is_expert": False}


def write_legacy(
    directory: Path, ranks: dict[str, Rank], sizes: tuple[int, int, int], *, distributed: bool = False
) -> None:
    """Write `iter_0000300` with a directory for each of `ranks`; `sizes` of the job: tensor, pipeline, expert."""
    for name, rank in ranks.items():
        target = directory / f"iter_{ITERATION:07d}" / name
        target.mkdir(parents=True)
        names = list(rank.weights)
        groups = [_settings(names, list(range(len(names))))]
        inner: dict[str, Any] = {"state": {}, "param_groups": groups}
        if not distributed:
            inner["state"] = {
                index: {"exp_avg": rank.exp_avg[name], "exp_avg_sq": rank.exp_avg_sq[name]}
                for index, name in enumerate(names)
            }
        arguments = argparse.Namespace(
            tensor_model_parallel_size=sizes[0],
            pipeline_model_parallel_size=sizes[1],
            expert_model_parallel_size=sizes[2],
            hidden_size=4,
        )
        optimizer: dict[str, Any] = {"optimizer": inner, "grad_scaler": {"scale": torch.tensor([65536.0])}}
        if not distributed:
            optimizer["fp32_from_fp16_params"] = [list(rank.weights.values())]
        state = {
            "args": arguments,
            "checkpoint_version": 3.0,
            "iteration": ITERATION,
            "num_floating_point_operations_so_far": 10**15,
            "model": {key: value.to(torch.bfloat16) for key, value in rank.weights.items()},
            "optimizer": optimizer,
            "opt_param_scheduler": {"max_lr": LR, "num_steps": ITERATION * 8},
            "rng_state": [{"random_rng_state": (3, (1, 2, 3), None), "torch_rng_state": torch.ByteTensor(16)}],
        }
        torch.save(state, target / "model_optim_rng.pt")
        if distributed:
            flat = {
                "param": torch.cat([value.reshape(-1) for value in rank.weights.values()]),
                "exp_avg": torch.cat([value.reshape(-1) for value in rank.exp_avg.values()]),
                "exp_avg_sq": torch.cat([value.reshape(-1) for value in rank.exp_avg_sq.values()]),
            }
            n = flat["param"].numel()
            buffers = {0: {(torch.bfloat16, torch.float32): {**flat, "numel_unpadded": n}}, "buckets_coalesced": True}
            torch.save(buffers, target / "distrib_optim.pt")
    (directory / "latest_checkpointed_iteration.txt").write_text(str(ITERATION))


class _Planner(DefaultSavePlanner):
    """Megatron's planner, which hands over objects that it has serialised itself."""

    def transform_object(self, write_item: WriteItem, object: Any) -> Any:
        return object


def write_torch_dist(directory: Path, rank: Rank, *, chained: bool) -> Path:
    """Write `iter_0000300` as the torch_dist backend does, from one process.

    `chained`: with two optimizers in one, and with what is not sharded among the shards, as newer versions do.
    """
    target = directory / f"iter_{ITERATION:07d}"
    sharded: dict[str, Any] = {}
    for number, (name, value) in enumerate(rank.weights.items()):
        prefix = f"chained_{number % 2}." if chained else ""
        sharded[name] = value.to(torch.bfloat16)
        sharded[f"{prefix}optimizer.state.fp32_param.{name}"] = value
        sharded[f"{prefix}optimizer.state.exp_avg.{name}"] = rank.exp_avg[name]
        sharded[f"{prefix}optimizer.state.exp_avg_sq.{name}"] = rank.exp_avg_sq[name]
    groups = [_settings(list(rank.weights), [])]
    inner: dict[str, Any] = {"param_groups": groups}
    if chained:
        inner["state"] = {"common_step": groups[0].pop("step")}
    common = {
        "args": argparse.Namespace(hidden_size=4),
        "checkpoint_version": 3.0,
        "iteration": ITERATION,
        "optimizer": {"optimizer": inner, "param_state_sharding_type": "fully_sharded_model_space"},
        "opt_param_scheduler": {"max_lr": LR, "num_steps": ITERATION * 8},
    }
    target.mkdir(parents=True)
    if chained:
        sharded["common_state/shard_0_1"] = io.BytesIO()
        torch.save(common, sharded["common_state/shard_0_1"])
    else:
        torch.save(common, target / "common.pt")
    save(sharded, checkpoint_id=target, planner=_Planner())
    described = {"sharded_backend": "torch_dist", "sharded_backend_version": 1, "common_backend": "torch"}
    (target / "metadata.json").write_text(json.dumps({**described, "common_backend_version": 1}))
    return target
