from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from monitor.read.keras.keras_optimizer import (
    OptimizerConfig,
    Shape,
    class_of,
    match_slots,
    optimizer_scalars,
    own_shapes,
    parse_config,
    parse_json,
)
from monitor.read.naming import ASSUMED_BETA2

A, B, C = (3, 2), (2,), (4,)
NOTHING = OptimizerConfig()


def roles(class_name: str, shapes: list[Shape], parameters: list[Shape], config: OptimizerConfig = NOTHING) -> Any:
    slots = match_slots(class_name, shapes, parameters, config)
    return None if slots is None else [(s.parameter, s.role) if s else None for s in slots]


def test_adam_keeps_a_pair_for_each_parameter_and_amsgrad_a_list_behind() -> None:
    pairs = [(0, "exp_avg"), (0, "exp_avg_sq"), (1, "exp_avg"), (1, "exp_avg_sq")]
    assert roles("adam", [A, A, B, B], [A, B]) == pairs
    assert roles("adam", [A, A, B, B, A, B], [A, B]) == [*pairs, (0, "max_exp_avg_sq"), (1, "max_exp_avg_sq")]
    assert roles("adam", [A, B, A, A, B, B], [A, B]) == [(0, "average"), (1, "average"), *pairs]
    assert roles("nadam", [A, A, ()], [A]) == [(0, "exp_avg"), (0, "exp_avg_sq"), None]


@pytest.mark.parametrize("shapes", [[A, A, B], [A, A, C, C], [B, B, A, A], [], [A, A, B, B, ()]])
def test_a_sequence_that_does_not_fit_as_a_whole_is_given_to_nobody(shapes: list[Shape]) -> None:
    assert roles("adam", shapes, [A, B]) is None


def test_what_fits_in_two_ways_is_only_told_apart_by_the_configuration() -> None:
    assert roles("rmsprop", [A, B, A, B], [A, B]) is None
    config = OptimizerConfig(optional=frozenset({"momentum"}))
    expected = [(0, "square_avg"), (1, "square_avg"), (0, "momentum_buffer"), (1, "momentum_buffer")]
    assert roles("rmsprop", [A, B, A, B], [A, B], config) == expected
    assert roles("sgd", [A, B], [A, B], OptimizerConfig(optional=frozenset())) is None


def test_an_unknown_class_is_left_alone() -> None:
    assert roles("home_made", [A, A], [A]) is None
    assert own_shapes("home_made", [A, A]) is None


@given(st.lists(st.sampled_from([A, B, C, ()]), min_size=1, max_size=6))
def test_the_optimizers_own_list_tells_the_shapes_of_its_parameters(parameters: list[Shape]) -> None:
    assert own_shapes("adam", [s for p in parameters for s in (p, p)]) == tuple(parameters)
    assert own_shapes("sgd", parameters) == tuple(parameters)


def test_names_give_classes() -> None:
    assert [class_of(n) for n in ("adam_3", "AdamW", "RMSprop", "Custom>SGD", "rmsprop")] == [
        *("adam", "adam_w", "rm_sprop", "sgd", "rmsprop"),
    ]


def test_steps_of_states_are_given_for_all_or_for_none() -> None:
    states = [(str(i), "exp_avg_sq") for i in range(10)]
    stated = OptimizerConfig(beta2=0.9)
    assert len(optimizer_scalars(states, 7, 0.1, stated, 100)) == 13
    few = {"optimizer.param_groups.0.lr": 0.1, "optimizer.param_groups.0.betas.1": 0.9, "optimizer.step": 7}
    assert optimizer_scalars(states, 7, 0.1, stated, 5) == few
    assert optimizer_scalars(states, 7, 0.1, NOTHING, 5)[ASSUMED_BETA2] == 0.999
    assert ASSUMED_BETA2 not in optimizer_scalars([("0", "momentum_buffer")], 7, 0.1, NOTHING, 5)
    accumulating = OptimizerConfig(accumulation_steps=2)
    assert optimizer_scalars(states, 7, None, accumulating, 100)["optimizer.state.3.step"] == 3
    hidden = [*states, ("0", "gradient_accumulator")]
    assert optimizer_scalars(hidden, 7, None, NOTHING, 100) == {ASSUMED_BETA2: 0.999, "optimizer.step": 7}


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["config", "layers", "compile_config", "optimizer", "class_name", "beta_2", "name", "layer"]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=20,
)


@given(json_values)
def test_any_configuration_is_read_without_an_error(value: object) -> None:
    parse_config(value)
    parse_config(None, value)


def test_what_is_no_json_is_nothing() -> None:
    assert parse_json(b"[" * 100_000) is None
    assert parse_json("{") is None
    assert parse_json(b"\xff\xfe\xff") is None


def test_frozen_layers_are_found_at_any_depth() -> None:
    inner = {"config": {"name": "inner", "layers": [{"config": {"name": "deep", "trainable": False}}]}}
    shell = {"config": {"name": "twice", "forward_layer": {"config": {"name": "fw", "trainable": False}}}}
    frozen = {"config": {"name": "frozen", "trainable": False}}
    config = parse_config({"config": {"layers": [inner, shell, frozen, None, {"config": {"name": 3}}]}})
    assert config.frozen == {"inner/deep", "twice/fw", "frozen"}
