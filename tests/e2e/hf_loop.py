"""Run as a program: a training by the real Trainer that saves every few steps and keeps one checkpoint.

`hf_loop.py OUTPUT TRUTH --saves N --hasty-saves M`: before each of the first N saves it waits for a line on its
standard input, and does not wait for the M after them. Of each save it writes TRUTH/STEP.json. Exits with 0 only when
nothing went wrong.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainerCallback, TrainingArguments

from tests.support.training import SAVE_EVERY
from tests.support.truths import write_truth


class Tokens(torch.utils.data.Dataset[dict[str, torch.Tensor]]):
    """Random sentences."""

    def __len__(self) -> int:
        return 4096

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        ids = torch.randint(0, 40, (12,), generator=torch.Generator().manual_seed(index))
        return {"input_ids": ids, "labels": ids}


class Pace(TrainerCallback):
    """Wait before saves, and note the truth after them."""

    def __init__(self, truth: Path, n_paced: int) -> None:
        self.truth = truth
        self.n_paced = n_paced

    def on_step_begin(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        n_saves, rest = divmod(state.global_step, SAVE_EVERY)
        if rest == 0 and n_saves <= self.n_paced and not sys.stdin.readline():
            raise SystemExit("nobody says when to go on")

    def on_save(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        weights = {
            name: value.numpy()
            for name, value in more["model"].state_dict().items()
            if name != "lm_head.weight"  # tied to the embedding, and left out when it is saved
        }
        write_truth(self.truth, state.global_step, weights, epoch=state.epoch)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("output", type=Path)
    parser.add_argument("truth", type=Path)
    parser.add_argument("--mode")
    parser.add_argument("--saves", type=int, required=True)
    parser.add_argument("--hasty-saves", type=int, required=True)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(1)
    model = GPT2LMHeadModel(
        GPT2Config(vocab_size=40, n_positions=12, n_embd=16, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0)
    )
    trainer = Trainer(
        model=model,
        args=TrainingArguments(
            output_dir=str(arguments.output),
            use_cpu=True,
            report_to=[],
            max_steps=(arguments.saves + arguments.hasty_saves) * SAVE_EVERY,
            save_steps=SAVE_EVERY,
            save_total_limit=1,
            logging_steps=1,
            learning_rate=1e-3,
            per_device_train_batch_size=2,
            disable_tqdm=True,
        ),
        train_dataset=Tokens(),
        callbacks=[Pace(arguments.truth, arguments.saves)],
    )
    trainer.train()


if __name__ == "__main__":
    main()
