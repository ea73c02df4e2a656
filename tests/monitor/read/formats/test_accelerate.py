from __future__ import annotations

import shutil
from pathlib import Path
from typing import ClassVar

import pytest

from monitor.read.reader import IncompleteError
from monitor.read.registry import open_path
from monitor.watch.runs import resolve_roots, step_from_path
from storage.records import TensorKind
from tests.conformance.unit import UnitConformance
from tests.support.hf_truth import assert_is_truth
from tests.support.memory import peak_bytes_of_reading
from tests.support.reading import read_whole
from tests.support.sparse_files import sparse_safetensors


class TestAccelerate(UnitConformance):
    format: ClassVar[str] = "accelerate"
    needed: ClassVar[tuple[str, ...]] = ("model.safetensors", "random_states_0.pkl")

    def place(self, directory: Path, request: pytest.FixtureRequest) -> Path:
        base: Path = request.getfixturevalue("hf_checkpoints")
        made = base / "units" / "accelerate" / "checkpoints" / "checkpoint_1"
        return Path(shutil.copytree(made, directory / "checkpoint_1"))


@pytest.mark.parametrize(("number", "truth"), [(1, "accelerate"), (2, "accelerate_bin")])
def test_every_tensor_is_what_was_in_memory(hf_checkpoints: Path, number: int, truth: str) -> None:
    whole = read_whole(hf_checkpoints / "units" / "accelerate" / "checkpoints" / f"checkpoint_{number}")
    assert_is_truth(whole, hf_checkpoints / "truth" / f"{truth}.npz")
    assert whole.specs["1.weight"].kind is TensorKind.PARAMETER
    assert whole.scalars["optimizer.param_groups.0.betas.1"] == 0.97
    assert whole.scalars["scheduler.last_epoch"] == 2


def test_a_model_that_fsdp_gathered_on_one_rank_is_part_of_the_unit(hf_checkpoints: Path, tmp_path: Path) -> None:
    checkpoints = hf_checkpoints / "units" / "accelerate" / "checkpoints"
    unit = Path(shutil.copytree(checkpoints / "checkpoint_2", tmp_path / "checkpoint_2"))
    (unit / "pytorch_model.bin").rename(unit / "pytorch_model_fsdp.bin")  # the name that its FSDP plugin gives it
    whole = read_whole(unit)
    assert whole.format == "accelerate"
    assert_is_truth(whole, hf_checkpoints / "truth" / "accelerate_bin.npz")


def test_the_step_is_that_of_an_object_of_the_user_and_not_the_count_of_saves(hf_checkpoints: Path) -> None:
    checkpoints = hf_checkpoints / "units" / "accelerate" / "checkpoints"
    assert [read_whole(checkpoints / f"checkpoint_{n}").step for n in (0, 1)] == [100, 200]
    assert read_whole(checkpoints / "checkpoint_1").epoch == 2.0


def test_a_checkpoint_of_a_training_script_has_its_step_in_its_name(tmp_path: Path, hf_checkpoints: Path) -> None:
    made = hf_checkpoints / "units" / "accelerate" / "checkpoints" / "checkpoint_1"
    unit = Path(shutil.copytree(made, tmp_path / "run" / "checkpoint-500"))
    (unit / "custom_checkpoint_0.pkl").unlink()
    whole = read_whole(unit)
    assert (whole.format, whole.step) == ("accelerate", None)
    assert step_from_path(str(unit)) == 500
    (root,) = resolve_roots([(str(tmp_path), "root")])
    assert root.run_of(f"{unit}/") == "root/run"


def test_further_models_and_optimizers_are_numbered_as_accelerate_numbers_them(hf_checkpoints: Path) -> None:
    whole = read_whole(hf_checkpoints / "units" / "accelerate_two")
    shapes = {name: spec.shape for name, spec in whole.specs.items()}
    assert shapes["weight"] == (1, 3)
    assert shapes["model_1.weight"] == (2, 3)
    assert shapes["optimizer.state.0.exp_avg"] == (1, 3)
    assert shapes["optimizer.1.state.0.exp_avg"] == (2, 3)
    assert whole.scalars["optimizer.1.param_groups.0.betas.1"] == 0.999
    assert {spec.kind for name, spec in whole.specs.items() if name.startswith("optimizer")} == {TensorKind.OPTIMIZER}


def test_an_optimizer_without_random_states_is_waited_for(tmp_path: Path, hf_checkpoints: Path) -> None:
    made = hf_checkpoints / "units" / "accelerate" / "checkpoints" / "checkpoint_1"
    unit = Path(shutil.copytree(made, tmp_path / "checkpoint_1"))
    (unit / "random_states_0.pkl").unlink()
    with pytest.raises(IncompleteError, match="random_states_0"), open_path(str(unit)):
        pass


@pytest.mark.slow
def test_two_gibibytes_need_the_memory_of_a_chunk(tmp_path: Path, hf_checkpoints: Path) -> None:
    unit = Path(
        shutil.copytree(
            hf_checkpoints / "units" / "accelerate" / "checkpoints" / "checkpoint_1", tmp_path / "checkpoint_1"
        )
    )
    (unit / "optimizer.bin").unlink()
    sparse_safetensors(unit / "model.safetensors", {"large": (2**19, 2**10)})
    assert peak_bytes_of_reading(unit, n_elements=2**29) < 250 * 2**20
