"""Checkpoints of several files from the command line to the database and back."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from tests.support.daemons import ckptwatch

pytestmark = pytest.mark.timeout(300)


def write(directory: Path, step: int) -> Path:
    """Write what a Trainer leaves of a model in two shards."""
    unit = directory / f"checkpoint-{step}"
    unit.mkdir(parents=True)
    weight_map = {}
    for number in (1, 2):
        name = f"model-{number:05d}-of-00002.safetensors"
        save_file({f"layer{number}.weight": np.full((4, 3), step + number, np.float32)}, unit / name)
        weight_map[f"layer{number}.weight"] = name
    (unit / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    (unit / "trainer_state.json").write_text(json.dumps({"global_step": step, "epoch": step / 10, "log_history": []}))
    for path in unit.iterdir():
        os.utime(path, (1_700_000_000 + step, 1_700_000_000 + step))
    return unit


def test_directories_are_scanned_once_and_are_good_as_long_as_all_their_files_are_there(tmp_path: Path) -> None:
    root = tmp_path / "gpt"
    units = [write(root, step) for step in (10, 20, 30)]
    database = ("--db", f"sqlite:///{tmp_path / 'x.db'}")
    for _ in range(2):
        done = ckptwatch("scan", root, *database)
        assert done.returncode == 0, done.stderr
    (run,) = json.loads(ckptwatch("runs", "--json", *database).stdout)
    assert (run["run"], run["n_snapshots"], run["last_step"]) == ("gpt", 3, 30)
    history = json.loads(ckptwatch("history", "gpt", "--json", *database).stdout)["snapshots"]
    assert [(s["step"], s["format"], s["status"]) for s in history] == [
        (step, "hf_trainer", "complete") for step in (10, 20, 30)
    ]
    assert history[0]["size_bytes"] == sum(path.stat().st_size for path in units[0].iterdir())
    assert history[1]["update_ratio"] is not None
    good = ckptwatch("last-good", "gpt", *database)
    assert good.stdout.strip() == str(units[2])
    (units[2] / "model-00002-of-00002.safetensors").unlink()
    good = ckptwatch("last-good", "gpt", *database)
    assert good.stdout.strip() == str(units[1])


def test_a_directory_can_be_inspected_compared_and_checked(tmp_path: Path) -> None:
    old, new = write(tmp_path, 10), write(tmp_path, 20)
    document = json.loads(ckptwatch("inspect", new, "--json").stdout)
    assert document["checkpoint"]["format"] == "hf_trainer"
    assert document["checkpoint"]["step"] == 20
    assert document["checkpoint"]["size_bytes"] == sum(path.stat().st_size for path in new.iterdir())
    assert [tensor["mean"] for tensor in document["tensors"]] == [21.0, 22.0]
    tensors = json.loads(ckptwatch("diff", old, f"{new}/", "--json").stdout)["tensors"]
    assert {tensor["relation"] for tensor in tensors} == {"changed"}
    assert {tensor["max_abs_difference"] for tensor in tensors} == {10.0}
    assert ckptwatch("check", new / "model.safetensors.index.json").returncode == 0
    assert ckptwatch("check", tmp_path).returncode == 3
    assert ckptwatch("check", new).returncode == 0
