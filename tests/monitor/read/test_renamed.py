from __future__ import annotations

import random
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from monitor.read.reader import ReadLimits, TensorSpec
from monitor.read.renamed import unwrapped_names
from storage.records import TensorKind
from tests.support.reading import read_whole


def specs(*names: str, kind: TensorKind = TensorKind.PARAMETER) -> list[TensorSpec]:
    return [TensorSpec(name=name, kind=kind, dtype="float32", shape=(1,), n_elements=1) for name in names]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("module.a.weight", "a.weight"),
        ("_orig_mod.a.weight", "a.weight"),
        ("module._orig_mod.a.weight", "a.weight"),
        ("_orig_mod.module.a.weight", "a.weight"),
        ("layers.0._fsdp_wrapped_module.a.weight", "layers.0.a.weight"),
        ("layers._orig_mod.0._checkpoint_wrapped_module.w", "layers.0.w"),
        ("base_model.model.model.a.lora_A.weight", "model.a.lora_A.weight"),
        ("ema.a.weight", "a.weight"),
    ],
)
def test_traces_of_wrappers_are_left_out(old: str, new: str) -> None:
    assert unwrapped_names(specs(old), ReadLimits()) == {old: new}


def test_a_part_of_the_model_that_is_called_like_a_wrapper_keeps_its_name() -> None:
    assert unwrapped_names(specs("module.a", "head.b"), ReadLimits()) == {}
    assert unwrapped_names(specs("module"), ReadLimits()) == {}
    assert unwrapped_names(specs("my_orig_mod.a", "ema_module.b"), ReadLimits()) == {}


def test_names_that_would_clash_stay_apart() -> None:
    renames = unwrapped_names(specs("_orig_mod.a", "a"), ReadLimits())
    assert len({renames.get(name, name) for name in ("_orig_mod.a", "a")}) == 2


def test_the_same_weights_have_the_same_names_however_the_model_was_wrapped(tmp_path: Path) -> None:
    model = torch.nn.Sequential(OrderedDict(fc=torch.nn.Linear(3, 2), norm=torch.nn.BatchNorm1d(2)))
    plain = model.state_dict()
    wrapped = torch.nn.DataParallel(model).state_dict()
    compiled = {f"_orig_mod.{key}": value for key, value in plain.items()}
    found = []
    for number, state in enumerate((plain, wrapped, compiled)):
        torch.save({"model": state}, tmp_path / f"{number}.pt")
        found.append(read_whole(tmp_path / f"{number}.pt"))
    for whole in found:
        assert list(whole.specs) == list(plain)
        assert whole.values.keys() == found[0].values.keys()
        assert all(np.array_equal(whole.values[name], found[0].values[name]) for name in whole.values)
        assert [spec.kind for spec in whole.specs.values()] == [spec.kind for spec in found[0].specs.values()]


def test_ties_and_optimizer_state_follow_the_new_names(tmp_path: Path) -> None:
    model = torch.nn.ModuleDict({"a": torch.nn.Linear(2, 2, bias=False), "b": torch.nn.Linear(2, 2, bias=False)})
    model["b"].weight = model["a"].weight
    optimizer = torch.optim.Adam(model.parameters())
    model["a"](torch.ones(1, 2)).sum().backward()
    optimizer.step()
    wrapped = {f"module.{key}": value for key, value in model.state_dict().items()}
    torch.save({"model": wrapped, "optimizer": optimizer.state_dict()}, tmp_path / "x.pt")
    whole = read_whole(tmp_path / "x.pt")
    assert whole.specs["b.weight"].tied_to == "a.weight"
    assert "optimizer.state.a.weight.exp_avg_sq" in whole.specs


def test_names_of_any_kind_give_unique_names(tmp_path: Path) -> None:
    chooser = random.Random(2)
    parts = ["module", "_orig_mod", "a", "ema", "_fsdp_wrapped_module", "base_model", "model"]
    for number in range(30):
        names = {".".join(chooser.choices(parts, k=chooser.randrange(1, 5))) for _ in range(12)}
        path = tmp_path / f"{number}.safetensors"
        save_file({name: np.array([i], np.float32) for i, name in enumerate(sorted(names))}, path)
        whole = read_whole(path)
        assert len(whole.values) == len(names)
        assert sorted(value[0] for value in whole.values.values()) == list(range(len(names)))


def test_an_averaged_model_of_pytorch_has_the_names_of_the_model_it_averages(tmp_path: Path) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    averaged = torch.optim.swa_utils.AveragedModel(model)
    torch.save(averaged.state_dict(), tmp_path / "averaged.pt")
    specs = read_whole(tmp_path / "averaged.pt").specs
    assert list(specs) == ["n_averaged", *model.state_dict()]
    assert specs["n_averaged"].kind is TensorKind.OTHER
