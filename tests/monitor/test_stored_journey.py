"""Drift from any stored snapshot and the path of a run, against the truth from the weights themselves."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from monitor.measure.assemble import Reference, assemble, failed
from monitor.measure.measured import Measured, count_parameters
from monitor.show.views import DriftQuery, Journey, QuestionError
from monitor.stored_views import StoredViews
from storage import queries, sketches, writer
from storage.database import Database, open_database
from storage.records import Checkpoint, FileStat, Problem, ProblemKind, TensorDrift, TensorKind, TensorSummary
from storage.retention import thin_sketches
from tests.support.measuring import summarise

RUN = "gpt"
TOLERANCE = 4 / math.sqrt(2 * 1021)

Vector = npt.NDArray[np.float64]
Weights = Mapping[str, Vector]


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    opened = open_database(str(tmp_path / "x.db"))
    yield opened
    opened.close()


class Run:
    """A run of random weights that stores what it becomes, as the daemon would."""

    def __init__(self, database: Database, name: str = RUN) -> None:
        self.database = database
        self.name = name
        self.rng = np.random.default_rng(4)
        self.weights: dict[str, Vector] = {
            "embedding.weight": self.rng.standard_normal(6000),
            "layers.0.attn.weight": self.rng.standard_normal(3000),
            "layers.0.attn.bias": self.rng.standard_normal(40),
        }
        self.stored: dict[int, dict[str, Vector]] = {}
        self.ids: dict[int, int] = {}

    def update(self, size: float = 0.05) -> None:
        self.weights = {n: (w + size * self.rng.standard_normal(w.size)) for n, w in self.weights.items()}

    def store(
        self, step: int, *, attempt: int = 1, loss: Mapping[str, float] | None = None, exact: bool = False
    ) -> int:
        tensors = [summarise(w.astype(np.float32), name=n) for n, w in self.weights.items()]
        moment = summarise(np.full(2000, float(step), np.float32), name="optimizer.exp_avg")
        tensors.append(dataclasses.replace(moment, kind=TensorKind.OPTIMIZER))
        placed = tuple(dataclasses.replace(t, position=i) for i, t in enumerate(tensors))
        reference = self._reference(attempt, step)
        snapshot = assemble(
            self._checkpoint(step, attempt),
            _measured(placed, step, loss or {}, self._exact(reference) if exact else ()),
            reference,
            attempt,
            measured_at=100.0 + step,
            duration_seconds=0.1,
        )
        with self.database.write() as session:
            number = writer.add_snapshot(session, snapshot)
        assert number is not None
        self.stored[number] = dict(self.weights)
        self.ids[step] = number
        return number

    def fail(self, step: int) -> None:
        problem = Problem(kind=ProblemKind.CORRUPT, message="damaged")
        snapshot = failed(self._checkpoint(step, 1), problem, 1, measured_at=1.0, duration_seconds=0.0)
        with self.database.write() as session:
            assert writer.add_snapshot(session, snapshot) is not None

    def journey(self, against: str | None = None, tensors: str | None = None, limit: int = 1000) -> Journey:
        query = None if against is None else DriftQuery(against=against, tensors=tensors)
        found = StoredViews(self.database).journey(self.name, limit, query)
        assert found is not None
        return found

    def distance(self, a: int, b: int, names: tuple[str, ...] | None = None) -> float:
        old, new = self.stored[a], self.stored[b]
        return math.hypot(*(float(np.linalg.norm(new[n] - old[n])) for n in names or old))

    def norm(self, number: int, names: tuple[str, ...] | None = None) -> float:
        weights = self.stored[number]
        return math.hypot(*(float(np.linalg.norm(weights[n])) for n in names or weights))

    def _checkpoint(self, step: int, attempt: int) -> Checkpoint:
        path = f"/r/{attempt}/step-{step}.pt"
        file = FileStat(path=path, device=1, inode=2, size_bytes=3, mtime_ns=4)
        return Checkpoint(run=self.name, root="/r", path=path, files=(file,), signature=path, written_at=float(step))

    def _reference(self, attempt: int, step: int) -> Reference | None:
        with self.database.read() as session:
            stored = queries.reference(session, self.name, attempt, step=step, written_at=0.0)
            if stored is None:
                return None
            return Reference(snapshot=stored, tensors=queries.tensors(session, stored.id, with_sketch=True))

    def _exact(self, reference: Reference | None) -> tuple[TensorDrift, ...]:
        if reference is None:
            return ()
        old = self.stored[reference.snapshot.id]
        return tuple(
            TensorDrift(
                name=name,
                reference_step=reference.snapshot.step,
                method="exact",
                difference_l2=float(np.linalg.norm(now - old[name])),
                relative_l2=0.5,
                cosine_distance=0.5,
            )
            for name, now in self.weights.items()
        )


def _measured(
    tensors: tuple[TensorSummary, ...], step: int, scalars: Mapping[str, float], drifts: tuple[TensorDrift, ...]
) -> Measured:
    return Measured(
        format="torch_zip",
        step=step,
        epoch=None,
        scalars=dict(scalars),
        tensors=tensors,
        exact_drifts=drifts,
        bytes_read=99,
        n_parameters=count_parameters(tensors),
    )


@pytest.fixture
def run(database: Database) -> Run:
    made = Run(database)
    for step in (10, 20, 30, 40, 50):
        made.store(step)
        made.update()
    return made


@pytest.mark.parametrize(("against", "step"), [("first", 10), ("30", 30), ("50", 50)])
def test_drift_is_that_of_the_weights_from_any_snapshot(run: Run, against: str, step: int) -> None:
    drifts = run.journey(against).drifts
    assert set(drifts) == set(run.stored) - ({run.ids[10]} if against == "first" else set())
    for number, drift in drifts.items():
        truth = run.distance(run.ids[step], number) / run.norm(run.ids[step])
        assert (drift.reference_step, drift.method, drift.reason) == (step, "sketch", "")
        assert drift.reference_path == f"/r/1/step-{step}.pt"
        assert drift.relative_l2 == pytest.approx(truth, rel=TOLERANCE, abs=1e-9)
        assert drift.cosine == pytest.approx(1.0, abs=truth**2 * 0.6)


def test_the_drift_from_the_one_before_is_exact_where_both_files_were_read(database: Database) -> None:
    run = Run(database)
    numbers = []
    for step in (1, 2, 3):
        numbers.append(run.store(step, exact=step == 2))
        run.update()
    for tensors, names in ((None, None), ("layers.*.weight", ("layers.0.attn.weight",))):
        drifts = run.journey("previous", tensors).drifts
        assert list(drifts) == numbers[1:]
        methods = [drifts[number].method for number in numbers[1:]]
        assert methods == ["exact", "sketch"]
        for (old, new), rel in zip(itertools.pairwise(numbers), (1e-6, TOLERANCE), strict=True):
            truth = run.distance(old, new, names) / run.norm(old, names)
            assert drifts[new].relative_l2 == pytest.approx(truth, rel=rel)
            assert drifts[new].cosine == pytest.approx(1 - truth**2 / 2, abs=1e-3)


def test_single_tensors_are_compared_by_name_or_glob_and_of_any_kind(run: Run) -> None:
    names = ("layers.0.attn.weight", "layers.0.attn.bias")
    for pattern, found in (("*.attn.*", names), ("layers.0.attn.bias", names[1:])):
        for number, drift in run.journey("first", pattern).drifts.items():
            truth = run.distance(run.ids[10], number, found) / run.norm(run.ids[10], found)
            assert drift.relative_l2 == pytest.approx(truth, rel=TOLERANCE)
            assert drift.n_tensors == len(found)
    moments = run.journey("10", "optimizer.*").drifts
    assert moments[run.ids[30]].relative_l2 == pytest.approx(2.0, rel=TOLERANCE)
    assert moments[run.ids[30]].cosine == pytest.approx(1.0, abs=1e-6)


def test_all_parameters_can_be_compared_when_the_sketches_of_tensors_are_gone(run: Run) -> None:
    before = run.journey("20").drifts
    with run.database.write() as session:
        assert thin_sketches(session, RUN, n_recent=2) > 0
    assert run.journey("20").drifts == before
    drift = run.journey("20", "embedding.weight").drifts[run.ids[50]]
    assert (drift.relative_l2, drift.cosine) == (None, None)
    assert drift.reason == "the sketches of the tensors of step 20 are no longer kept (storage.sketches_recent)"
    assert run.journey("first", "embedding.weight").drifts[run.ids[50]].relative_l2 is not None


@pytest.mark.parametrize(
    ("logged", "best"),
    [
        ({10: {"log.loss": 1.0}, 20: {"log.loss": 0.2, "log.eval_loss": 3.0}, 30: {"log.eval_loss": 2.0}}, 30),
        ({10: {"log.loss": 1.0}, 20: {"log.loss": 0.2}, 30: {"log.loss": 0.2}}, 20),
        ({}, 30),
    ],
    ids=["validation loss", "training loss", "last good"],
)
def test_the_best_snapshot_is_the_one_of_the_lowest_loss(
    database: Database, logged: dict[int, dict[str, float]], best: int
) -> None:
    run = Run(database)
    for step in (10, 20, 30):
        run.store(step, loss=logged.get(step))
        run.update()
    run.weights["embedding.weight"][0] = math.nan
    run.store(40)
    drifts = run.journey("best").drifts
    assert {drift.reference_step for drift in drifts.values()} == {best}
    assert drifts[run.ids[best]].relative_l2 == 0.0


def test_references_that_are_none_are_refused_with_what_there_is(run: Run) -> None:
    for against, told in (
        ("33", "the nearest are 30 and 40"),
        ("9", "the nearest are 10 and 20"),
        ("worst", "give first, previous, best or a step"),
        ("-1", "give first, previous, best or a step"),
        ("9" * 30, "give first, previous, best or a step"),
    ):
        with pytest.raises(QuestionError, match=told):
            run.journey(against)
    with pytest.raises(QuestionError, match="no tensor of this run matches 'head"):
        run.journey("first", "head.*")
    assert StoredViews(run.database).journey("nobody", 10, DriftQuery(against="first")) is None


def test_a_run_without_anything_good_has_no_best(database: Database) -> None:
    run = Run(database)
    run.fail(1)
    with pytest.raises(QuestionError, match="none of them is good"):
        run.journey("best")


def test_weights_that_cannot_be_compared_say_why(run: Run) -> None:
    run.weights["embedding.weight"] = run.weights["embedding.weight"].copy()
    run.weights["embedding.weight"][3] = math.nan
    run.store(60)
    run.weights = {"renamed.weight": run.rng.standard_normal(5000), "layers.0.attn.bias": np.zeros(40)}
    run.store(70)
    run.fail(80)
    drifts = run.journey("20").drifts
    assert drifts[run.ids[60]].reason == "not all parameters of step 60 are finite and measured"
    assert "its parameters are not those of step 20" in drifts[run.ids[70]].reason
    assert {drifts[run.ids[step]].relative_l2 for step in (60, 70)} == {None}
    one = run.journey("20", "*.bias").drifts
    assert one[run.ids[70]].relative_l2 == pytest.approx(1.0, rel=1e-6)
    assert one[run.ids[70]].cosine is None
    assert "no tensor of this name and shape" in run.journey("20", "embedding*").drifts[run.ids[70]].reason
    assert "elements in step 60 are finite" in run.journey("20", "embedding*").drifts[run.ids[60]].reason
    assert len(run.journey("20").snapshots) == 8


def test_the_path_of_each_attempt_begins_with_its_first_snapshot(run: Run) -> None:
    for step in (30, 40):
        run.update()
        run.store(step, attempt=2)
    journey = run.journey()
    numbers = [s.id for s in journey.snapshots]
    assert [journey.points[n].path_length == 0.0 for n in numbers] == [True, *[False] * 4, True, False]
    first, length = numbers[0], 0.0
    for old, new in itertools.pairwise(numbers[:5]):
        length += run.distance(old, new)
        point = journey.points[new]
        assert point.path_length == pytest.approx(length, rel=TOLERANCE)
        assert point.displacement == pytest.approx(run.distance(first, new), rel=TOLERANCE)
    cosines = [journey.points[n].update_cosine for n in numbers]
    assert [c is None for c in cosines] == [True, True, False, False, False, True, True]
    assert all(abs(c) < 0.15 for c in cosines if c is not None)
    # The latest few lie where they lie on the whole path, not on one of their own.
    assert run.journey(limit=3).points == {n: journey.points[n] for n in numbers[-3:]}


def test_other_runs_with_the_same_parameters_at_a_step_are_found(run: Run) -> None:
    with run.database.read() as session:
        found = dict(sketches.weights(session, list(run.ids.values())))
        assert list(found) == list(run.ids.values())
        alike = sketches.weights_at_step(session, found[run.ids[20]].seed, 20, other_than="another")
        assert alike == [(RUN, found[run.ids[20]])]
        assert sketches.weights_at_step(session, found[run.ids[20]].seed, 20, other_than=RUN) == []
        assert sketches.weights_at_step(session, 1, 20, other_than="another") == []
