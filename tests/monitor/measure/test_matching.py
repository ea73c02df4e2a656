"""Which tensor is which: by name, by spelling, by numbers, by layer, by order."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest

from monitor.live import diff, measure
from monitor.measure.comparison import Relation
from monitor.measure.matching import MatchedBy, match_tensors
from monitor.measure.name_rules import reduced, role_of
from storage.records import TensorSummary

Arrays = Mapping[str, np.ndarray]
RANDOM = np.random.default_rng(0)


def random(*shape: int) -> np.ndarray:
    return RANDOM.standard_normal(shape).astype(np.float32)


def summaries(arrays: Arrays) -> tuple[TensorSummary, ...]:
    return measure(dict(arrays)).tensors


def pairs(old: Arrays, new: Arrays) -> dict[str | None, tuple[str | None, MatchedBy | None]]:
    found = match_tensors(summaries(old), summaries(new)).matches
    return {m.new.name if m.new else None: (m.old.name if m.old else None, m.by) for m in found}


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("fc1/kernel:0", "fc1.weight"),
        ("bn_1/moving_variance", "bn1.running_var"),
        ("params.Dense_0.kernel", "dense0.weight"),
        ("lstm/lstm_cell/recurrent_kernel", "lstm.weight_hh_l0"),
        ("optimizer.state.fc/kernel.exp_avg", "optimizer.state.fc.weight.exp_avg"),
        ("encoder/layer_norm/gamma", "encoder.layer_norm.weight"),
    ],
)
def test_names_of_two_frameworks_are_reduced_to_the_same(one: str, other: str) -> None:
    assert reduced(one) == reduced(other)


def test_roles_are_told_apart() -> None:
    assert {role_of(n) for n in ("a.gamma", "a/kernel", "a.weight_ih_l0", "a/embeddings")} == {"weight"}
    assert role_of("a/moving_mean") != role_of("a/moving_variance")
    assert role_of("optimizer.state.a.weight.exp_avg") != role_of("a.weight")


def test_names_that_differ_in_spelling_are_matched_by_rule() -> None:
    old = {"fc1/kernel": random(4, 3), "fc1/bias": random(3), "fc2/kernel": random(3, 3)}
    new = {"fc1.weight": old["fc1/kernel"].T.copy(), "fc1.bias": random(3), "fc2.weight": random(3, 3)}
    assert pairs(old, new) == {
        "fc1.weight": ("fc1/kernel", MatchedBy.RULE),
        "fc1.bias": ("fc1/bias", MatchedBy.RULE),
        "fc2.weight": ("fc2/kernel", MatchedBy.RULE),
    }


def test_numbers_win_over_names_that_only_seem_to_fit() -> None:
    kernels = [random(4, 4) for _ in range(3)]
    old = {f"dense{f'_{i}' if i else ''}/kernel": kernel for i, kernel in enumerate(kernels)}
    new = {f"dense_{i + 1}.weight": kernel.T.copy() for i, kernel in enumerate(kernels)}
    found = pairs(old, new)
    assert {name: other for name, (other, _) in found.items()} == {
        "dense_1.weight": "dense/kernel",
        "dense_2.weight": "dense_1/kernel",
        "dense_3.weight": "dense_2/kernel",
    }


def test_zero_biases_go_with_the_layers_whose_kernels_were_matched() -> None:
    kernels = [random(4, 4) for _ in range(3)]
    old: dict[str, np.ndarray] = {}
    new: dict[str, np.ndarray] = {}
    for i, kernel in enumerate(kernels):
        old |= {f"block_{i}/kernel": kernel, f"block_{i}/bias": np.zeros(4, np.float32)}
    for i in (2, 0, 1):
        new |= {f"net.{i}.weight": kernels[i].T.copy(), f"net.{i}.bias": np.zeros(4, np.float32)}
    found = pairs(old, new)
    assert all(found[f"net.{i}.{part}"][0].startswith(f"block_{i}/") for i in range(3) for part in ("weight", "bias"))  # type: ignore[union-attr]


def test_in_foreign_names_a_spoilt_tensor_is_paired_by_its_layer_or_by_order() -> None:
    old = {"d/kernel": random(4, 3), "d/bias": random(3), "e/kernel": random(6, 2)}
    new = {"0.weight": random(3, 4), "0.bias": old["d/bias"], "1.weight": random(2, 6)}
    assert pairs(old, new) == {
        "0.weight": ("d/kernel", MatchedBy.LAYER),
        "0.bias": ("d/bias", MatchedBy.STATISTICS),
        "1.weight": ("e/kernel", MatchedBy.ORDER),
    }


def test_within_one_framework_a_new_layer_is_added_and_not_guessed_to_be_an_old_one() -> None:
    kept = {f"layers.{i}.weight": random(3, 3) for i in range(4)}
    old, new = kept | {"gone.weight": random(3, 3)}, kept | {"fresh.weight": random(3, 3)}
    assert pairs(old, new)["fresh.weight"] == (None, None)
    assert pairs(old, new)[None] == ("gone.weight", None)


def test_a_layer_that_was_only_renamed_is_the_same() -> None:
    kept = {f"layers.{i}.weight": random(3, 3) for i in range(4)}
    weight = random(5, 2)
    compared = diff(kept | {"old.name.weight": weight}, kept | {"new_name.weight": weight})
    assert compared.identical
    assert compared.tensors[-1].other_name == "old.name.weight"


@pytest.mark.parametrize("dtype", ["float32", "float64", "int32", "complex64"])
def test_large_tensors_are_compared_in_bounded_blocks(dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    values = (random(3, 3, 80, 70) * 100).astype(dtype)
    right = values.transpose(3, 2, 0, 1).copy()
    compared = diff({"c/kernel": values}, {"c.weight": right})
    assert (compared.identical, compared.tensors[0].layout) == (True, "(3,2,0,1)")
    right[5, 6, 1, 2] += 1
    (changed,) = diff({"c/kernel": values}, {"c.weight": right}).tensors
    assert (changed.relation, changed.layout, changed.n_changed) == (Relation.CHANGED, "(3,2,0,1)", 1)
    assert changed.max_abs_difference == pytest.approx(1, rel=1e-3)


def test_further_training_shows_the_change_under_the_order_of_axes() -> None:
    values = random(50, 40)
    (changed,) = diff({"d/kernel": values}, {"d.weight": values.T * np.float32(1.01)}).tensors
    assert (changed.relation, changed.layout) == (Relation.CHANGED, "(1,0)")
    assert changed.relative_l2 == pytest.approx(0.01, rel=1e-3)


def test_nan_that_stays_is_no_change_and_another_dtype_is_one() -> None:
    values = random(5, 4)
    values[2, 1] = np.nan
    assert diff({"d/kernel": values}, {"d.weight": values.T.copy()}).identical
    (changed,) = diff({"d/kernel": values}, {"d.weight": values.T.astype(np.float64)}).tensors
    assert (changed.relation, changed.n_changed) == (Relation.CHANGED, 0)


def test_equal_names_with_shapes_that_do_not_fit_are_reshaped() -> None:
    (found,) = diff({"w": random(4, 3)}, {"w": random(5, 2)}).tensors
    assert (found.relation, found.relative_l2) == (Relation.RESHAPED, None)
    (found,) = diff({"w": random(2, 6)}, {"w": random(3, 4)}).tensors
    assert (found.relation, found.note) == (Relation.RESHAPED, "no order of axes makes (3, 4) of (2, 6)")


def test_tied_tensors_are_the_same_as_themselves() -> None:
    weight = random(3, 3)
    compared = diff({"a": weight, "b": weight}, {"a": weight, "b": weight})
    assert compared.identical
    assert not diff({"a": weight, "b": weight}, {"a": weight, "b": weight + 1}).identical
