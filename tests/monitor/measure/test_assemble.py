from __future__ import annotations

import dataclasses
import math
import subprocess
import sys

import numpy as np
import pytest

from monitor.measure.assemble import UPDATE_COSINE_SCALAR, Reference, assemble, failed
from monitor.measure.measured import Measured, count_parameters
from monitor.measure.weight_sketch import weight_sketch
from storage.records import (
    Checkpoint,
    FileStat,
    Problem,
    ProblemKind,
    SnapshotStatus,
    StoredSnapshot,
    TensorDrift,
    TensorKind,
    TensorSummary,
)
from tests.support.measuring import Array, summarise

FILE = FileStat(path="/r/step-20.pt", device=1, inode=2, size_bytes=3, mtime_ns=4)
CHECKPOINT = Checkpoint(run="r", root="/r", path=FILE.path, files=(FILE,), signature="s", written_at=5.0, step=20)


def measured_of(values: dict[str, Array], step: int | None = 20, scalars: dict[str, float] | None = None) -> Measured:
    tensors = tuple(dataclasses.replace(summarise(v, name=n), position=i) for i, (n, v) in enumerate(values.items()))
    return _measured(tensors, step, scalars)


def _measured(
    tensors: tuple[TensorSummary, ...], step: int | None = 20, scalars: dict[str, float] | None = None
) -> Measured:
    return Measured(
        format="torch_zip",
        step=step,
        epoch=None,
        scalars=scalars or {},
        tensors=tensors,
        exact_drifts=(),
        bytes_read=99,
        n_parameters=count_parameters(tensors),
    )


def reference_of(measured: Measured, step: int | None) -> Reference:
    snapshot = assemble(CHECKPOINT, measured, None, 1, measured_at=6.0, duration_seconds=0.1)
    fields = {f.name: None for f in dataclasses.fields(StoredSnapshot)}
    shared = {f.name: getattr(snapshot, f.name) for f in dataclasses.fields(snapshot) if f.name in fields}
    stored = StoredSnapshot(**{**fields, **shared, "step": step})
    return Reference(snapshot=stored, tensors=measured.tensors, scalars=measured.scalars)


def test_a_first_snapshot_has_norms_but_nothing_to_compare_with() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal(500), rng.standard_normal(3000)
    snapshot = assemble(CHECKPOINT, measured_of({"a": a, "b": b}), None, 2, measured_at=7.0, duration_seconds=0.5)
    assert snapshot.status is SnapshotStatus.COMPLETE
    assert (snapshot.attempt, snapshot.n_tensors, snapshot.n_parameters, snapshot.n_nonfinite) == (2, 2, 3500, 0)
    assert (snapshot.measured_at, snapshot.duration_seconds, snapshot.bytes_read) == (7.0, 0.5, 99)
    assert (snapshot.checkpoint.format, snapshot.checkpoint.step) == ("torch_zip", 20)
    assert snapshot.weight_norm == pytest.approx(math.hypot(float(np.linalg.norm(a)), float(np.linalg.norm(b))))
    assert (snapshot.drifts, snapshot.update_ratio, snapshot.reference_step) == ((), None, None)
    assert (snapshot.gradient, snapshot.first_bad_tensor) == (None, None)


def test_the_step_of_the_content_wins_over_that_of_the_path() -> None:
    for content, expected in ((31, 31), (None, 20)):
        measured = measured_of({"a": np.ones(3)}, step=content)
        snapshot = assemble(CHECKPOINT, measured, None, 1, measured_at=7.0, duration_seconds=0.5)
        assert snapshot.checkpoint.step == expected


def test_drift_and_update_ratio_are_against_the_reference() -> None:
    values = np.random.default_rng(1).standard_normal(900)
    old = measured_of({"a": values, "gone": np.ones(4), "other shape": np.ones(5)})
    new = measured_of({"a": values * 1.1, "added": np.ones(4), "other shape": np.ones(6)})
    snapshot = assemble(CHECKPOINT, new, reference_of(old, 10), 1, measured_at=7.0, duration_seconds=0.5)
    assert [(d.name, d.method, d.reference_step) for d in snapshot.drifts] == [("a", "sketch", 10)]
    assert snapshot.reference_step == 10
    assert snapshot.update_ratio == pytest.approx(0.1 / 10)


def test_exact_drifts_take_the_place_of_sketched_ones_and_the_step_of_the_reference() -> None:
    old = measured_of({"a": np.ones(9), "b": np.ones(9)})
    exact = TensorDrift(
        name="b", reference_step=None, method="exact", difference_l2=6.0, relative_l2=2.0, cosine_distance=0.0
    )
    new = dataclasses.replace(measured_of({"a": np.ones(9), "b": np.full(9, 3.0)}), exact_drifts=(exact,))
    snapshot = assemble(CHECKPOINT, new, reference_of(old, 10), 1, measured_at=7.0, duration_seconds=0.5)
    assert [(d.name, d.method) for d in snapshot.drifts] == [("a", "sketch"), ("b", "exact")]
    assert {d.reference_step for d in snapshot.drifts} == {10}
    assert snapshot.update_ratio == pytest.approx(6.0 / math.sqrt(18) / 10)


@pytest.mark.parametrize("reference_step", [None, 20, 30])
def test_without_steps_between_there_is_no_update_ratio(reference_step: int | None) -> None:
    measured = measured_of({"a": np.ones(9)})
    snapshot = assemble(
        CHECKPOINT, measured, reference_of(measured, reference_step), 1, measured_at=7.0, duration_seconds=0.5
    )
    assert snapshot.update_ratio is None
    assert len(snapshot.drifts) == 1


def test_the_first_bad_tensor_is_first_in_the_order_of_the_checkpoint_and_ties_count_once() -> None:
    bad = np.array([1.0, math.nan, math.inf])
    measured = measured_of({"fine": np.ones(2), "z": bad, "a": bad, "tied": bad})
    tied = dataclasses.replace(measured.tensors[3], tied_to="a")
    measured = _measured((*measured.tensors[:3], tied))
    snapshot = assemble(CHECKPOINT, measured, None, 1, measured_at=7.0, duration_seconds=0.5)
    assert (snapshot.first_bad_tensor, snapshot.n_nonfinite, snapshot.n_parameters) == ("z", 4, 8)
    assert snapshot.weight_norm == pytest.approx(2.0)


def test_only_parameters_weigh() -> None:
    weights, moments = summarise(np.full(4, 2.0), name="w"), summarise(np.full(4, 9.0), name="m")
    tensors = (weights, dataclasses.replace(moments, kind=TensorKind.OPTIMIZER, position=1))
    snapshot = assemble(CHECKPOINT, _measured(tensors), None, 1, measured_at=7.0, duration_seconds=0.5)
    assert (snapshot.weight_norm, snapshot.n_parameters, snapshot.n_tensors) == (4.0, 4, 2)


def test_the_gradient_is_estimated_over_the_window() -> None:
    def state(total: float, step: float) -> Measured:
        values = {"w": np.ones(4), "optimizer.state.0.exp_avg_sq": np.full(4, total / 4)}
        scalars = {
            "optimizer.state.0.step": step,
            "optimizer.param_groups.0.betas.1": 0.9,
            "optimizer.param_groups.0.params.length": 1.0,
        }
        return measured_of(values, scalars=scalars)

    old, new = state(2.0, 10.0), state(3.0, 12.0)
    snapshot = assemble(CHECKPOINT, new, reference_of(old, 10), 1, measured_at=7.0, duration_seconds=0.5)
    assert snapshot.gradient is not None
    assert (snapshot.gradient.source, snapshot.gradient.window_steps) == ("adam_window", 2)
    assert snapshot.gradient.norm == pytest.approx(math.sqrt((3.0 - 0.81 * 2.0) / (1 - 0.81)))


def test_a_failed_snapshot_has_a_problem_and_no_tensors() -> None:
    problem = Problem(kind=ProblemKind.CORRUPT, message="the header is no JSON")
    snapshot = failed(CHECKPOINT, problem, 3, measured_at=7.0, duration_seconds=0.5, bytes_read=8)
    assert (snapshot.status, snapshot.problem, snapshot.attempt) == (SnapshotStatus.FAILED, problem, 3)
    assert (snapshot.tensors, snapshot.n_tensors, snapshot.weight_norm, snapshot.bytes_read) == ((), 0, None, 8)


def test_what_the_daemon_imports_brings_in_no_compiler() -> None:
    script = (
        "import sys, monitor.measure.assemble, monitor.measure.codec, monitor.measure.options, monitor.measure.drift\n"
        "print(sorted({'numba', 'llvmlite', 'ml_dtypes', 'torch', 'sqlalchemy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_snapshot_says_how_its_update_lies_to_the_one_before() -> None:
    rng = np.random.default_rng(9)
    start, update = rng.standard_normal(5000), 0.01 * rng.standard_normal(5000)
    first, second = (measured_of({"a": values}) for values in (start, start + update))
    reference = dataclasses.replace(
        reference_of(second, 10), weights=weight_sketch(second.tensors), weights_before=weight_sketch(first.tensors)
    )

    def cosine_at(values: Array) -> float | None:
        measured = measured_of({"a": values}, scalars={"lr": 0.1})
        snapshot = assemble(CHECKPOINT, measured, reference, 1, measured_at=1.0, duration_seconds=0.0)
        assert snapshot.weights == weight_sketch(measured.tensors)
        assert snapshot.scalars["lr"] == 0.1
        return snapshot.scalars.get(UPDATE_COSINE_SCALAR)

    assert cosine_at(start + 2 * update) == pytest.approx(1.0, abs=1e-3)
    assert cosine_at(start) == pytest.approx(-1.0, abs=1e-3)
    assert cosine_at(start + update) is None
    assert cosine_at(start[:4000]) is None
    broken = start.copy()
    broken[0] = math.nan
    snapshot = assemble(CHECKPOINT, measured_of({"a": broken}), reference, 1, measured_at=1.0, duration_seconds=0.0)
    assert (snapshot.weights, snapshot.scalars) == (None, {})
