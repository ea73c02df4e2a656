"""The demo's PyTorch trainer: an ordinary loop with AdamW and `torch.save`; it knows nothing of ckptwatch."""

from __future__ import annotations

import time
from itertools import pairwise

from monitor.demo.schedule import LAYER_WIDTHS, Schedule, batch, parse_schedule


def train(schedule: Schedule) -> None:
    """Train, and save model and optimizer every `save_every` steps as ckpt-STEP.pt."""
    import torch  # noqa: PLC0415 (an extra: the package must import without it)

    torch.manual_seed(schedule.seed)
    torch.set_num_threads(1)
    layers: list[torch.nn.Module] = []
    for n_in, n_out in pairwise(LAYER_WIDTHS):
        layers += [torch.nn.Linear(n_in, n_out), torch.nn.ReLU()]
    model = torch.nn.Sequential(*layers[:-1])
    optimizer = torch.optim.AdamW(model.parameters(), lr=schedule.learning_rate, betas=(0.9, 0.99))
    for step in range(1, schedule.n_steps + 1):
        for group in optimizer.param_groups:
            group["lr"] = schedule.learning_rate_at(step)
        inputs, targets = batch(schedule, step)
        loss = torch.nn.functional.mse_loss(model(torch.from_numpy(inputs)), torch.from_numpy(targets))
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        if step % schedule.save_every == 0:
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step}
            torch.save(state, schedule.directory / f"ckpt-{step:05d}.pt")
        time.sleep(schedule.pause_seconds)


if __name__ == "__main__":
    train(parse_schedule())
