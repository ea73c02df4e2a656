"""Run as a program: a training by the real Lightning whose ModelCheckpoint saves every few steps.

`lightning_loop.py OUTPUT TRUTH --mode MODE --saves N --hasty-saves M`: before each of the first N saves, and once
before the M that follow, it waits for a line on its standard input. MODE is `rotate` (the two latest are kept), `last`
(one is kept, and a copy of it as last.ckpt) or `link` (last.ckpt is a link to it). Of each save it writes
TRUTH/STEP.json. Exits with 0 only when nothing went wrong.
"""

from __future__ import annotations

import argparse
import logging
import sys
import warnings
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader, TensorDataset

from tests.support.training import SAVE_EVERY
from tests.support.truths import write_truth


class Net(lightning.LightningModule):
    """A small network with batch normalisation and a schedule, as Lightning wants it."""

    def __init__(self) -> None:
        super().__init__()
        self.net = torch.nn.Sequential(
            torch.nn.Linear(16, 48), torch.nn.BatchNorm1d(48), torch.nn.ReLU(), torch.nn.Linear(48, 4)
        )
        self.save_hyperparameters()

    def training_step(self, batch: list[torch.Tensor], _: int) -> torch.Tensor:
        loss: torch.Tensor = (self.net(batch[0]) - batch[0][:, :4].tanh()).square().mean()
        return loss

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=3e-3, betas=(0.9, 0.99))
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1)]


class Pace(lightning.Callback):
    """Wait before saves, and note the truth of them; Lightning calls whoever saves after all others."""

    def __init__(self, truth: Path, n_paced: int) -> None:
        self.truth = truth
        self.n_paced = n_paced

    def on_train_batch_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        n_saves, rest = divmod(trainer.global_step, SAVE_EVERY)
        if rest == 0 and n_saves <= self.n_paced and not sys.stdin.readline():
            raise SystemExit("nobody says when to go on")

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step % SAVE_EVERY == 0:
            weights = {name: value.numpy() for name, value in pl_module.state_dict().items()}
            write_truth(self.truth, trainer.global_step, weights, epoch=trainer.current_epoch)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("output", type=Path)
    parser.add_argument("truth", type=Path)
    parser.add_argument("--mode", choices=["rotate", "last", "link"], required=True)
    parser.add_argument("--saves", type=int, required=True)
    parser.add_argument("--hasty-saves", type=int, required=True)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    torch.manual_seed(1)
    saver = ModelCheckpoint(
        dirpath=arguments.output,
        every_n_train_steps=SAVE_EVERY,
        monitor="step",
        mode="max",
        save_top_k=2 if arguments.mode == "rotate" else 1,
        save_last={"rotate": None, "last": True, "link": "link"}[arguments.mode],
    )
    trainer = lightning.Trainer(
        accelerator="cpu",
        devices=1,
        max_steps=(arguments.saves + arguments.hasty_saves) * SAVE_EVERY,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[saver, Pace(arguments.truth, arguments.saves)],
    )
    trainer.fit(Net(), DataLoader(TensorDataset(torch.randn(1000, 16)), batch_size=32))


if __name__ == "__main__":
    main()
