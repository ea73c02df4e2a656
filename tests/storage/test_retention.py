"""Which snapshots keep their sketches as a run grows, and what is left of those that do not."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from storage import queries, writer
from storage.database import Database
from storage.retention import is_kept, thin_distributions, thin_sketches
from tests.support.stored import make_snapshot


def kept_of(n_snapshots: int, n_recent: int) -> set[int]:
    return {index for index in range(n_snapshots) if is_kept(index, n_snapshots, n_recent)}


@given(n_snapshots=st.integers(1, 400), n_recent=st.integers(1, 64))
def test_a_growing_run_never_asks_for_what_it_dropped(n_snapshots: int, n_recent: int) -> None:
    assert kept_of(n_snapshots + 1, n_recent) - {n_snapshots} <= kept_of(n_snapshots, n_recent)


@given(n_snapshots=st.integers(1, 2000), n_recent=st.integers(1, 64))
def test_the_first_and_the_newest_stay_and_the_rest_grows_like_a_logarithm(n_snapshots: int, n_recent: int) -> None:
    kept = kept_of(n_snapshots, n_recent)
    assert 0 in kept
    assert kept >= set(range(max(0, n_snapshots - n_recent), n_snapshots))
    n_octaves = math.ceil(math.log2(max(n_snapshots / n_recent, 1))) + 1
    assert len(kept) <= (n_recent + 1) * (n_octaves + 1)


def test_ten_thousand_snapshots_keep_the_sketches_of_a_few_hundred() -> None:
    assert len(kept_of(10_000, 64)) < 400


def test_thinning_drops_old_sketches_and_keeps_their_statistics(database: Database) -> None:
    numbers = []
    for step in range(8):
        with database.write() as session:
            number = writer.add_snapshot(session, make_snapshot(step))
            assert number is not None
            numbers.append(number)
    with database.write() as session:
        other = writer.add_snapshot(session, make_snapshot(1, run="other"))
        assert other is not None
    with database.write() as session:
        assert thin_sketches(session, "gpt", n_recent=2) > 0
    with database.write() as session:
        assert thin_sketches(session, "gpt", n_recent=2) == 0
    with database.read() as session:
        kept = {i for i, n in enumerate(numbers) if queries.tensors(session, n, with_sketch=True)[0].sketch is not None}
        assert kept == kept_of(8, 2) == {0, 4, 6, 7}
        assert queries.tensors(session, other, with_sketch=True)[0].sketch is not None
        assert all(queries.tensors(session, number)[0].norm_l2 == 3.0 for number in numbers)


def test_histograms_are_thinned_in_the_same_way_and_what_is_asked_for_is_kept(database: Database) -> None:
    with database.write() as session:
        numbers = [writer.add_snapshot(session, make_snapshot(step)) for step in range(8)]
    best = numbers[1]
    assert best is not None
    with database.write() as session:
        assert thin_distributions(session, "gpt", n_recent=2, keep={best}) > 0
        assert thin_sketches(session, "gpt", n_recent=2, keep={best}) > 0
    with database.write() as session:
        assert thin_distributions(session, "gpt", n_recent=2, keep={best}) == 0
    with database.read() as session:
        tensors = [queries.tensors(session, n, with_sketch=True)[0] for n in numbers if n is not None]
    expected = kept_of(8, 2) | {1}
    assert {i for i, t in enumerate(tensors) if t.histogram is not None} == expected
    assert {i for i, t in enumerate(tensors) if t.quantiles} == expected
    assert {i for i, t in enumerate(tensors) if t.sketch is not None} == expected


def test_a_long_backlog_is_thinned_a_part_at_a_time_from_its_oldest_end(database: Database) -> None:
    with database.write() as session:
        numbers = [writer.add_snapshot(session, make_snapshot(step)) for step in range(12)]
    deleted = []
    for _ in range(3):
        with database.write() as session:
            deleted.append(thin_sketches(session, "gpt", n_recent=2, snapshots_max=4))
        if len(deleted) == 1:
            with database.read() as session:
                tensors = [queries.tensors(session, n, with_sketch=True)[0] for n in numbers if n is not None]
            thinned = [index for index, tensor in enumerate(tensors) if tensor.sketch is None]
            assert thinned == sorted(set(range(12)) - kept_of(12, 2))[:4]
    n_doomed = 12 - len(kept_of(12, 2))
    assert deleted == [4, n_doomed - 4, 0]


def test_a_short_or_unknown_run_keeps_everything(database: Database) -> None:
    with database.write() as session:
        writer.add_snapshot(session, make_snapshot(1))
        assert thin_sketches(session, "gpt", n_recent=8) == 0
        assert thin_sketches(session, "nobody", n_recent=8) == 0
