"""The gradients shown for a checkpoint that PyTorch wrote are those of PyTorch's own optimizer state."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from monitor.measure.options import MeasureOptions
from monitor.measure.snapshot import measure_path
from monitor.show.aggregate import group_rows
from monitor.show.gradients import mean_squared_gradients
from monitor.show.views import Measurement


def train(groups_by_decay: bool) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(5)
    model = torch.nn.Sequential(torch.nn.Linear(6, 5), torch.nn.LayerNorm(5), torch.nn.Linear(5, 3, bias=False))
    parameters = list(model.parameters())
    optimizer: torch.optim.Optimizer
    if groups_by_decay:
        matrices = [p for p in parameters if p.ndim > 1]
        vectors = [p for p in parameters if p.ndim == 1]
        groups: list[dict[str, Any]] = [{"params": matrices}, {"params": vectors, "weight_decay": 0.0}]
        optimizer = torch.optim.AdamW(groups, lr=0.01)
    else:
        optimizer = torch.optim.Adam(parameters, betas=(0.9, 0.95))
    for _ in range(7):
        optimizer.zero_grad()
        model(torch.randn(16, 6)).square().mean().backward()
        optimizer.step()
    return model, optimizer


@pytest.mark.parametrize("groups_by_decay", [False, True], ids=["order of the model", "matrices first"])
def test_every_parameter_gets_the_second_moment_that_adam_kept_for_it(tmp_path: Path, groups_by_decay: bool) -> None:
    model, optimizer = train(groups_by_decay)
    path = tmp_path / "step-7.pt"
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, path)
    measured = measure_path(str(path), MeasureOptions())
    beta2 = 0.999 if groups_by_decay else 0.95
    expected = {
        name: float(optimizer.state[parameter]["exp_avg_sq"].double().mean()) / (1 - beta2**7)
        for name, parameter in model.named_parameters()
    }
    found = mean_squared_gradients(measured.tensors, measured.scalars)
    assert found == pytest.approx(expected, rel=1e-5)
    rows = group_rows(Measurement(tensors=measured.tensors, scalars=measured.scalars), step=7)
    assert [row.name for row in rows] == ["0", "1", "2"]
    assert rows[2].values["gradient_rms"] == pytest.approx(expected["2.weight"] ** 0.5, rel=1e-5)
