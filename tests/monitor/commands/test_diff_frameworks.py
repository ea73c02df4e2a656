"""`ckptwatch diff` between models of Keras and their conversions to PyTorch, right and wrong."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.monitor.commands.conftest import Cli
from tests.support.daemons import REPOSITORY, clean_environment

pytestmark = pytest.mark.timeout(300)

State = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("converted")
    subprocess.run(
        [sys.executable, "-W", "ignore", str(REPOSITORY / "tests" / "support" / "conversions.py"), str(directory)],
        env=clean_environment(CUDA_VISIBLE_DEVICES="", TF_CPP_MIN_LOG_LEVEL="3", KERAS_BACKEND="tensorflow"),
        check=True,
        timeout=240,
        capture_output=True,
    )
    return directory


def rows(document: Any) -> dict[str, Any]:
    return {row["name"] or row["other_name"]: row for row in document["tensors"]}


@pytest.mark.parametrize("source", ["image.keras", "image.weights.h5"])
def test_a_right_conversion_is_identical_up_to_the_order_of_axes(cli: Cli, converted: Path, source: str) -> None:
    ended = cli("diff", converted / source, converted / "image.pt", "--json")
    assert (ended.code, ended.document["identical"]) == (0, True), ended.out
    found = {name: (row["other_name"], row["relation"], row["layout"]) for name, row in rows(ended.document).items()}
    assert found["features.0.weight"] == ("conv2d/kernel", "same", "(3,2,0,1)")
    assert found["features.2.weight"] == ("batch_normalization/gamma", "same", None)
    assert found["features.2.running_var"] == ("batch_normalization/moving_variance", "same", None)
    assert found["features.3.weight"] == ("depthwise_conv2d/kernel", "same", "(2,3,0,1)")
    assert found["features.5.bias"] == ("conv2d_1/bias", "same", None)
    assert found["head.0.weight"] == ("dense/kernel", "same", "(2,1,0) of (25,4,10)")
    assert found["head.2.weight"] == ("dense_1/kernel", "same", "(1,0)")
    assert found["head.4.bias"] == ("dense_2/bias", "same", None)
    counter = rows(ended.document)["features.2.num_batches_tracked"]
    assert (counter["relation"], counter["judged"]) == ("added", False)


def test_the_other_direction_is_identical_too(cli: Cli, converted: Path) -> None:
    ended = cli("diff", converted / "image.pt", converted / "image.keras", "--json")
    assert (ended.code, ended.document["identical"]) == (0, True), ended.out
    found = rows(ended.document)
    assert found["conv2d/kernel"]["layout"] == "(2,3,1,0)"
    assert found["dense/kernel"]["layout"] == "(2,1,0) of (10,4,25)"


@pytest.mark.parametrize("source", ["sequence.keras", "sequence.weights.h5"])
def test_recurrent_layers_are_identical_with_gates_and_biases_in_the_other_form(
    cli: Cli, converted: Path, source: str
) -> None:
    ended = cli("diff", converted / source, converted / "sequence.pt", "--json")
    assert (ended.code, ended.document["identical"]) == (0, True), ended.out
    found = {name: (row["other_name"], row["layout"]) for name, row in rows(ended.document).items()}
    both = "sum of lstm.bias_ih_l0 and lstm.bias_hh_l0"
    assert found["words.weight"] == ("words/embeddings", None)
    assert found["lstm.weight_hh_l0"] == ("lstm/lstm_cell/recurrent_kernel", "(1,0)")
    assert (found["lstm.bias_ih_l0"], found["lstm.bias_hh_l0"]) == (("lstm/lstm_cell/bias", both),) * 2
    assert found["gru.weight_ih_l0"] == ("gru/gru_cell/kernel", "(1,2,0) of (5,3,5) blocks (1,0,2)")
    assert found["gru.bias_hh_l0"] == ("gru/gru_cell/bias", "row 1 blocks (1,0,2)")
    back = cli("diff", converted / "sequence.pt", converted / source, "--json")
    assert (back.code, back.document["identical"]) == (0, True), back.out


@pytest.mark.parametrize(
    ("name", "also"),
    [
        ("gru.weight_ih_l0", set()),
        ("gru.bias_hh_l0", set()),
        ("lstm.bias_hh_l0", {"lstm.bias_ih_l0"}),
        ("lstm.weight_hh_l0", set()),
    ],
)
def test_a_recurrent_layer_that_was_converted_wrongly_is_named(
    cli: Cli, converted: Path, tmp_path: Path, name: str, also: set[str]
) -> None:
    state = torch.load(converted / "sequence.pt")
    gates = list(state[name].chunk(3 if "gru" in name else 4))
    state[name] = torch.cat([gates[1], gates[0], *gates[2:]]) + (1 if "lstm.bias" in name else 0)
    torch.save(state, tmp_path / "wrong.pt")
    ended = cli("diff", converted / "sequence.keras", tmp_path / "wrong.pt", "--json")
    different = {row["name"] for row in ended.document["tensors"] if row["judged"] and row["relation"] != "same"}
    assert (ended.code, different) == (1, {name} | also)


def spoil(name: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[State], None]:
    def spoiling(state: State) -> None:
        state[name] = change(state[name]).contiguous()

    return spoiling


def swap(a: str, b: str) -> Callable[[State], None]:
    def swapping(state: State) -> None:
        state[a], state[b] = state[b], state[a]

    return swapping


WRONG = {
    "a square kernel that was not transposed": (spoil("head.2.weight", lambda w: w.T), {"head.2.weight"}),
    "a kernel that was reshaped and not transposed": (
        spoil("head.0.weight", lambda w: w.T.reshape(w.shape)),
        {"head.0.weight"},
    ),
    "a convolution with height and width exchanged": (
        spoil("features.0.weight", lambda w: w.transpose(2, 3)),
        {"features.0.weight"},
    ),
    "a bias that was left at its start": (spoil("head.4.bias", torch.zeros_like), {"head.4.bias"}),
    "one value that was lost": (
        spoil("features.5.weight", lambda w: torch.cat([torch.zeros(1), w.reshape(-1)[1:]]).reshape(w.shape)),
        {"features.5.weight"},
    ),
    "mean and variance exchanged": (
        swap("features.2.running_mean", "features.2.running_var"),
        {"features.2.running_mean", "features.2.running_var"},
    ),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_wrong_conversion_names_the_tensors_that_differ(cli: Cli, converted: Path, tmp_path: Path, what: str) -> None:
    change, spoilt = WRONG[what]
    state = torch.load(converted / "image.pt")
    change(state)
    torch.save(state, tmp_path / "wrong.pt")
    ended = cli("diff", converted / "image.keras", tmp_path / "wrong.pt", "--json")
    assert (ended.code, ended.document["identical"]) == (1, False)
    different = {row["name"] for row in ended.document["tensors"] if row["judged"] and row["relation"] != "same"}
    assert different == spoilt
    assert all(rows(ended.document)[name]["relation"] == "changed" for name in spoilt)


def test_the_table_says_what_is_wrong_with_an_untransposed_kernel(cli: Cli, converted: Path, tmp_path: Path) -> None:
    state = torch.load(converted / "image.pt")
    state["head.2.weight"] = state["head.2.weight"].T.contiguous()
    torch.save(state, tmp_path / "wrong.pt")
    ended = cli("diff", converted / "image.keras", tmp_path / "wrong.pt")
    assert "dense_1/kernel -> head.2.weight" in ended.out
    assert "the values are there, but with axes (0,1) instead of (1,0)" in ended.out
    assert "15 of 16 tensors are equal bit by bit, 5 of them with their axes in another order" in ended.out
