from __future__ import annotations

import shutil
from pathlib import Path
from typing import ClassVar

import pytest

from monitor.read.reader import IncompleteError
from monitor.read.registry import open_path
from tests.conformance.unit import UnitConformance
from tests.support.hf_truth import assert_is_truth
from tests.support.memory import peak_bytes_of_reading
from tests.support.reading import read_whole
from tests.support.sparse_files import sparse_safetensors


class TestPeft(UnitConformance):
    format: ClassVar[str] = "peft"
    needed: ClassVar[tuple[str, ...]] = ("adapter_model.safetensors", "adapter_config.json")

    def place(self, directory: Path, request: pytest.FixtureRequest) -> Path:
        base: Path = request.getfixturevalue("hf_checkpoints")
        return Path(shutil.copytree(base / "units" / "peft" / "adapter", directory / "adapter"))


def test_every_tensor_is_that_of_the_adapter_under_the_names_of_the_model(hf_checkpoints: Path) -> None:
    whole = read_whole(hf_checkpoints / "units" / "peft" / "adapter")
    assert_is_truth(whole, hf_checkpoints / "truth" / "peft.npz")


def test_an_adapter_whose_configuration_is_half_written_is_waited_for(tmp_path: Path, hf_checkpoints: Path) -> None:
    unit = Path(shutil.copytree(hf_checkpoints / "units" / "peft" / "adapter", tmp_path / "adapter"))
    config = unit / "adapter_config.json"
    config.write_text(config.read_text()[:40])
    with pytest.raises(IncompleteError, match="adapter_config"), open_path(str(unit)):
        pass


@pytest.mark.slow
def test_two_gibibytes_need_the_memory_of_a_chunk(tmp_path: Path, hf_checkpoints: Path) -> None:
    unit = Path(shutil.copytree(hf_checkpoints / "units" / "peft" / "adapter", tmp_path / "adapter"))
    sparse_safetensors(unit / "adapter_model.safetensors", {"large": (2**19, 2**10)})
    assert peak_bytes_of_reading(unit, n_elements=2**29) < 250 * 2**20
