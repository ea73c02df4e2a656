"""Sharded formats inside of the directories that training frameworks make around them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict
from torch.distributed.checkpoint.state_dict_saver import save

from monitor.measure.optimizer import gradient_estimate
from monitor.measure.options import MeasureOptions
from monitor.measure.snapshot import measure_path
from monitor.read.reader import IncompleteError
from monitor.read.registry import open_path
from storage.records import TensorKind
from tests.support.deepspeed_writer import train, write_stage_2
from tests.support.lightning_writer import EVERY, STEPS, train_sharded
from tests.support.reading import Whole, bits, read_whole
from tests.support.torch_values import numpy_of

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is:UserWarning")


def assert_same(whole: Whole, expected: dict[str, torch.Tensor]) -> None:
    for name, value in expected.items():
        assert whole.specs[name].shape == tuple(value.shape), name
        assert bits(whole.values[name]) == bits(numpy_of(value)), name


def test_a_real_lightning_run_that_shards_is_read_with_its_step_and_epoch(tmp_path: Path) -> None:
    train_sharded(tmp_path)
    expected = torch.load(tmp_path / "last.pt")
    for step in range(EVERY, STEPS + 1, EVERY):
        whole = read_whole(tmp_path / f"epoch=0-step={step}.ckpt")
        assert (whole.format, whole.step, whole.epoch) == ("torch_dcp", step, 0.0)
        kinds = {name: spec.kind for name, spec in whole.specs.items()}
        assert set(kinds) == set(expected)
        assert kinds["net.0.weight"] is TensorKind.PARAMETER
    assert_same(whole, expected)
    measured = measure_path(str(tmp_path / f"epoch=0-step={STEPS}.ckpt"), MeasureOptions())
    assert gradient_estimate(measured.tensors, measured.scalars) is not None


def trained() -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(5, 7), torch.nn.Linear(7, 3))
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.randn(2, 5)).sum().backward()
    optimizer.step()
    return model, optimizer


@pytest.mark.parametrize("layout", ["trainer", "accelerate"])
def test_fsdp_directories_of_hugging_face_are_model_and_optimizer(tmp_path: Path, layout: str) -> None:
    """Saved as `save_fsdp_model` and `save_fsdp_optimizer` of Accelerate do."""
    model, optimizer = trained()
    weights, state = get_state_dict(model, optimizer, options=StateDictOptions(full_state_dict=True))
    path = tmp_path / ("checkpoint-40" if layout == "trainer" else "checkpoint_3")
    save({"model": weights}, checkpoint_id=path / "pytorch_model_fsdp_0")
    save({"optimizer": state}, checkpoint_id=path / "optimizer_0")
    if layout == "trainer":
        with pytest.raises(IncompleteError), open_path(str(path)):
            pass
        (path / "trainer_state.json").write_text(json.dumps({"global_step": 40, "epoch": 2.5, "log_history": []}))
    else:
        torch.save({"step": 0}, path / "random_states_0.pkl")
    whole = read_whole(path)
    assert whole.step == (40 if layout == "trainer" else None)
    by_name: Any = dict(state)["state"]
    expected = {f"optimizer.state.{n}.{k}": v for n, by_key in by_name.items() for k, v in by_key.items()}
    expected |= {name: value for name, value in weights.items() if isinstance(value, torch.Tensor)}
    assert_same(whole, expected)
    assert set(whole.specs) == set(expected)
    assert whole.scalars["optimizer.param_groups.0.betas.1"] == 0.999


def test_deepspeed_within_a_trainers_checkpoint_has_the_trainers_step(tmp_path: Path) -> None:
    made = train([{"w": (5, 3)}, {"b": (3,)}])
    path = tmp_path / "checkpoint-40"
    write_stage_2(path / "global_step39", made, 2)
    (tmp_path / "checkpoint-40" / "latest").write_text("global_step39")
    (path / "trainer_state.json").write_text(json.dumps({"global_step": 40, "epoch": 2.5, "log_history": []}))
    whole = read_whole(path)
    assert (whole.format, whole.step, whole.epoch) == ("hf_trainer", 40, 2.5)
    assert_same(whole, {name: value.to(torch.bfloat16) for name, value in made.weights.items()})
    assert whole.specs["optimizer.state.w.exp_avg_sq"].shape == (5, 3)
    (path / "global_step39" / "zero_pp_rank_1_mp_rank_00_optim_states.pt").unlink()
    with pytest.raises(IncompleteError), open_path(str(path)):
        pass
