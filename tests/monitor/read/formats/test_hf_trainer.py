from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path
from typing import ClassVar

import pytest

from monitor.read.directories import claim_units, locate
from monitor.read.reader import CorruptError, IncompleteError, ReadError, UnsafeReferenceError
from monitor.read.registry import open_path
from monitor.read.unit import list_directory
from storage.records import ProblemKind, TensorKind
from tests.conformance.unit import UnitConformance
from tests.support.hf_truth import assert_is_truth
from tests.support.memory import peak_bytes_of_reading
from tests.support.reading import read_whole
from tests.support.sparse_files import sparse_shards

STATE = "trainer_state.json"


class _Trainer(UnitConformance):
    format: ClassVar[str] = "hf_trainer"
    run: ClassVar[str]

    def place(self, directory: Path, request: pytest.FixtureRequest) -> Path:
        base: Path = request.getfixturevalue("hf_checkpoints")
        shutil.copytree(base / "units" / self.run / "checkpoint-4", directory / "checkpoint-4")
        return directory / "checkpoint-4"


class TestTrainer(_Trainer):
    run = "trainer"
    needed = (STATE, "model.safetensors")


class TestTrainerWithShards(_Trainer):
    run = "trainer_sharded"
    needed = (STATE, "model-00001-of-00002.safetensors", "model.safetensors.index.json")


class TestTrainerOfAnAdapter(_Trainer):
    run = "trainer_peft"
    needed = (STATE, "adapter_model.safetensors")


del _Trainer  # an abstract class is none to be collected


@pytest.fixture
def checkpoint(tmp_path: Path, hf_checkpoints: Path) -> Path:
    return Path(
        shutil.copytree(hf_checkpoints / "units" / "trainer" / "checkpoint-4", tmp_path / "run" / "checkpoint-4")
    )


def put(path: Path, content: object) -> None:
    """Write JSON as if it had been written long ago."""
    path.write_text(json.dumps(content))
    os.utime(path, (1e9, 1e9))


@pytest.mark.parametrize(
    ("run", "truth"), [("trainer", "trainer"), ("trainer_sharded", "trainer"), ("trainer_peft", "trainer_peft")]
)
def test_every_tensor_is_what_the_trainer_had_in_memory(hf_checkpoints: Path, run: str, truth: str) -> None:
    whole = read_whole(hf_checkpoints / "units" / run / "checkpoint-4")
    assert_is_truth(whole, hf_checkpoints / "truth" / f"{truth}.npz")
    assert (whole.step, whole.epoch) == (4, 0.5)
    optimizer = {name for name, spec in whole.specs.items() if spec.kind is TensorKind.OPTIMIZER}
    assert optimizer == {name for name in whole.specs if name.startswith("optimizer.")}
    assert all(spec.kind in (TensorKind.OPTIMIZER, TensorKind.PARAMETER) for spec in whole.specs.values())


def test_numbers_of_the_state_the_optimizer_and_the_scheduler_are_there(hf_checkpoints: Path) -> None:
    checkpoint = hf_checkpoints / "units" / "trainer" / "checkpoint-4"
    state = json.loads((checkpoint / STATE).read_text())
    scalars = read_whole(checkpoint).scalars
    assert scalars["trainer_state.log.grad_norm"] == state["log_history"][-1]["grad_norm"]
    assert scalars["trainer_state.max_steps"] == 4
    assert scalars["optimizer.param_groups.0.betas.1"] == 0.999
    assert scalars["scheduler.last_epoch"] == 4


def test_the_output_directory_is_no_checkpoint_and_neither_are_single_parts(hf_checkpoints: Path) -> None:
    output = hf_checkpoints / "units" / "trainer"
    assert claim_units(list_directory(str(output))) == ()
    (claim,) = claim_units(list_directory(str(output / "checkpoint-4")))
    assert claim.reader == "hf_trainer"
    assert "rng_state.pth" in claim.hidden
    assert locate(str(output / "checkpoint-4" / "model.safetensors")) is None


def test_nan_and_infinity_in_the_state_are_read_over(checkpoint: Path) -> None:
    state = json.loads((checkpoint / STATE).read_text())
    state["log_history"] += [{"loss": float("nan"), "grad_norm": float("inf"), "step": 4, "deep": {"a": 1}}]
    (checkpoint / STATE).write_text(json.dumps(state))
    scalars = read_whole(checkpoint).scalars
    assert (
        scalars["trainer_state.log.loss"] == state["log_history"][-2]["loss"] or "loss" not in state["log_history"][-2]
    )
    assert all(abs(value) < 1e300 for value in scalars.values())


@pytest.mark.parametrize("content", ["", "{", '{"global_step": 4', "\xff", '[{"a": 1}, ', "{" * 100_000])
def test_a_state_that_is_half_written_is_waited_for(checkpoint: Path, content: str) -> None:
    (checkpoint / STATE).write_text(content, encoding="latin-1")
    with pytest.raises(ReadError) as caught, open_path(str(checkpoint)):
        pass
    assert caught.value.kind in (ProblemKind.INCOMPLETE, ProblemKind.LIMIT)
    assert STATE in str(caught.value)


def test_weights_written_after_the_state_mean_a_save_under_way_as_long_as_they_are_young(checkpoint: Path) -> None:
    now = time.time()
    os.utime(checkpoint / STATE, (now - 100, now - 100))
    os.utime(checkpoint / "model.safetensors", (now - 50, now - 50))
    with pytest.raises(IncompleteError, match="a save is under way"), open_path(str(checkpoint)):
        pass
    for path in checkpoint.iterdir():  # a copy or a download keeps no order
        os.utime(path, (now - 4000, now - 4000))
    os.utime(checkpoint / STATE, (now - 5000, now - 5000))
    assert read_whole(checkpoint).step == 4


def test_weights_alone_are_read_and_their_step_is_left_to_the_name(checkpoint: Path) -> None:
    for path in checkpoint.iterdir():
        if path.name not in ("model.safetensors", "config.json"):
            path.unlink()
    whole = read_whole(checkpoint)
    assert (whole.format, whole.step) == ("hf_trainer", None)


def test_a_model_saved_at_the_end_needs_no_state(checkpoint: Path) -> None:
    final = checkpoint.with_name("final")
    checkpoint.rename(final)
    for name in (STATE, "optimizer.pt", "scheduler.pt"):
        (final / name).unlink()
    assert read_whole(final).format == "hf_trainer"


def test_an_index_that_points_outside_is_refused(tmp_path: Path, hf_checkpoints: Path) -> None:
    unit = shutil.copytree(hf_checkpoints / "units" / "trainer_sharded" / "checkpoint-4", tmp_path / "checkpoint-4")
    index = Path(unit) / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    first = min(content["weight_map"])
    for name in ("../checkpoint-4/model-00001-of-00002.safetensors", "/etc/passwd", "a/../../b", "..", ""):
        content["weight_map"][first] = name
        put(index, content)
        with pytest.raises(UnsafeReferenceError), open_path(str(unit)):
            pass


def test_an_index_that_disagrees_with_its_shards_is_refused(tmp_path: Path, hf_checkpoints: Path) -> None:
    unit = shutil.copytree(hf_checkpoints / "units" / "trainer_sharded" / "checkpoint-4", tmp_path / "checkpoint-4")
    index = Path(unit) / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    content["weight_map"]["no.such.tensor"] = "model-00001-of-00002.safetensors"
    put(index, content)
    with pytest.raises(CorruptError, match=r"no\.such\.tensor"), open_path(str(unit)):
        pass
    broken: object
    for broken in ({}, {"weight_map": []}, {"weight_map": {"a": 1}}, []):
        put(index, broken)
        with pytest.raises(CorruptError), open_path(str(unit)):
            pass


@pytest.mark.slow
def test_two_gibibytes_need_the_memory_of_a_chunk(checkpoint: Path) -> None:
    (checkpoint / "model.safetensors").unlink()
    (checkpoint / "optimizer.pt").unlink()
    sparse_shards(checkpoint, 2**31, n_shards=4)
    put(checkpoint / STATE, {"global_step": 4, "log_history": [{"step": n, "loss": 0.5} for n in range(100_000)]})
    for path in checkpoint.iterdir():
        os.utime(path, (1e9, 1e9))
    assert peak_bytes_of_reading(checkpoint, n_elements=2**29) < 250 * 2**20
