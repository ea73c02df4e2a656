from __future__ import annotations

from storage import series, writer
from storage.database import Database
from storage.records import Snapshot, TensorDrift, TensorKind
from tests.support.stored import make_snapshot, make_tensor


def add(database: Database, *snapshots: Snapshot) -> list[int]:
    with database.write() as session:
        numbers = [writer.add_snapshot(session, snapshot) for snapshot in snapshots]
    return [number for number in numbers if number is not None]


def drift(name: str, relative: float) -> TensorDrift:
    return TensorDrift(
        name=name, reference_step=1, method="exact", difference_l2=0.5, relative_l2=relative, cosine_distance=0.1
    )


def test_points_are_parameters_by_snapshot_in_the_checkpoints_order(database: Database) -> None:
    tensors = (
        make_tensor("z", 0, norm_l2=5.0, n_nan=2, n_posinf=1),
        make_tensor("a", 1),
        make_tensor("momentum", 2, kind=TensorKind.OPTIMIZER),
    )
    first, second = add(
        database,
        make_snapshot(1, tensors=tensors, drifts=()),
        make_snapshot(2, tensors=tensors, drifts=(drift("z", 0.25),)),
    )
    with database.read() as session:
        found = series.tensor_points(session, [first, second])
        bounded = series.tensor_points(session, [first, second], limit=3)
        newest = series.tensor_points(session, [second])
    assert [(p.snapshot_id, p.name) for p in found] == [(first, "z"), (first, "a"), (second, "z"), (second, "a")]
    assert [p.relative_l2 for p in found] == [None, None, 0.25, None]
    assert (found[0].n_nonfinite, found[0].norm_l2, found[0].n_elements) == (3, 5.0, 12)
    assert len(bounded) == 3
    assert [p.snapshot_id for p in newest] == [second, second]


def test_the_drifts_of_one_tensor_are_those_of_its_own_run(database: Database) -> None:
    tensors = (make_tensor("w", 0), make_tensor("v", 1))
    mine, other = add(
        database,
        make_snapshot(2, tensors=tensors, drifts=(drift("w", 0.1), drift("v", 0.2))),
        make_snapshot(2, run="other", tensors=tensors, drifts=(drift("w", 0.3),)),
    )
    with database.read() as session:
        found = series.tensor_drifts(session, "gpt", "w", [mine, other])
        unknown = series.tensor_drifts(session, "gpt", "unknown", [mine, other])
    assert {number: d.relative_l2 for number, d in found.items()} == {mine: 0.1}
    assert unknown == {}


def test_one_scalar_is_given_for_each_snapshot_that_has_it(database: Database) -> None:
    numbers = add(
        database,
        make_snapshot(1, scalars={"log.loss": 2.5, "lr": 0.1}),
        make_snapshot(2, scalars={"lr": 0.1}),
        make_snapshot(3, scalars={"log.loss": 1.5}),
    )
    with database.read() as session:
        found = series.scalar_values(session, numbers, "log.loss")
        nothing = series.scalar_values(session, [], "log.loss")
    assert found == {numbers[0]: 2.5, numbers[2]: 1.5}
    assert nothing == {}
