"""Layers of Keras converted to PyTorch, rightly and wrongly, by the names and shapes that both frameworks give them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from monitor.live import diff
from monitor.measure.comparison import Comparison, Relation
from monitor.measure.name_rules import attention_part, may_be_alike

Arrays = dict[str, npt.NDArray[Any]]

E, H, D = 8, 2, 4  # heads that add up to the width, so that shapes alone tell nothing
ATTENTION = "multi_head_attention"
PARTS = {"query": "q_proj", "key": "k_proj", "value": "v_proj"}
SHAPES = {
    "conv1d/kernel": (3, 5, 8),
    "conv1d/bias": (8,),
    "separable_conv2d/depthwise_kernel": (3, 3, 8, 1),
    "separable_conv2d/pointwise_kernel": (1, 1, 8, 6),
    "separable_conv2d/bias": (6,),
    "conv2d_transpose/kernel": (3, 3, 7, 6),
    "conv2d_transpose/bias": (7,),
    "depthwise_conv1d/kernel": (3, 6, 2),
    "depthwise_conv1d/bias": (12,),
    **{f"{ATTENTION}/{part}/kernel": (E, H, D) for part in PARTS},
    **{f"{ATTENTION}/{part}/bias": (H, D) for part in PARTS},
    f"{ATTENTION}/attention_output/kernel": (H, D, E),
    f"{ATTENTION}/attention_output/bias": (E,),
    **{f"bidirectional/{way}_lstm/lstm_cell/kernel": (5, 12) for way in ("forward", "backward")},
    **{f"bidirectional/{way}_lstm/lstm_cell/recurrent_kernel": (3, 12) for way in ("forward", "backward")},
    **{f"bidirectional/{way}_lstm/lstm_cell/bias": (12,) for way in ("forward", "backward")},
    "group_normalization/gamma": (8,),
    "group_normalization/beta": (8,),
    "dense/kernel": (9, 4),
    "dense/bias": (4,),
}


def keras() -> Arrays:
    random = np.random.default_rng(1)
    return {name: random.standard_normal(shape).astype(np.float32) for name, shape in SHAPES.items()}


def converted(k: Arrays) -> Arrays:
    made = {
        "conv1.weight": k["conv1d/kernel"].transpose(2, 1, 0),
        "conv1.bias": k["conv1d/bias"],
        "sep.depthwise.weight": k["separable_conv2d/depthwise_kernel"].transpose(2, 3, 0, 1),
        "sep.pointwise.weight": k["separable_conv2d/pointwise_kernel"].transpose(3, 2, 0, 1),
        "sep.pointwise.bias": k["separable_conv2d/bias"],
        "up.weight": k["conv2d_transpose/kernel"].transpose(3, 2, 0, 1),
        "up.bias": k["conv2d_transpose/bias"],
        "dw.weight": k["depthwise_conv1d/kernel"].transpose(1, 2, 0).reshape(12, 1, 3),
        "dw.bias": k["depthwise_conv1d/bias"],
        "attn.out_proj.weight": k[f"{ATTENTION}/attention_output/kernel"].reshape(H * D, E).T,
        "attn.out_proj.bias": k[f"{ATTENTION}/attention_output/bias"],
        "gn.weight": k["group_normalization/gamma"],
        "gn.bias": k["group_normalization/beta"],
        "fc.weight": k["dense/kernel"].T,
        "fc.bias": k["dense/bias"],
    }
    for part, name in PARTS.items():
        made[f"attn.{name}.weight"] = k[f"{ATTENTION}/{part}/kernel"].reshape(E, H * D).T
        made[f"attn.{name}.bias"] = k[f"{ATTENTION}/{part}/bias"].reshape(-1)
    for way, suffix in (("forward", ""), ("backward", "_reverse")):
        cell = f"bidirectional/{way}_lstm/lstm_cell"
        made[f"lstm.weight_ih_l0{suffix}"] = k[f"{cell}/kernel"].T
        made[f"lstm.weight_hh_l0{suffix}"] = k[f"{cell}/recurrent_kernel"].T
        made[f"lstm.bias_ih_l0{suffix}"] = k[f"{cell}/bias"]
        made[f"lstm.bias_hh_l0{suffix}"] = np.zeros(12, np.float32)
    return {name: np.ascontiguousarray(array) for name, array in made.items()}


def different(compared: Comparison) -> set[str | None]:
    return {t.name for t in compared.tensors if t.relation is not Relation.SAME}


@pytest.mark.parametrize("is_turned", [False, True])
def test_a_right_conversion_is_identical_up_to_the_order_of_axes(is_turned: bool) -> None:
    old, new = keras(), converted(keras())
    compared = diff(new, old) if is_turned else diff(old, new)
    assert compared.identical
    if not is_turned:
        layouts = {t.name: t.layout for t in compared.tensors}
        assert layouts["attn.q_proj.weight"] == "(1,2,0)"
        assert layouts["attn.out_proj.weight"] == "(2,0,1)"
        assert layouts["dw.weight"] == "(1,2,0)"


def swapped(made: Arrays, a: str, b: str) -> None:
    made[a], made[b] = made[b], made[a]


def out_not_turned(k: Arrays, made: Arrays) -> None:
    made["attn.out_proj.weight"] = k[f"{ATTENTION}/attention_output/kernel"].reshape(H * D, E)


def query_not_turned(k: Arrays, made: Arrays) -> None:
    made["attn.q_proj.weight"] = k[f"{ATTENTION}/query/kernel"].reshape(E, H * D)


def query_and_key_swapped(k: Arrays, made: Arrays) -> None:
    swapped(made, "attn.q_proj.weight", "attn.k_proj.weight")


def scale_and_shift_swapped(k: Arrays, made: Arrays) -> None:
    swapped(made, "gn.weight", "gn.bias")


def multipliers_first(k: Arrays, made: Arrays) -> None:
    made["dw.weight"] = k["depthwise_conv1d/kernel"].transpose(2, 1, 0).reshape(12, 1, 3)


def reshaped(k: Arrays, made: Arrays) -> None:
    made["conv1.weight"] = k["conv1d/kernel"].reshape(8, 5, 3)


def height_and_width_swapped(k: Arrays, made: Arrays) -> None:
    made["up.weight"] = k["conv2d_transpose/kernel"].transpose(3, 2, 1, 0)


def gates_swapped(k: Arrays, made: Arrays) -> None:
    gates = made["lstm.weight_ih_l0_reverse"].reshape(4, 3, 5)
    made["lstm.weight_ih_l0_reverse"] = gates[[0, 2, 1, 3]].reshape(12, 5)


def scaled(k: Arrays, made: Arrays) -> None:
    made["fc.weight"] = made["fc.weight"] * np.float32(1.01)


@pytest.mark.parametrize(
    ("spoil", "names"),
    [
        (out_not_turned, {"attn.out_proj.weight"}),
        (query_not_turned, {"attn.q_proj.weight"}),
        (query_and_key_swapped, {"attn.q_proj.weight", "attn.k_proj.weight"}),
        (scale_and_shift_swapped, {"gn.weight", "gn.bias"}),
        (multipliers_first, {"dw.weight"}),
        (reshaped, {"conv1.weight"}),
        (height_and_width_swapped, {"up.weight"}),
        (gates_swapped, {"lstm.weight_ih_l0_reverse"}),
        (scaled, {"fc.weight"}),
    ],
)
def test_a_wrong_conversion_names_the_tensors_that_it_spoilt(
    spoil: Callable[[Arrays, Arrays], None], names: set[str]
) -> None:
    old = keras()
    new = converted(old)
    spoil(old, new)
    compared = diff(old, {name: np.ascontiguousarray(array) for name, array in new.items()})
    assert different(compared) == names
    assert all(t.relation is Relation.CHANGED for t in compared.tensors if t.name in names)


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("block/multi_head_attention/query/kernel", "query"),
        ("layers.0.self_attn.q_proj.weight", "query"),
        ("transformer/h/attn/value/kernel", "value"),
        ("layers.0.attention.wo.weight", "out"),
        ("optimizer.state.layers.0.self_attn.k_proj.weight.exp_avg", "key"),
        ("out/kernel", ""),
        ("key.weight", ""),
        ("k", ""),
        ("dense/kernel", ""),
    ],
)
def test_the_projections_of_attention_are_told_by_their_names(name: str, part: str) -> None:
    assert attention_part(name) == part


def test_a_query_is_no_key_but_may_be_what_says_nothing() -> None:
    assert not may_be_alike("attention/query/kernel", "attn.k_proj.weight")
    assert may_be_alike("attention/query/kernel", "attn.q_proj.weight")
    assert may_be_alike("attention/query/kernel", "encoder.0.weight")
