from __future__ import annotations

from dataclasses import replace

from monitor.show.web.heatmap import COLUMNS_MAX, POINTS_MAX, ROWS_MAX, change_map, columns, norm_map
from storage.records import TensorPoint
from tests.support.show_records import failed, snapshot

SNAPSHOTS = tuple(snapshot(number) for number in range(1, 7))


def point(number: int, name: str = "h.0.weight", **changes: object) -> TensorPoint:
    record = TensorPoint(snapshot_id=number, name=name, n_elements=64, n_nonfinite=0, norm_l2=4.0, relative_l2=0.01)
    return replace(record, **changes)  # type: ignore[arg-type]


def colours(paths: tuple[tuple[str, str], ...]) -> dict[int, str]:
    """Return the colour of every column that has one."""
    found = {}
    for colour, path in paths:
        for cell in path.split("z")[:-1]:
            found[int(cell.removeprefix("M").split()[0])] = colour
    return found


def test_a_cell_is_coloured_by_its_distance_from_the_usual_of_its_row() -> None:
    norms = [4.0, 4.0, 4.0, 9.0, 1.0, 4.3]
    found = norm_map([point(n, norm_l2=norm) for n, norm in enumerate(norms, 1)], SNAPSHOTS)
    assert found is not None
    assert colours(found.rows[0].paths) == {0: "usual", 1: "usual", 2: "usual", 3: "up3", 4: "down3", 5: "up1"}
    assert found.rows[0].newest == 4.3
    assert (found.first_step, found.last_step, found.bad_step) == (100, 600, None)


def test_the_first_bad_cell_is_the_earliest_and_then_the_first_in_the_checkpoint() -> None:
    points = [
        point(n, name, n_nonfinite=1 if (n, name) in {(4, "h.1.a"), (4, "h.1.b"), (5, "h.0.a")} else 0)
        for n in range(1, 7)
        for name in ("h.0.a", "h.1.a", "h.1.b")
    ]
    found = norm_map(points, SNAPSHOTS)
    assert found is not None
    assert (found.bad_tensor, found.bad_step) == ("h.1.a", 400)
    assert [row.first_bad for row in found.rows] == [None, 3]
    assert [row.tensor for row in found.rows] == ["h.0.a", "h.1.a"]
    assert colours(found.rows[0].paths)[4] == "bad"
    assert "not finite in 1 of 6 checkpoints" in found.rows[1].description


def test_a_layer_leads_to_its_largest_tensor() -> None:
    points = [point(n, name, n_elements=size) for n in (1, 2) for name, size in (("h.0.bias", 8), ("h.0.weight", 64))]
    found = norm_map(points, SNAPSHOTS[:2])
    assert found is not None
    assert [(row.layer, row.tensor, row.n_tensors) for row in found.rows] == [("h.0", "h.0.weight", 2)]


def test_the_change_of_a_layer_is_weighted_by_norm() -> None:
    points = [
        point(n, name, norm_l2=norm, relative_l2=relative)
        for n in (1, 2)
        for name, norm, relative in (("h.0.a", 3.0, 0.1), ("h.0.b", 4.0, 0.0))
    ]
    found = change_map(points, SNAPSHOTS[:2])
    assert found is not None
    assert found.rows[0].newest is not None
    assert abs(found.rows[0].newest - 0.06) < 1e-12


def test_a_snapshot_without_the_layer_leaves_a_gap() -> None:
    found = norm_map([point(1), point(3)], SNAPSHOTS[:3])
    assert found is not None
    assert set(colours(found.rows[0].paths)) == {0, 2}
    assert found.rows[0].newest == 4.0


def test_one_snapshot_or_no_point_has_no_map() -> None:
    assert norm_map([point(1)], SNAPSHOTS[:1]) is None
    assert norm_map([], SNAPSHOTS) is None
    assert norm_map([point(99)], SNAPSHOTS) is None


def test_rows_and_columns_are_bounded() -> None:
    many = [point(n, f"stack{i}.{i}.weight") for n in (1, 2) for i in range(200)]
    found = norm_map(many, SNAPSHOTS[:2])
    assert found is not None
    assert len(found.rows) <= ROWS_MAX
    assert len(columns([snapshot(n) for n in range(1, 200)])) == COLUMNS_MAX
    large = columns([snapshot(n, n_tensors=4000) for n in range(1, 200)])
    assert len(large) == POINTS_MAX // 4000
    assert [s.id for s in columns([snapshot(1), failed(2), snapshot(3)])] == [1, 3]
