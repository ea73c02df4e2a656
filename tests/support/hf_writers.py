"""Run as a program: write checkpoints with the real Trainer, Accelerate and PEFT, and the truth about them beside.

`hf_writers.py DIRECTORY` fills DIRECTORY/units with checkpoints and DIRECTORY/truth with one .npz for each, whose
arrays are the framework's own values under the framework's own names.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import ProjectConfiguration
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments


def tiny_model() -> GPT2LMHeadModel:
    torch.manual_seed(1)
    return GPT2LMHeadModel(GPT2Config(vocab_size=40, n_positions=12, n_embd=8, n_layer=2, n_head=2))


class Tokens(torch.utils.data.Dataset[dict[str, torch.Tensor]]):
    """Random sentences."""

    def __len__(self) -> int:
        return 32

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        ids = torch.randint(0, 40, (12,), generator=torch.Generator().manual_seed(index))
        return {"input_ids": ids, "labels": ids}


class Counter:
    """An object of the user's with a state."""

    def __init__(self) -> None:
        self.step = 0

    def state_dict(self) -> dict[str, int]:
        return {"step": self.step, "epoch": 2}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.step = state["step"]


def note(directory: Path, name: str, tensors: dict[str, torch.Tensor]) -> None:
    """Write down values; what is tied is written once, under its first name."""
    seen: dict[int, str] = {}
    kept: dict[str, Any] = {}
    for key, value in tensors.items():
        if seen.setdefault(value.data_ptr(), key) == key or not value.numel():
            kept[key] = value.detach().numpy()
    np.savez(directory / f"{name}.npz", **kept)


def states(path: Path, names: list[str] | None = None) -> dict[str, torch.Tensor]:
    """Return the optimizer's state by its numbers, or under the names of the parameters in their order."""
    loaded: dict[str, Any] = torch.load(path)
    return {
        f"optimizer.state.{names[index] if names else index}.{key}": value
        for index, state in loaded["state"].items()
        for key, value in state.items()
    }


def train(directory: Path, model: Any, **arguments: Any) -> None:
    Trainer(
        model=model,
        args=TrainingArguments(
            output_dir=str(directory),
            use_cpu=True,
            report_to=[],
            max_steps=4,
            save_steps=2,
            logging_steps=1,
            per_device_train_batch_size=4,
            disable_tqdm=True,
            **arguments,
        ),
        train_dataset=Tokens(),
    ).train()


def write_trainer(units: Path, truth: Path) -> None:
    model = tiny_model()
    train(units / "trainer", model)
    note(truth, "trainer", {**model.state_dict(), **states(units / "trainer" / "checkpoint-4" / "optimizer.pt")})
    model.save_pretrained(units / "trainer_sharded" / "checkpoint-4", max_shard_size="5KB")
    for name in ("optimizer.pt", "scheduler.pt", "training_args.bin", "trainer_state.json"):
        copy = units / "trainer_sharded" / "checkpoint-4" / name
        copy.write_bytes((units / "trainer" / "checkpoint-4" / name).read_bytes())
    adapted = get_peft_model(tiny_model(), LoraConfig(r=2, target_modules=["c_attn"], fan_in_fan_out=True))
    train(units / "trainer_peft", adapted)
    weights = {key.removeprefix("base_model.model."): v for key, v in get_peft_model_state_dict(adapted).items()}
    note(truth, "trainer_peft", {**weights, **states(units / "trainer_peft" / "checkpoint-4" / "optimizer.pt")})


def write_accelerate(units: Path, truth: Path) -> None:
    project = ProjectConfiguration(project_dir=str(units / "accelerate"), automatic_checkpoint_naming=True)
    accelerator = Accelerator(cpu=True, project_config=project)
    model = torch.nn.Sequential(torch.nn.Linear(6, 5), torch.nn.LayerNorm(5), torch.nn.Linear(5, 3))
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.97))
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    model, optimizer, scheduler = accelerator.prepare(model, optimizer, scheduler)
    counter = Counter()
    accelerator.register_for_checkpointing(counter)
    for _ in range(2):
        accelerator.backward(model(torch.ones(2, 6)).square().sum())
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        counter.step += 100
        accelerator.save_state()
    note(truth, "accelerate", {**model.state_dict(), **states(project_directory(units, 1) / "optimizer.bin")})
    accelerator.save_state(safe_serialization=False)
    names = [name for name, _ in model.named_parameters()]
    named = states(project_directory(units, 2) / "optimizer.bin", names)
    note(truth, "accelerate_bin", {**model.state_dict(), **named})


def write_two_models(units: Path) -> None:
    accelerator = Accelerator(cpu=True)
    models = [accelerator.prepare(torch.nn.Linear(3, n + 1)) for n in range(2)]
    optimizers = [accelerator.prepare(torch.optim.AdamW(model.parameters())) for model in models]
    for model, optimizer in zip(models, optimizers, strict=True):
        accelerator.backward(model(torch.ones(2, 3)).square().sum())
        optimizer.step()
    accelerator.save_state(str(units / "accelerate_two"))


def project_directory(units: Path, number: int) -> Path:
    return units / "accelerate" / "checkpoints" / f"checkpoint_{number}"


def write_others(units: Path, truth: Path) -> None:
    model = tiny_model()
    model.save_pretrained(units / "sharded", max_shard_size="5KB")
    note(truth, "sharded", model.state_dict())
    adapted = get_peft_model(tiny_model(), LoraConfig(r=2, target_modules=["c_attn"], fan_in_fan_out=True))
    adapted.save_pretrained(str(units / "peft" / "adapter"))
    weights = {key.removeprefix("base_model.model."): v for key, v in get_peft_model_state_dict(adapted).items()}
    note(truth, "peft", weights)


def main() -> None:
    base = Path(sys.argv[1])
    units, truth = base / "units", base / "truth"
    for directory in (units, truth):
        directory.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    write_trainer(units, truth)
    write_accelerate(units, truth)
    write_two_models(units)
    write_others(units, truth)


if __name__ == "__main__":
    main()
