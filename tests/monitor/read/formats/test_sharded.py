from __future__ import annotations

import json
import shutil
import tracemalloc
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from monitor.read.directories import claim_units
from monitor.read.reader import IncompleteError, ReadLimits
from monitor.read.registry import open_path
from monitor.read.unit import list_directory
from tests.conformance.unit import UnitConformance
from tests.support.hf_truth import assert_is_truth
from tests.support.memory import peak_bytes_of_reading
from tests.support.reading import read_whole
from tests.support.sparse_files import sparse_shards

INDEX = "model.safetensors.index.json"


class TestSharded(UnitConformance):
    format: ClassVar[str] = "sharded"
    needed: ClassVar[tuple[str, ...]] = (INDEX, "model-00001-of-00002.safetensors")

    def place(self, directory: Path, request: pytest.FixtureRequest) -> Path:
        base: Path = request.getfixturevalue("hf_checkpoints")
        shutil.copytree(base / "units" / "sharded", directory, dirs_exist_ok=True)
        return directory / INDEX


def test_every_tensor_is_that_of_the_model(hf_checkpoints: Path) -> None:
    whole = read_whole(hf_checkpoints / "units" / "sharded" / INDEX)
    assert_is_truth(whole, hf_checkpoints / "truth" / "sharded.npz")


def test_the_directory_stands_for_its_only_group(hf_checkpoints: Path) -> None:
    assert read_whole(hf_checkpoints / "units" / "sharded").format == "sharded"


def test_shards_without_their_index_are_waited_for(tmp_path: Path, hf_checkpoints: Path) -> None:
    unit = Path(shutil.copytree(hf_checkpoints / "units" / "sharded", tmp_path / "model"))
    (unit / INDEX).unlink()
    with pytest.raises(IncompleteError, match="written after the shards"), open_path(str(unit / INDEX)):
        pass


def test_two_models_beside_each_other_are_two_groups(tmp_path: Path) -> None:
    for stem in ("model", "ema"):
        for number in (1, 2):
            save_file(
                {f"w{number}": np.full((2, 3), number, np.float32)},
                tmp_path / f"{stem}-{number:05d}-of-00002.safetensors",
            )
        weight_map = {f"w{n}": f"{stem}-{n:05d}-of-00002.safetensors" for n in (1, 2)}
        (tmp_path / f"{stem}.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    claims = claim_units(list_directory(str(tmp_path)))
    assert [claim.index for claim in claims] == ["ema.safetensors.index.json", INDEX]
    for claim in claims:
        assert set(read_whole(tmp_path / claim.index).values) == {"w1", "w2"}


def test_shards_of_torch_save_are_read_as_well(tmp_path: Path) -> None:
    for number in (1, 2):
        state = {f"layer{number}.weight": torch.full((3,), float(number))}
        torch.save(state, tmp_path / f"pytorch_model-{number:05d}-of-00002.bin")
    weight_map = {f"layer{n}.weight": f"pytorch_model-{n:05d}-of-00002.bin" for n in (1, 2)}
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
    values = read_whole(tmp_path).values
    assert {name: value.tolist() for name, value in values.items()} == {
        "layer1.weight": [1.0] * 3,
        "layer2.weight": [2.0] * 3,
    }


def test_a_hundred_shards_need_the_buffers_of_one(tmp_path: Path) -> None:
    n_shards, chunk_bytes = 100, 2**20
    for number in range(n_shards):
        save_file({f"w{number}": np.ones(2**18, np.float32)}, tmp_path / f"m-{number + 1:05d}-of-00100.safetensors")
    weight_map = {f"w{n}": f"m-{n + 1:05d}-of-00100.safetensors" for n in range(n_shards)}
    (tmp_path / "m.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    tracemalloc.start()
    try:
        with open_path(str(tmp_path), ReadLimits(chunk_bytes_max=chunk_bytes)) as opened:
            total = sum(
                float(chunk.values.sum())
                for spec in opened.checkpoint.tensors
                for chunk in opened.checkpoint.chunks(spec)
            )
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert total == n_shards * 2**18
    assert peak < 6 * chunk_bytes


@pytest.mark.slow
def test_two_gibibytes_need_the_memory_of_a_chunk(tmp_path: Path) -> None:
    sparse_shards(tmp_path, 2**31, n_shards=16)
    assert peak_bytes_of_reading(tmp_path, n_elements=2**29) < 250 * 2**20
