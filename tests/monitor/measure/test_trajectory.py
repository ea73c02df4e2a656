"""The path of the weights from their sketches, against the truth from the full vectors."""

from __future__ import annotations

import dataclasses
import itertools
import math

import numpy as np
import numpy.typing as npt
import pytest

from monitor.measure import trajectory
from monitor.measure.options import MeasureOptions
from storage.records import Sketch
from tests.support.measuring import summarise

K = 1021
N = 20 * K + 77
Path = npt.NDArray[np.float64]

STRAIGHT = "straight"
WALK = "walk"
BACK_AND_FORTH = "back and forth"


def path_of(kind: str, n: int = 10) -> Path:
    """Return the weights of `n` snapshots, shape (n, N), as float32 holds them."""
    rng = np.random.default_rng(11)
    start, direction = rng.standard_normal(N), 1e-2 * rng.standard_normal(N)
    time = np.arange(n)[:, None]
    if kind == STRAIGHT:
        weights = start + time * direction
    elif kind == WALK:
        weights = start + np.cumsum(1e-2 * rng.standard_normal((n, N)), axis=0)
    else:
        weights = start + (time % 2) * direction + 1e-3 * time * rng.standard_normal(N)
    return weights.astype(np.float32).astype(np.float64)


def sketches_of(path: Path, seed: int = 0) -> list[Sketch]:
    options = MeasureOptions(histogram=False, sketch_buckets=K, sketch_seed=seed)
    found = [summarise(row.astype(np.float32), options=options).sketch for row in path]
    return [s for s in found if s is not None]


PATHS = {kind: path_of(kind) for kind in (STRAIGHT, WALK, BACK_AND_FORTH)}
every_path = pytest.mark.parametrize("kind", PATHS)


def cosine(a: Path, b: Path) -> float:
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


@every_path
def test_the_cosines_of_consecutive_updates_are_those_of_the_weights(kind: str) -> None:
    path = PATHS[kind]
    updates = np.diff(path, axis=0)
    truth = [cosine(a, b) for a, b in itertools.pairwise(updates)]
    found = trajectory.update_cosines(sketches_of(path))
    assert found[:2] == (None, None)
    assert found[2:] == pytest.approx(truth, abs=4 / math.sqrt(K))
    expected = {STRAIGHT: 1.0, WALK: 0.0, BACK_AND_FORTH: -1.0}[kind]
    assert truth == pytest.approx([expected] * len(truth), abs=0.1)


@every_path
def test_lengths_displacements_and_distances_are_those_of_the_weights(kind: str) -> None:
    path = PATHS[kind]
    sketches = sketches_of(path)
    tolerance = 4 / math.sqrt(2 * K)
    steps = np.linalg.norm(np.diff(path, axis=0), axis=1)
    assert trajectory.path_lengths(sketches) == pytest.approx([0.0, *np.cumsum(steps)], rel=tolerance)
    truth = np.linalg.norm(path[:, None] - path[None, :], axis=2)
    assert trajectory.displacements(sketches) == pytest.approx(list(truth[0]), rel=tolerance)
    matrix = trajectory.drift_matrix(sketches)
    np.testing.assert_allclose(matrix, truth, rtol=tolerance)
    np.testing.assert_array_equal(matrix, matrix.T)
    assert trajectory.path_lengths(sketches)[-1] >= trajectory.displacements(sketches)[-1]


@every_path
def test_the_plane_keeps_as_much_of_the_distances_as_that_of_the_weights(kind: str) -> None:
    path = PATHS[kind]
    centred = path - path.mean(axis=0)
    variances = np.linalg.svd(centred, compute_uv=False) ** 2
    plane = trajectory.path_in_two_dimensions(sketches_of(path))
    assert plane.share == pytest.approx(float(variances[:2].sum() / variances.sum()), abs=0.05)
    points = np.array(plane.points)
    assert (points**2).sum(axis=0) == pytest.approx(variances[:2], rel=0.2, abs=0.02 * variances[0])
    np.testing.assert_allclose(points.mean(axis=0), 0.0, atol=1e-6 * math.sqrt(variances[0]))
    assert points[-1, 0] >= points[0, 0]


def test_a_path_in_a_plane_is_drawn_as_it_is() -> None:
    corners = np.zeros((4, 900))
    corners[:, 0], corners[:, 1] = [0, 3, 3, 0], [0, 0, 1, 1]
    sketches = sketches_of(corners)
    plane = trajectory.path_in_two_dimensions(sketches)
    points = np.array(plane.points)
    assert plane.share == pytest.approx(1.0)
    drawn = np.linalg.norm(points[:, None] - points[None, :], axis=2)
    np.testing.assert_allclose(drawn, trajectory.drift_matrix(sketches), atol=1e-6)


def test_short_and_motionless_paths_have_what_there_is() -> None:
    still = sketches_of(np.ones((3, 5000)))
    assert trajectory.update_cosines(still) == (None, None, None)
    assert trajectory.path_lengths(still) == (0.0, 0.0, 0.0)
    assert trajectory.path_in_two_dimensions(still) == trajectory.PlanePath(points=((0.0, 0.0),) * 3, share=1.0)
    assert trajectory.path_in_two_dimensions(still[:1]).points == ((0.0, 0.0),)
    assert trajectory.path_in_two_dimensions([]).points == ()
    assert trajectory.drift_matrix(still[:1]).tolist() == [[0.0]]
    assert trajectory.update_cosines(still[:1]) == (None,)
    assert (trajectory.path_lengths([]), trajectory.displacements([]), trajectory.update_cosines([])) == ((), (), ())


def test_rounding_is_no_update() -> None:
    rng = np.random.default_rng(12)
    start = rng.standard_normal(N)
    path = np.array([start, start * (1 + 2e-8), start * (1 - 3e-8)])
    sketches = sketches_of(path)
    assert trajectory.update_cosines(sketches)[2] is None
    assert trajectory.is_rounding(1e-8 * float(np.linalg.norm(start)), sketches[0], sketches[1])
    small = np.array([start, start + 1e-4 * rng.standard_normal(N), start + 2e-4 * rng.standard_normal(N)])
    assert trajectory.update_cosines(sketches_of(small))[2] is not None


def test_two_runs_are_as_alike_as_their_weights() -> None:
    rng = np.random.default_rng(13)
    a = rng.standard_normal(N)
    others = {"equal": a, "close": a + 0.1 * rng.standard_normal(N), "other": rng.standard_normal(N), "opposite": -a}
    first = sketches_of(a[None])[0]
    for name, b in others.items():
        found = trajectory.similarity(first, sketches_of(b[None])[0])
        truth = float(np.linalg.norm(a - b)) / max(float(np.linalg.norm(a)), float(np.linalg.norm(b)))
        assert found.relative_l2 == pytest.approx(truth, rel=0.1, abs=1e-6), name
        assert found.cosine == pytest.approx(cosine(a, b), abs=0.13), name
    nothing = sketches_of(np.zeros((1, N)))[0]
    assert trajectory.similarity(nothing, nothing) == trajectory.Similarity(relative_l2=0.0, cosine=None)


def test_sketches_of_other_weights_are_refused() -> None:
    one, two = sketches_of(np.ones((2, 5000)))
    other = sketches_of(np.ones((1, 5000)), seed=3)[0]
    for refused in (other, dataclasses.replace(two, kind="raw")):
        with pytest.raises(ValueError, match="cannot be compared"):
            trajectory.drift_matrix([one, two, refused])
        with pytest.raises(ValueError, match="cannot be compared"):
            trajectory.update_cosine(one, two, refused)


def test_the_ends_of_float64_do_no_harm() -> None:
    for scale in (1e-200, 1e200):
        options = MeasureOptions(histogram=False)
        found = [summarise(scale * np.arange(i, i + 9.0), options=options).sketch for i in range(3)]
        sketches = [s for s in found if s is not None]
        assert trajectory.drift_matrix(sketches)[0] == pytest.approx([0.0, 3 * scale, 6 * scale])
        assert trajectory.update_cosine(*sketches) == pytest.approx(1.0)
        assert trajectory.path_in_two_dimensions(sketches).points[0][0] == pytest.approx(-3 * scale)


@every_path
def test_following_a_run_snapshot_by_snapshot_finds_the_same(kind: str) -> None:
    sketches = sketches_of(PATHS[kind])
    follower = trajectory.Follower()
    points = [follower.follow(s) for s in sketches]
    assert [p.path_length for p in points] == pytest.approx(trajectory.path_lengths(sketches))
    assert [p.displacement for p in points] == pytest.approx(trajectory.displacements(sketches))
    assert [p.update_cosine for p in points][:2] == [None, None]
    assert [p.update_cosine for p in points][2:] == pytest.approx(trajectory.update_cosines(sketches)[2:])


def test_a_new_path_begins_where_the_weights_are_others() -> None:
    follower = trajectory.Follower()
    for s in (*sketches_of(path_of(WALK, 4)), *sketches_of(path_of(WALK, 1), seed=9)):
        point = follower.follow(s)
    assert point == trajectory.PathPoint(update_cosine=None, path_length=0.0, displacement=0.0)
    after = [follower.follow(s) for s in sketches_of(path_of(WALK, 3), seed=9)[1:]]
    assert after[0].update_cosine is None
    assert after[0].path_length == pytest.approx(after[0].displacement)
    assert after[1].update_cosine is not None
