"""Details of old snapshots are dropped from time to time, those of the best one never."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from monitor.thinning import THIN_SECONDS, Thinner
from storage import queries, writer
from storage.database import Database, open_database
from storage.retention import is_kept
from tests.support.stored import make_snapshot

N = 12
BEST = 3


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    opened = open_database(str(tmp_path / "x.db"))
    yield opened
    opened.close()


def store(database: Database, *steps: int, run: str = "gpt") -> None:
    with database.write() as session:
        for step in steps:
            loss = 0.1 if step == BEST else 1.0 + step
            assert writer.add_snapshot(session, make_snapshot(step, run=run, scalars={"log.eval_loss": loss}))


def thin(thinner: Thinner, database: Database, now: float) -> int:
    with database.read() as session:
        runs = queries.runs(session)
    return thinner.thin(runs, now)


def detailed(database: Database, run: str = "gpt") -> set[int | None]:
    """Return the steps that have both histograms and sketches; none has only one of them."""
    found: set[int | None] = set()
    with database.read() as session:
        for stored in queries.history(session, run):
            tensor = queries.tensors(session, stored.id, with_sketch=True)[0]
            assert (tensor.sketch is None) == (tensor.histogram is None)
            if tensor.sketch is not None:
                found.add(stored.step)
    return found


def test_old_snapshots_lose_their_details_and_the_best_one_keeps_them(database: Database) -> None:
    store(database, *range(N))
    store(database, 0, 1, run="short")
    thinner = Thinner(database, n_recent=2)
    assert thin(thinner, database, 0.0) > 0
    assert detailed(database) == {step for step in range(N) if is_kept(step, N, 2)} | {BEST}
    assert detailed(database, "short") == {0, 1}
    assert thin(thinner, database, 1.0) == 0


def test_a_run_is_thinned_again_when_it_has_grown(database: Database) -> None:
    store(database, *range(N))
    thinner = Thinner(database, n_recent=2)
    thin(thinner, database, 0.0)
    thin(thinner, database, 1.0)
    store(database, *range(N, 2 * N))
    assert thin(thinner, database, 2.0) > 0
    assert detailed(database) == {step for step in range(2 * N) if is_kept(step, 2 * N, 2)} | {BEST}


def test_it_is_due_at_once_then_every_ten_minutes_and_after_a_clock_was_set_back(database: Database) -> None:
    thinner = Thinner(database, n_recent=2)
    assert thinner.is_due(1000.0)
    thinner.thin([], 1000.0)
    assert not thinner.is_due(1000.0 + THIN_SECONDS - 1)
    assert thinner.is_due(1000.0 + THIN_SECONDS)
    assert thinner.is_due(500.0)
