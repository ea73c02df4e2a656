"""Sketches as they come back, of all parameters and of single tensors, and the sums of stored drifts."""

from __future__ import annotations

import math

from sqlalchemy import text

from storage import sketches, writer
from storage.database import Database
from storage.records import Sketch, Snapshot, TensorDrift, TensorKind
from storage.sketches import DriftSum, Place
from tests.support.stored import make_failure, make_snapshot, make_tensor

WEIGHTS = Sketch(kind="weights", n_buckets=5, seed=2**63 - 1, dtype="float32", values=bytes(range(20)))


def add(database: Database, *snapshots: Snapshot) -> list[int]:
    with database.write() as session:
        numbers = [writer.add_snapshot(session, snapshot) for snapshot in snapshots]
    return [number for number in numbers if number is not None]


def drift(name: str, difference: float | None, method: str = "exact") -> TensorDrift:
    return TensorDrift(
        name=name, reference_step=1, method=method, difference_l2=difference, relative_l2=0.1, cosine_distance=0.1
    )


def test_the_sketch_of_all_parameters_comes_back_in_the_order_asked_for(database: Database) -> None:
    first, without, last = add(
        database, make_snapshot(1, weights=WEIGHTS), make_snapshot(2), make_snapshot(3, weights=WEIGHTS)
    )
    with database.read() as session:
        assert list(sketches.weights(session, [last, without, first, 999])) == [(last, WEIGHTS), (first, WEIGHTS)]
        assert list(sketches.weights(session, [])) == []


def test_more_snapshots_than_one_statement_may_name_are_read(database: Database) -> None:
    numbers = add(database, *(make_snapshot(step, weights=WEIGHTS, tensors=(), drifts=()) for step in range(260)))
    with database.read() as session:
        assert [number for number, _ in sketches.weights(session, numbers)] == numbers


def test_the_sketch_of_all_parameters_goes_with_its_snapshot(database: Database) -> None:
    (number,) = add(database, make_snapshot(1, weights=WEIGHTS))
    with database.write() as session:
        session.execute(text("DELETE FROM snapshots"))
    with database.read() as session:
        assert list(sketches.weights(session, [number])) == []


def test_runs_of_the_same_parameters_are_found_at_a_step(database: Database) -> None:
    add(
        database,
        make_snapshot(7, weights=WEIGHTS),
        make_snapshot(7, run="twin", weights=WEIGHTS),
        make_snapshot(8, run="later", weights=WEIGHTS),
        make_snapshot(7, run="other", weights=Sketch(kind="weights", n_buckets=5, seed=1, dtype="float32", values=b"")),
    )
    with database.read() as session:
        assert sketches.weights_at_step(session, WEIGHTS.seed, 7, other_than="gpt") == [("twin", WEIGHTS)]


def test_places_are_the_complete_snapshots_in_the_order_of_the_run(database: Database) -> None:
    second, first, third = add(
        database, make_snapshot(2), make_snapshot(1), make_snapshot(1, attempt=2, signature="again", path="/again")
    )
    add(database, make_failure(3), make_snapshot(4, run="other"))
    with database.read() as session:
        found = sketches.places(session, "gpt")
        assert sketches.places(session, "nobody") == []
    assert [place.id for place in found] == [first, second, third]
    assert found[2] == Place(id=third, attempt=2, step=1, path="/again", weight_norm=3.0)


def test_tensors_are_chosen_by_name_or_glob_and_ties_come_once(database: Database) -> None:
    tensors = (
        make_tensor("h.0.w", 0, n_nan=1, n_posinf=2),
        make_tensor("h.1.w", 1, kind=TensorKind.OPTIMIZER),
        make_tensor("h.1.tied", 2, tied_to="h.0.w"),
        make_tensor("w[0]", 3, shape=(), sketch=None, norm_l2=None),
    )
    (number,) = add(database, make_snapshot(1, tensors=tensors, drifts=()))
    add(database, make_snapshot(1, run="other", tensors=tensors, drifts=()))

    def names(pattern: str) -> list[str]:
        with database.read() as session:
            numbers = sketches.tensor_numbers(session, "gpt", pattern)
            return [t.name for t in sketches.tensors(session, number, numbers)]

    assert names("h.*") == ["h.0.w", "h.1.w"]
    assert names("h.1.w") == ["h.1.w"]
    assert names("w[0]") == ["w[0]"]
    assert names("*") == ["h.0.w", "h.1.w", "w[0]"]
    assert names("x") == []
    with database.read() as session:
        everything = sketches.tensor_numbers(session, "gpt", "*")
        found = sketches.tensors(session, number, everything)
        bare = sketches.tensors(session, number, everything, with_sketch=False)
    assert [(t.shape, t.n_nonfinite, t.norm_l2) for t in found] == [("3,4", 3, 3.0), ("3,4", 0, 3.0), ("", 0, None)]
    assert [t.sketch for t in found] == [tensors[0].sketch, tensors[1].sketch, None]
    assert [t.sketch for t in bare] == [None, None, None]


def test_drifts_are_added_up_over_parameters_or_the_tensors_asked_for(database: Database) -> None:
    tensors = (
        make_tensor("a", 0),
        make_tensor("b", 1),
        make_tensor("moment", 2, kind=TensorKind.OPTIMIZER),
        make_tensor("tied", 3, tied_to="a"),
    )
    drifts = (drift("a", 3.0), drift("b", 4.0), drift("moment", 5.0, "sketch"), drift("tied", 3.0))
    exact, mixed, unknown = add(
        database,
        make_snapshot(2, tensors=tensors, drifts=drifts),
        make_snapshot(3, tensors=tensors, drifts=(drift("a", 1.0), drift("b", 1.0, "sketch"))),
        make_snapshot(4, tensors=tensors, drifts=(drift("a", None), drift("b", 2.0))),
    )
    with database.read() as session:
        sums = sketches.drift_sums(session, [exact, mixed, unknown], None)
        moment = sketches.tensor_numbers(session, "gpt", "moment")
        one = sketches.drift_sums(session, [exact, mixed], moment)
    assert sums == {
        exact: DriftSum(reference_step=1, n_tensors=2, n_known=2, difference_l2=5.0, is_exact=True),
        mixed: DriftSum(reference_step=1, n_tensors=2, n_known=2, difference_l2=math.sqrt(2.0), is_exact=False),
        unknown: DriftSum(reference_step=1, n_tensors=2, n_known=1, difference_l2=2.0, is_exact=True),
    }
    assert one == {exact: DriftSum(reference_step=1, n_tensors=1, n_known=1, difference_l2=5.0, is_exact=False)}
