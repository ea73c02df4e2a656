"""Names of logged quantities, and how points become the numbers of a snapshot."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from monitor.logbook.points import KEYS, LogPoint, joined, key_of, number, points_of


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("loss", "loss"),
        ("train_loss", "loss"),
        ("train/loss", "loss"),
        ("Training Loss", None),
        ("train_loss_step", "loss"),
        ("eval_loss", "eval_loss"),
        ("val_loss", "eval_loss"),
        ("validation/loss", "eval_loss"),
        ("eval_wikitext_loss", "eval_loss"),
        ("val_loss_epoch", "eval_loss"),
        ("grad_norm", "grad_norm"),
        ("train/grad_norm", "grad_norm"),
        ("gradient_norm", "grad_norm"),
        ("learning_rate", "learning_rate"),
        ("lr", "learning_rate"),
        ("lr-AdamW", "learning_rate"),
        ("lossy", None),
        ("accuracy", None),
        ("loss_scale", None),
    ],
)
def test_usual_names_of_a_quantity_are_known_and_others_are_not(name: str, key: str | None) -> None:
    assert key_of(name) == key


def test_a_record_without_a_step_says_nothing() -> None:
    assert points_of({"loss": 1.0}) == []
    assert points_of({"loss": 1.0, "step": 1.5}) == []
    assert points_of({"loss": 1.0, "step": -3}) == []
    assert points_of({"loss": 1.0, "step": float("nan")}) == []


def test_a_record_may_hold_numbers_as_text_and_other_things() -> None:
    found = points_of({"step": "12", "loss": "1.5", "lr": True, "grad_norm": None, "eval_loss": [1], "note": "x"})
    assert found == [LogPoint(12, "loss", 1.5)]


def test_a_number_too_large_for_a_float_is_none() -> None:
    assert number(10**400) is None
    assert number("1e400") == math.inf


def test_means_are_taken_over_the_steps_since_the_checkpoint_before() -> None:
    points = [LogPoint(step, "loss", float(step)) for step in range(0, 60, 10)]
    said = joined(points, step=40, after=20)
    assert said["log.loss"] == 35.0
    assert (said["log.loss_last"], said["log.loss_max"], said["log.step"]) == (40.0, 40.0, 40.0)


def test_without_a_point_in_between_the_last_one_before_stands() -> None:
    said = joined([LogPoint(10, "loss", 2.0), LogPoint(10, "eval_loss", 3.0)], step=40, after=20)
    assert (said["log.loss"], said["log.eval_loss"], said["log.step"]) == (2.0, 3.0, 10.0)


def test_nan_is_counted_and_enters_nothing_else() -> None:
    points = [LogPoint(10, "loss", 2.0), LogPoint(20, "loss", math.nan), LogPoint(20, "grad_norm", math.inf)]
    said = joined(points, step=20, after=0)
    assert said == {
        "log.n_nonfinite": 2.0,
        "log.loss": 2.0,
        "log.loss_max": 2.0,
        "log.loss_last": 2.0,
        "log.step": 10.0,
    }


def test_what_was_logged_later_is_not_known_yet() -> None:
    assert joined([LogPoint(50, "loss", 2.0)], step=40, after=None) == {}


def test_of_two_values_at_one_step_the_later_written_one_speaks() -> None:
    said = joined([LogPoint(10, "learning_rate", 1.0), LogPoint(10, "learning_rate", 2.0)], step=10, after=None)
    assert said["log.learning_rate"] == 2.0


@given(
    st.lists(st.builds(LogPoint, st.integers(0, 100), st.sampled_from(KEYS), st.floats())),
    st.integers(0, 100),
    st.none() | st.integers(0, 100),
)
def test_no_number_of_a_snapshot_is_nan_or_infinite(points: list[LogPoint], step: int, after: int | None) -> None:
    assert all(math.isfinite(value) for value in joined(points, step=step, after=after).values())
