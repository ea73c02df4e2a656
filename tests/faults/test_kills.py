"""A daemon that is killed at any moment loses nothing, stores nothing twice, and forgets no alert."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from storage import failpoints
from tests.faults.kills import EVERYDAY, chain
from tests.faults.launcher import Launcher

pytestmark = pytest.mark.timeout(600)

# Where most can go wrong: a snapshot without its alert, an alert sent and not marked.
WORST = ("record.alerts", "deliver.sent")


@pytest.fixture(scope="module")
def launcher() -> Iterator[Launcher]:
    with Launcher() as running:
        yield running


def test_after_kills_where_most_can_go_wrong_all_is_as_if_nothing_had_happened(
    tmp_path: Path, launcher: Launcher
) -> None:
    outcome = chain(tmp_path, launcher, places=WORST, n_random=1, seed=7)
    assert outcome.wrong == []
    assert outcome.n_messages > 0
    assert outcome.n_kills.total() == len(WORST) + 1


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_after_a_kill_at_every_place_and_at_random_moments_all_is_as_if_nothing_had_happened(
    tmp_path: Path, launcher: Launcher
) -> None:
    outcome = chain(tmp_path, launcher, places=EVERYDAY, n_random=10, seed=1)
    assert outcome.wrong == []
    assert set(outcome.n_kills) == {*EVERYDAY, "random"}


@pytest.mark.parametrize(
    "text", ["nowhere=kill", "scan.done", "scan.done=explode", "scan.done=kill@0", "scan.done=kill@x"]
)
def test_a_failpoint_that_does_not_exist_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not NAME=ACTION"):
        failpoints.parse(text)


def test_failpoints_are_armed_by_name_action_and_number_of_passes() -> None:
    assert failpoints.parse("") == {}
    assert failpoints.parse("scan.done=kill, write.commit=full@3") == {
        "scan.done": ("kill", 0),
        "write.commit": ("full", 2),
    }


def test_without_the_environment_no_place_does_anything() -> None:
    for name in failpoints.NAMES:
        failpoints.reach(name)
