"""`ckptwatch inspect`: its JSON, its numbers, its order, and what it says of files it cannot read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.monitor.commands.conftest import Cli

TENSOR_KEYS = {
    *("name", "kind", "dtype", "shape", "n_elements", "n_nan", "n_posinf", "n_neginf", "n_zero"),
    *("min", "max", "mean", "std", "norm_l1", "norm_l2", "abs_max", "quantiles"),
}


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    path = tmp_path / "step-7.pt"
    weights = torch.tensor([[1.0, -2.0, 0.0], [4.0, float("nan"), float("inf")]])
    tensors = {"b.weight": weights, "a.bias": torch.zeros(4), "empty": torch.zeros(0), "ids": torch.arange(9)}
    torch.save({"state_dict": tensors, "global_step": 7, "epoch": 2}, path)
    return path


def test_json_has_the_documented_keys_and_the_numbers_of_the_finite_elements(cli: Cli, checkpoint: Path) -> None:
    ended = cli("inspect", checkpoint, "--json")
    assert (ended.code, ended.err) == (0, "")
    document = ended.document
    assert set(document) == {"checkpoint", "tensors", "problem"}
    assert document["problem"] is None
    assert document["checkpoint"] == {
        "path": str(checkpoint),
        "format": "torch_zip",
        "step": 7,
        "epoch": 2,
        "size_bytes": checkpoint.stat().st_size,
        "n_tensors": 4,
        "n_parameters": document["checkpoint"]["n_parameters"],
    }
    tensors = {tensor["name"]: tensor for tensor in document["tensors"]}
    assert list(tensors) == ["b.weight", "a.bias", "empty", "ids"]
    assert all(set(tensor) >= TENSOR_KEYS for tensor in tensors.values())
    weight = tensors["b.weight"]
    finite = np.array([1.0, -2.0, 0.0, 4.0])
    assert (weight["n_elements"], weight["n_nan"], weight["n_posinf"], weight["n_neginf"]) == (6, 1, 1, 0)
    assert (weight["n_zero"], weight["min"], weight["max"], weight["abs_max"]) == (1, -2.0, 4.0, 4.0)
    assert weight["mean"] == pytest.approx(finite.mean())
    assert weight["std"] == pytest.approx(finite.std())
    assert weight["norm_l1"] == pytest.approx(7.0)
    assert weight["norm_l2"] == pytest.approx(float(np.linalg.norm(finite)))
    assert weight["kind"] == "parameter"
    empty = tensors["empty"]
    assert all(empty[key] is None for key in ("min", "max", "mean", "std", "norm_l1", "norm_l2", "abs_max"))
    assert empty["quantiles"] == {}


def test_tensors_are_chosen_by_pattern_and_put_in_order(cli: Cli, checkpoint: Path) -> None:
    def names(*arguments: str) -> list[str]:
        return [tensor["name"] for tensor in cli("inspect", checkpoint, "--json", *arguments).document["tensors"]]

    assert names("--sort", "name") == ["a.bias", "b.weight", "empty", "ids"]
    assert names("--sort", "size") == ["ids", "b.weight", "a.bias", "empty"]
    assert names("--sort", "non-finite")[0] == "b.weight"
    assert names("--sort", "zeros")[0] == "a.bias"
    assert names("--sort", "norm")[0] == names("--sort", "abs-max")[0] == "ids"
    assert names("--filter", "*.weight") == ["b.weight"]
    assert names("--filter", "nothing") == []


def test_the_table_names_every_tensor_and_the_first_bad_one(cli: Cli, checkpoint: Path) -> None:
    ended = cli("inspect", checkpoint)
    assert ended.code == 0
    for text in ("torch_zip", "step 7", "b.weight", "2×3", "a.bias", "the first is b.weight"):
        assert text in ended.out


@pytest.mark.parametrize(
    ("name", "content", "kind"),
    [
        ("empty.safetensors", b"", "incomplete"),
        ("page.pt", b"<!doctype html><p>404", "unsupported"),
        ("cut.npz", b"PK\x03\x04\x14", "incomplete"),
        ("bad.safetensors", b"\x02\x00\x00\x00\x00\x00\x00\x00[]", "corrupt"),
    ],
)
def test_a_file_that_cannot_be_read_ends_with_3_a_kind_and_one_line(
    cli: Cli, tmp_path: Path, name: str, content: bytes, kind: str
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    ended = cli("inspect", path, "--json")
    assert ended.code == 3
    document = ended.document
    assert document["problem"]["kind"] == kind
    assert document["problem"]["message"]
    assert document["tensors"] == []
    assert document["checkpoint"]["size_bytes"] == len(content)
    assert ended.err.startswith(f"ckptwatch: {path}: {kind}: ")
    assert ended.err.count("\n") == 1


@pytest.mark.parametrize("command", [["inspect"], ["check"], ["diff", __file__]], ids=lambda c: c[0])
def test_a_file_that_is_not_there_ends_with_3_and_says_so(cli: Cli, tmp_path: Path, command: list[str]) -> None:
    ended = cli(*command, tmp_path / "gone.pt", "--json")
    assert (ended.code, ended.out) == (3, "")
    assert ended.err == f"ckptwatch: there is no file {tmp_path / 'gone.pt'}\n"


@pytest.mark.parametrize("command", [["inspect", "--json"], ["check", "--json"]], ids=" ".join)
def test_a_directory_stands_for_the_only_checkpoint_in_it(cli: Cli, tmp_path: Path, command: list[str]) -> None:
    (tmp_path / "config.json").write_text("{}")
    np.savez(tmp_path / "model.npz", weight=np.arange(6, dtype=np.float32))
    ended = cli(*command, tmp_path)
    assert ended.code == 0
    assert str(tmp_path / "model.npz") in ended.out


def test_a_directory_of_several_checkpoints_or_none_says_so(cli: Cli, tmp_path: Path) -> None:
    ended = cli("inspect", tmp_path)
    assert (ended.code, ended.out) == (3, "")
    assert "holds no checkpoint" in ended.err
    for step in range(8):
        np.savez(tmp_path / f"step-{step}.npz", weight=np.ones(3))
    ended = cli("inspect", tmp_path)
    assert (ended.code, ended.out) == (3, "")
    assert "holds 8 checkpoints, name one of them: step-0.npz" in ended.err
    assert "and 3 more" in ended.err
