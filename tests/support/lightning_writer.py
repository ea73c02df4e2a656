"""A real Lightning run that saves sharded checkpoints: `python -m tests.support.lightning_writer DIRECTORY`.

It leaves `last.pt` beside them: the weights and the optimizer's state at the end, gathered, by name.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

STEPS, EVERY = 4, 2
SECONDS_MAX = 100
_ROOT = Path(__file__).parents[2]


def train_sharded(directory: Path) -> None:
    """Run this file as a program of its own; its warnings are its own, too."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "tests.support.lightning_writer", str(directory)],
        cwd=_ROOT,
        capture_output=True,
        text=True,
        timeout=SECONDS_MAX,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]


def _train(directory: Path) -> None:
    import lightning
    import torch
    from lightning.pytorch.callbacks import ModelCheckpoint
    from lightning.pytorch.strategies import ModelParallelStrategy
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict
    from torch.distributed.fsdp import fully_shard
    from torch.utils.data import DataLoader, TensorDataset

    class Model(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = torch.nn.Sequential(torch.nn.Linear(5, 7), torch.nn.ReLU(), torch.nn.Linear(7, 3))

        def configure_model(self) -> None:
            fully_shard(self.net, mesh=self.device_mesh["data_parallel"])  # type: ignore[index]

        def training_step(self, batch: list[torch.Tensor], _: int) -> torch.Tensor:
            loss: torch.Tensor = self.net(batch[0]).square().mean()
            return loss

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.AdamW(self.parameters(), lr=0.125, betas=(0.75, 0.96875))

    torch.manual_seed(0)
    model = Model()
    trainer = lightning.Trainer(
        accelerator="cpu",
        devices=1,
        strategy=ModelParallelStrategy(data_parallel_size=1, tensor_parallel_size=1),
        max_steps=STEPS,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[ModelCheckpoint(dirpath=directory, every_n_train_steps=EVERY, save_top_k=-1)],
    )
    trainer.fit(model, DataLoader(TensorDataset(torch.randn(16, 5)), batch_size=4))
    weights, state = get_state_dict(
        model, trainer.optimizers, options=StateDictOptions(full_state_dict=True, flatten_optimizer_state_dict=True)
    )
    flat = {f"optimizer.{key}": value for key, value in state.items() if key.startswith("state.")}
    torch.save({**weights, **flat}, directory / "last.pt")


if __name__ == "__main__":
    _train(Path(sys.argv[1]))
