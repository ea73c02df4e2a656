from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from monitor.show.grouping import GROUPS_MAX, ROOT_GROUP, group_members, layer_group, layer_groups


@pytest.mark.parametrize(
    ("name", "group"),
    [
        ("transformer.h.3.attn.weight", "transformer.h.3"),
        ("model.layers.11.mlp.experts.7.w1.weight", "model.layers.11"),
        ("layer1.0.conv1.weight", "layer1.0"),
        ("0.weight", "0"),
        ("lm_head.weight", "lm_head"),
        ("encoder.embeddings.word.weight", "encoder.embeddings.word"),
        ("params/dense_1/kernel", "params.dense_1"),
        ("bias", ROOT_GROUP),
        ("", ROOT_GROUP),
    ],
)
def test_a_tensor_belongs_to_its_layer(name: str, group: str) -> None:
    assert layer_group(name) == group


def test_a_small_model_keeps_every_layer() -> None:
    names = [f"h.{i}.{part}.weight" for i in range(12) for part in ("attn", "mlp")] + ["wte.weight", "lm_head.weight"]
    groups = layer_groups(names)
    assert set(groups.values()) == {f"h.{i}" for i in range(12)} | {"wte", "lm_head"}


def test_a_deep_model_is_grouped_in_blocks_of_neighbouring_layers() -> None:
    names = [f"model.layers.{i}.mlp.weight" for i in range(80)] + ["model.embed_tokens.weight", "lm_head.weight"]
    groups = layer_groups(names)
    assert groups["model.layers.0.mlp.weight"] == "model.layers.0-3"
    assert groups["model.layers.79.mlp.weight"] == "model.layers.76-79"
    assert groups["lm_head.weight"] == "lm_head"
    assert len(set(groups.values())) == 22


def test_many_unnumbered_modules_are_grouped_by_their_first_word() -> None:
    names = [f"encoder.part{i}.sub.weight" for i in range(20)] + [f"decoder.part{i}.sub.weight" for i in range(20)]
    assert set(layer_groups(names).values()) == {"encoder", "decoder"}


def test_modules_that_nothing_joins_end_in_other() -> None:
    groups = layer_groups([f"module_{chr(97 + i % 26)}{i}.weight" for i in range(100)])
    assert len(set(groups.values())) == GROUPS_MAX
    assert list(groups.values()).count("(other)") == 100 - (GROUPS_MAX - 1)


@given(
    st.lists(st.text("ab01.9/", max_size=12), max_size=120),
    st.integers(min_value=1, max_value=GROUPS_MAX),
)
def test_every_name_has_one_group_and_there_are_never_too_many(names: list[str], groups_max: int) -> None:
    groups = layer_groups(names, groups_max)
    assert set(groups) == set(names)
    assert len(set(groups.values())) <= groups_max
    members = group_members(groups)
    assert sorted(name for _, part in members for name in part) == sorted(set(names))
    assert len({group for group, _ in members}) == len(members)


def test_a_hostile_layer_number_does_not_take_long() -> None:
    groups = layer_groups([f"h.{i * 10**40}.w" for i in range(50)] + [f"k.{i * 10**7}.w" for i in range(50)])
    assert len(set(groups.values())) <= GROUPS_MAX
