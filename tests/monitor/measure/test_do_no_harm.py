"""What measuring leaves behind on the machine of a training job: nothing in the page cache, few descriptors."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from monitor.measure.options import MeasureOptions
from monitor.measure.snapshot import measure_path
from monitor.measure.tasks import measure
from monitor.read.bounded_unit import DESCRIPTORS_MAX
from tests.support.page_cache import evict, resident_pages, skip_where_the_cache_cannot_be_spared

N = 2**20


def save_safetensors(path: Path) -> Path:
    rng = np.random.default_rng(0)
    file = path / "model.safetensors"
    save_file({f"layers.{i}.weight": rng.standard_normal(N, np.float32) for i in range(3)}, file)
    return file


def save_torch(path: Path) -> Path:
    file = path / "model.pt"
    torch.save({f"layers.{i}.weight": torch.randn(N) for i in range(3)}, file)
    return file


def save_sharded(path: Path) -> Path:
    n_files = 2 * DESCRIPTORS_MAX
    weights = {f"layers.{i}.weight": f"model-{i + 1:05}-of-{n_files:05}.safetensors" for i in range(n_files)}
    for name, file in weights.items():
        save_file({name: np.ones(N // n_files, np.float32)}, path / file)
    index = {"metadata": {"total_size": 4 * N}, "weight_map": weights}
    (path / "model.safetensors.index.json").write_text(json.dumps(index))
    return path


@pytest.mark.parametrize("save", [save_safetensors, save_torch])
@pytest.mark.parametrize("warm", [0.0, 0.5, 1.0], ids=["cold", "half in the cache", "warm"])
def test_the_page_cache_holds_after_measuring_what_it_held_before(tmp_path: Path, save: object, warm: float) -> None:
    assert callable(save)
    path: Path = save(tmp_path)
    skip_where_the_cache_cannot_be_spared(path)
    evict(path)
    with path.open("rb") as stream:
        os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
        stream.read(int(path.stat().st_size * warm))
    before = resident_pages(path)
    assert measure({"path": str(path), "io_pressure_max": 100.0})["tensors"]
    after = resident_pages(path)
    kept = sum(a and b for a, b in zip(before, after, strict=True))
    assert kept >= 0.99 * sum(before)
    assert sum(after) <= sum(before) + 0.01 * len(before)


def open_descriptors(directory: Path) -> list[str]:
    found = []
    for number in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{number}")
        except OSError:
            continue
        if target.startswith(str(directory)):
            found.append(target)
    return found


@pytest.mark.parametrize(("save", "n_max"), [(save_safetensors, 1), (save_torch, 1), (save_sharded, DESCRIPTORS_MAX)])
def test_few_descriptors_are_open_at_a_time_and_none_afterwards(tmp_path: Path, save: object, n_max: int) -> None:
    assert callable(save)
    path: Path = save(tmp_path)
    seen: list[int] = []
    measure_path(str(path), MeasureOptions(), on_read=lambda _: seen.append(len(open_descriptors(tmp_path))))
    assert max(seen) == n_max
    assert open_descriptors(tmp_path) == []
