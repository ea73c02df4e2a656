"""Looking closer at what is stored: a database of real checkpoints, some of which went bad."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from monitor.show.closer_views import PairRelation
from monitor.stored_closer import StoredCloser, spread
from storage import queries
from storage.database import Database, open_database
from storage.records import AlertState
from tests.support.daemons import ckptwatch

N_STEPS = 6


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Database]:
    directory = tmp_path_factory.mktemp("closer")
    start = np.random.default_rng(0).standard_normal((40, 50))
    for step in range(1, N_STEPS + 1):
        weight = start + 0.01 * step
        arrays = {"a": weight, "b": start[0], "gone" if step < 3 else "come": start[1]}
        if step == N_STEPS:
            arrays["a"] = np.where(start > 3, np.nan, weight)
        path = directory / "run" / f"step-{step}.npz"
        path.parent.mkdir(exist_ok=True)
        np.savez(path, **{name: values.astype(np.float32) for name, values in arrays.items()})
    settings = {"CKPTWATCH_WATCH__SETTLE_SECONDS": "0.1"}
    assert ckptwatch("scan", directory / "run", "--db", directory / "db", **settings).returncode == 0
    opened = open_database(str(directory / "db"))
    yield opened
    opened.close()


def ids(database: Database) -> list[int]:
    with database.read() as session:
        return [snapshot.id for snapshot in queries.history(session, "run")]


def test_two_snapshots_are_compared_tensor_by_tensor(database: Database) -> None:
    numbers = ids(database)
    found = StoredCloser(database).comparison(numbers[1], numbers[3])
    assert found is not None
    relations = {pair.name: pair.relation for pair in found.pairs}
    assert relations == {
        "a": PairRelation.CHANGED,
        "b": PairRelation.SAME,
        "come": PairRelation.ADDED,
        "gone": PairRelation.REMOVED,
    }
    pair = next(pair for pair in found.pairs if pair.name == "a")
    start = np.random.default_rng(0).standard_normal((40, 50))
    truth = np.linalg.norm(np.full_like(start, 0.02)) / np.linalg.norm(start + 0.02)
    assert pair.relative_l2 == pytest.approx(truth, rel=0.1)


def test_what_does_not_exist_is_not_compared(database: Database) -> None:
    assert StoredCloser(database).comparison(ids(database)[0], 10**9) is None


def test_a_tensor_with_nan_has_no_distance_and_the_reason_is_said(database: Database) -> None:
    numbers = ids(database)
    found = StoredCloser(database).comparison(numbers[3], numbers[5])
    assert found is not None
    assert next(pair for pair in found.pairs if pair.name == "a").relative_l2 is None
    assert "NaN" in found.reason


def test_a_run_from_above_shows_what_can_be_compared_with_the_newest(database: Database) -> None:
    found = StoredCloser(database).drift_map("run", 60)
    assert found is not None
    assert [snapshot.step for snapshot in found.snapshots] == [3, 4, 5]
    assert found.n_left_out == 3
    assert found.relative[0][2] == pytest.approx(2 * found.relative[0][1], rel=0.05)
    assert found.share == pytest.approx(1.0, abs=0.01)
    assert StoredCloser(database).drift_map("none", 60) is None


def test_incidents_come_with_their_alerts(database: Database) -> None:
    found = StoredCloser(database).happenings(None, 10)
    assert [view.incident.run for view in found.incidents] == ["run"]
    (view,) = found.incidents
    assert view.incident.state is AlertState.FIRING
    assert "nonfinite" in {alert.rule for alert in view.alerts}
    assert view.messages == ()


@pytest.mark.parametrize(("n", "limit"), [(0, 2), (1, 2), (5, 2), (100, 7), (7, 7)])
def test_a_spread_keeps_both_ends_and_its_limit(n: int, limit: int) -> None:
    chosen = spread(range(n), limit)
    assert len(chosen) == min(n, limit)
    assert chosen == sorted(set(chosen))
    assert chosen[:1] + chosen[-1:] == [0, n - 1] if n else chosen == []
