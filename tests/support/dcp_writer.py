"""Write checkpoints with torch.distributed.checkpoint from two ranks, and what they hold, gathered, with torch.save.

Run as a program once a rank: `python -m tests.support.dcp_writer DIRECTORY RANK`. `write_from_two_ranks` does that.
"""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

WORLD = 2
SECONDS_MAX = 100
_ROOT = Path(__file__).parents[2]


def write_from_two_ranks(directory: Path) -> None:
    """Fill `directory` with `fsdp`, `titan`, `boards` and `alone`, each with what it holds in `NAME.pt` beside it."""
    ranks = [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", "tests.support.dcp_writer", str(directory), str(rank)],
            cwd=_ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(WORLD)
    ]
    try:
        said = [rank.communicate(timeout=SECONDS_MAX)[0] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    assert [rank.returncode for rank in ranks] == [0] * WORLD, said


def _write(directory: Path, rank: int) -> None:
    import torch
    import torch.distributed as dist
    from torch.distributed.checkpoint.filesystem import FileSystemWriter
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_optimizer_state_dict, get_state_dict
    from torch.distributed.checkpoint.state_dict_saver import save as save_sharded
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import DTensor, Shard, distribute_tensor

    os.environ.update(MASTER_ADDR="127.0.0.1", RANK=str(rank), WORLD_SIZE=str(WORLD))
    dist.init_process_group("gloo", init_method=f"file://{directory}/rendezvous", rank=rank, world_size=WORLD)
    mesh = init_device_mesh("cpu", (WORLD,))
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(5, 7), torch.nn.BatchNorm1d(7), torch.nn.Linear(7, 3))
    fully_shard(model, mesh=mesh)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.125, betas=(0.75, 0.96875))
    for _ in range(2):
        model(torch.randn(4, 5)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    model_state, optimizer_state = get_state_dict(model, optimizer)
    flat_state = get_optimizer_state_dict(model, optimizer, options=StateDictOptions(flatten_optimizer_state_dict=True))

    def save(name: str, state: dict[str, Any], expected: dict[str, Any], **options: Any) -> None:
        full = {key: value.full_tensor() if isinstance(value, DTensor) else value for key, value in expected.items()}
        if rank == 0:
            torch.save(full, directory / f"{name}.pt")
        writer = FileSystemWriter(directory / name, **options.pop("writer", {}))
        save_sharded(state, storage_writer=writer, **options)

    by_name: Any = dict(optimizer_state)["state"]
    states = {
        f"optimizer.state.{name}.{key}": value for name, by_key in by_name.items() for key, value in by_key.items()
    }
    save(
        "fsdp",
        {"model": model_state, "optim": optimizer_state, "global_step": 2, "scheduler": {"last_epoch": 2, "w": [3.5]}},
        dict(model_state) | states,
    )
    save(
        "titan",
        {**model_state, "optimizer": flat_state, "train_state": {"step": torch.tensor(17, dtype=torch.int32)}},
        dict(model_state) | states,
        writer={"thread_count": 2},
    )
    boards = {
        "columns": distribute_tensor(torch.arange(35.0).reshape(5, 7), mesh, [Shard(1)]),
        "rows": distribute_tensor(torch.arange(35.0).reshape(7, 5) / 8, mesh, [Shard(0)]),
        "middle": distribute_tensor(torch.arange(3 * 5 * 4).reshape(3, 5, 4), mesh, [Shard(1)]),
        "half": distribute_tensor(torch.randn(9, 6).to(torch.bfloat16), mesh, [Shard(1)]),
        "one": distribute_tensor(torch.randn(1, 3), mesh, [Shard(0)]),
    }
    save("boards", {**boards}, {**boards}, writer={"single_file_per_rank": False})
    save("alone", {"model": model_state}, dict(model_state), use_collectives=False)
    dist.destroy_process_group()


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    _write(Path(sys.argv[1]), int(sys.argv[2]))
