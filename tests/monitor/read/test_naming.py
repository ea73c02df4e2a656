from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from monitor.read.naming import (
    STEP_MAX,
    UniqueNames,
    as_epoch,
    as_step,
    is_optimizer_key,
    is_side_key,
    joined,
    kind_of_flat_name,
    printable,
)
from storage.records import TensorKind


@given(text=st.text(), n=st.integers(3, 50))
def test_what_is_shown_is_printable_and_short(text: str, n: int) -> None:
    shown = printable(text, n)
    assert shown.isprintable()
    assert len(shown) <= n


def test_printable_text_stays_as_it_is() -> None:
    assert printable("läyer.0.wéight 名前", 50) == "läyer.0.wéight 名前"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\nb", "a\\x0ab"),
        ("a\0", "a\\x00"),
        ("\u202eabc", "\\u202eabc"),
        ("\ud800", "\\ud800"),
        ("\U000e0001", "\\U000e0001"),
        ("x" * 30, "x" * 17 + "..."),
    ],
)
def test_what_cannot_be_shown_is_escaped(text: str, shown: str) -> None:
    assert printable(text, 20) == shown


@given(names=st.lists(st.text(max_size=12), max_size=60), n=st.integers(8, 14))
def test_names_are_unique_printable_and_bounded(names: list[str], n: int) -> None:
    unique = UniqueNames(n)
    given_names = [unique.claim(name) for name in names]
    assert len(set(given_names)) == len(given_names)
    assert all(0 < len(name) <= n and name.isprintable() for name in given_names)


def test_the_second_bearer_of_a_name_takes_the_longer_one_or_a_number() -> None:
    unique = UniqueNames(100)
    assert unique.claim("w", "model.w") == "w"
    assert unique.claim("w", "model.w") == "model.w"
    assert unique.claim("w", "model.w") == "w#2"
    assert unique.claim("w") == "w#3"
    assert unique.claim("") == "(empty)"


def test_many_bearers_of_one_long_name_do_not_take_long() -> None:
    unique = UniqueNames(10)
    assert len({unique.claim("x" * 50) for _ in range(20_000)}) == 20_000


def test_components_are_joined_by_dots() -> None:
    assert joined("", "a", 10) == "a"
    assert joined("a", "b", 10) == "a.b"


@pytest.mark.parametrize(
    "key", ["optimizer", "optim", "optimizer_state_dict", "optimizer_states", "opt", "gen_optimizer"]
)
def test_keys_of_optimizers_are_known(key: str) -> None:
    assert is_optimizer_key(key)


@pytest.mark.parametrize("key", ["lr_schedulers", "ema", "rng_state", "callbacks", "hyper_parameters", "model_args"])
def test_keys_beside_the_model_are_known(key: str) -> None:
    assert is_side_key(key)
    assert not is_optimizer_key(key)


@pytest.mark.parametrize(
    ("name", "dtype", "n_dimensions", "kind"),
    [
        ("layer.weight", "float32", 2, TensorKind.PARAMETER),
        ("bn.running_mean", "float32", 1, TensorKind.BUFFER),
        ("bn.num_batches_tracked", "int64", 0, TensorKind.BUFFER),
        ("position_ids", "int64", 2, TensorKind.BUFFER),
        ("mask", "bool", 2, TensorKind.BUFFER),
        ("optimizer.state.0.exp_avg", "float32", 2, TensorKind.OPTIMIZER),
        ("optimizer", "float32", 2, TensorKind.PARAMETER),
        ("step", "int64", 0, TensorKind.OTHER),
        ("lr", "float64", 0, TensorKind.OTHER),
        ("logit_scale", "float32", 0, TensorKind.PARAMETER),
        ("w", "float8_e4m3fn", 2, TensorKind.PARAMETER),
        ("w", "bfloat16", 2, TensorKind.PARAMETER),
        ("w", "complex64", 2, TensorKind.PARAMETER),
    ],
)
def test_kinds_follow_from_flat_names_and_dtypes(name: str, dtype: str, n_dimensions: int, kind: TensorKind) -> None:
    assert kind_of_flat_name(name, dtype, n_dimensions) is kind


@pytest.mark.parametrize(
    ("value", "step"),
    [(5, 5), (0, 0), (5.0, 5), (5.5, None), (-1, None), (True, None), ("5", None), (None, None), (STEP_MAX + 1, None)],
)
def test_steps_are_whole_and_not_negative(value: object, step: int | None) -> None:
    assert as_step(value) == step
    assert type(as_step(value)) is type(step)


@pytest.mark.parametrize(
    ("value", "epoch"),
    [(1, 1.0), (1.5, 1.5), (-1, None), (True, None), (float("nan"), None), (float("inf"), None), ("1", None)],
)
def test_epochs_are_finite_and_not_negative(value: object, epoch: float | None) -> None:
    assert as_epoch(value) == epoch
