"""`ckptwatch export`: copies that the frameworks' own readers accept, whole or not at all."""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from tests.monitor.commands.conftest import Cli
from tests.support.reading import read_whole


def model() -> dict[str, Any]:
    torch.manual_seed(1)
    weight = torch.randn(40, 30)
    return {
        "model": {
            "a.weight": weight,
            "a.tied": weight,
            "turned": torch.randn(6, 5).t(),
            "low": torch.randn(9).bfloat16(),
            "eight": torch.randn(8).to(torch.float8_e5m2),
            "running_mean": torch.tensor([float("nan"), float("inf"), -0.0]),
            "count": torch.tensor(7),
            "flags": torch.tensor([True, False]),
            "wave": torch.tensor([1 + 2j], dtype=torch.complex64),
            "nothing": torch.empty(0, 3),
        },
        "optimizer": {"state": {0: {"exp_avg": torch.ones(40, 30)}}, "param_groups": [{"lr": 0.1, "params": [0]}]},
        "step": 12,
        "epoch": 2,
    }


@pytest.fixture
def source(tmp_path: Path) -> Path:
    torch.save(model(), tmp_path / "source.pt")
    return tmp_path / "source.pt"


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    if a.is_complex():
        return bool((a == b).all())
    width = torch.uint8 if a.dtype is not torch.bool else torch.bool
    a, b = a.contiguous(), b.contiguous()
    views = [t.reshape(-1).view(width) for t in (a, b)] if a.numel() else [a, b]
    return a.dtype == b.dtype and a.shape == b.shape and bool((views[0] == views[1]).all())


def test_safetensors_holds_every_tensor_with_its_dtype_and_its_bits(cli: Cli, source: Path, tmp_path: Path) -> None:
    ended = cli("export", source, "--to", tmp_path / "out.safetensors", "--json")
    assert ended.code == 0, ended.err
    told = ended.document
    assert (told["format"], told["n_tensors"], told["left_out"]) == ("safetensors", 11, [])
    assert told["size_bytes"] == (tmp_path / "out.safetensors").stat().st_size
    loaded = load_file(tmp_path / "out.safetensors")
    expected = model()["model"]
    assert all(same_bits(loaded[name], value) for name, value in expected.items())
    assert set(loaded) - set(expected) == {"optimizer.state.0.exp_avg"}
    with safe_open(tmp_path / "out.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt", "step": "12", "epoch": "2.0"}
    assert [p.name for p in sorted(tmp_path.iterdir()) if "out" in p.name] == ["out.safetensors"]


def test_what_was_exported_reads_like_its_source(cli: Cli, source: Path, tmp_path: Path) -> None:
    assert cli("export", source, "--to", tmp_path / "out.safetensors").code == 0
    assert cli("diff", source, tmp_path / "out.safetensors", "--json").document["identical"]
    assert read_whole(tmp_path / "out.safetensors").step == 12


def test_npz_refuses_what_numpy_does_not_know_unless_told_to_widen_it(cli: Cli, source: Path, tmp_path: Path) -> None:
    ended = cli("export", source, "--to", tmp_path / "out.npz")
    assert ended.code == 3
    assert "npz cannot hold bfloat16, which low, eight are; export to safetensors, or give --upcast" in ended.err
    assert not (tmp_path / "out.npz").exists()
    assert cli("export", source, "--to", tmp_path / "out.npz", "--upcast").code == 0
    with np.load(tmp_path / "out.npz") as loaded:
        assert loaded["low"].dtype == np.float32
        np.testing.assert_array_equal(loaded["low"], model()["model"]["low"].float().numpy())
        for name in ("a.weight", "a.tied", "turned", "running_mean", "count", "flags", "wave", "nothing"):
            true = model()["model"][name].numpy()
            assert (loaded[name].dtype, loaded[name].shape) == (true.dtype, true.shape)
            np.testing.assert_array_equal(loaded[name], true)
    assert {p.name for p in tmp_path.iterdir()} >= {"source.pt", "out.npz"}
    assert not list(tmp_path.glob(".*"))


def test_names_and_kinds_choose_what_is_written(cli: Cli, source: Path, tmp_path: Path) -> None:
    target = tmp_path / "some.safetensors"
    assert cli("export", source, "--to", target, "--kinds", "parameter,buffer").code == 0
    assert "optimizer.state.0.exp_avg" not in load_file(target)
    assert cli("export", source, "--to", target, "--force", "--filter", "a.*", "--filter", "low").code == 0
    assert set(load_file(target)) == {"a.weight", "a.tied", "low"}
    ended = cli("export", source, "--to", target, "--force", "--filter", "nothing-like-it")
    assert (ended.code, "no tensor is selected" in ended.err) == (3, True)
    assert cli("export", source, "--to", target, "--force", "--kinds", "weights").code == 2


def test_a_file_that_is_there_is_kept_unless_forced(cli: Cli, source: Path, tmp_path: Path) -> None:
    target = tmp_path / "out.npz"
    target.write_text("mine")
    ended = cli("export", source, "--to", target, "--upcast")
    assert (ended.code, target.read_text()) == (2, "mine")
    assert "is there already; --force replaces it" in ended.err
    assert cli("export", source, "--to", target, "--upcast", "--force").code == 0
    assert target.read_bytes().startswith(b"PK")
    assert cli("export", target, "--to", target, "--force").code == 2  # never over the checkpoint itself


def test_a_link_that_dangles_is_kept_as_well(cli: Cli, source: Path, tmp_path: Path) -> None:
    target = tmp_path / "out.safetensors"
    target.symlink_to(tmp_path / "nowhere")
    assert cli("export", source, "--to", target).code == 2
    assert target.is_symlink()


@pytest.mark.parametrize("name", ["out.pt", "out", "nowhere/out.npz"])
def test_another_suffix_or_no_directory_is_wrong_usage(cli: Cli, source: Path, tmp_path: Path, name: str) -> None:
    assert cli("export", source, "--to", tmp_path / name).code == 2


def test_a_broken_source_leaves_nothing_behind(cli: Cli, tmp_path: Path) -> None:
    header = b'{"w":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}'
    (tmp_path / "cut.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(9))
    ended = cli("export", tmp_path / "cut.safetensors", "--to", tmp_path / "out.npz")
    assert ended.code == 3
    assert "incomplete" in ended.err
    assert [p.name for p in tmp_path.iterdir() if "out" in p.name] == []


def test_tensors_without_values_are_named_or_left_out(cli: Cli, tmp_path: Path) -> None:
    torch.save({"good": torch.ones(2), "thin": torch.eye(3).to_sparse()}, tmp_path / "s.pt")
    target = tmp_path / "out.safetensors"
    ended = cli("export", tmp_path / "s.pt", "--to", target)
    assert (ended.code, target.exists()) == (3, False)
    assert "thin cannot be read" in ended.err
    ended = cli("export", tmp_path / "s.pt", "--to", target, "--skip-unreadable", "--json")
    assert (ended.code, ended.document["left_out"]) == (0, ["thin"])
    assert set(load_file(target)) == {"good"}


def test_a_directory_that_may_not_be_written_ends_with_4(cli: Cli, source: Path) -> None:
    ended = cli("export", source, "--to", "/proc/out.safetensors")
    assert ended.code == 4
    assert ended.err.startswith("ckptwatch: /proc/out.safetensors ")


def test_eight_bit_floats_of_every_kind_keep_their_bits(cli: Cli, tmp_path: Path) -> None:
    names = ("float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz")
    values = {n: torch.arange(256).to(torch.uint8).view(getattr(torch, n)) for n in names}
    torch.save(values, tmp_path / "eight.pt")
    assert cli("export", tmp_path / "eight.pt", "--to", tmp_path / "out.safetensors").code == 0
    found = read_whole(tmp_path / "out.safetensors").values
    for name in names:
        assert found[name].dtype == np.dtype(getattr(ml_dtypes, name))
        assert found[name].tobytes() == bytes(range(256))


def test_the_same_source_gives_the_same_bytes(cli: Cli, source: Path, tmp_path: Path) -> None:
    for name in ("a.npz", "b.npz"):
        assert cli("export", source, "--to", tmp_path / name, "--upcast").code == 0
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    umask = os.umask(0)
    os.umask(umask)
    assert (tmp_path / "a.npz").stat().st_mode & 0o777 == 0o666 & ~umask
