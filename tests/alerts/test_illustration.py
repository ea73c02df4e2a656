"""Pictures: which statistic an alert gets, and that a message never fails for want of one."""

from __future__ import annotations

import struct
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alerts import illustration
from alerts.illustration import PNG_SIGNATURE, Illustrator
from alerts.plot import POINTS_MAX, Plot, plot_of
from storage import writer
from storage.database import Database
from storage.records import Alert, AlertState
from tests.support.alert_series import snapshot_of, stored_series
from tests.support.stored import alerts as any_alert
from tests.support.stored import make_alert

CALM: Mapping[str, Any] = {"gradient": 1.0, "repeat": 6}


def plot(series: list[Mapping[str, Any]], **changes: Any) -> Plot:
    found = plot_of(make_alert(**changes), [stored for _, stored in stored_series(series)])
    assert found is not None
    return found


def test_an_explosion_shows_the_gradient_norm_its_threshold_and_where_it_happened() -> None:
    found = plot([CALM, {"gradient": 99.0}], rule="gradient_explosion", value=99.0, threshold=10.0, step=7)
    assert found.y_label == "Gradient norm"
    assert (found.xs, found.ys) == ((1, 2, 3, 4, 5, 6, 7), (1, 1, 1, 1, 1, 1, 99))
    assert (found.marked, found.threshold, found.is_logarithmic, found.is_over) == (6, 10.0, True, False)
    assert found.title == "gradient explosion in gpt"


def test_nan_shows_how_many_elements_are_hit() -> None:
    series: list[Mapping[str, Any]] = [{"repeat": 3}, {"tensors": [{"n_nan": 3}]}]
    found = plot(series, value=3.0, threshold=0.0, step=4)
    assert (found.y_label, found.ys) == ("Elements that are NaN or infinite", (0, 0, 0, 3))
    assert found.threshold == 0.0
    assert not found.is_logarithmic


def test_what_no_number_of_the_run_shows_gets_the_weight_norm_without_a_threshold() -> None:
    found = plot([CALM], rule="dead_units", value=0.7, threshold=0.5)
    assert (found.y_label, found.threshold) == ("Weight norm", None)


def test_a_run_without_steps_is_shown_by_checkpoint() -> None:
    pairs = [replace(stored, step=None) for _, stored in stored_series([CALM])]
    found = plot_of(make_alert(step=None), pairs)
    assert found is not None
    assert (found.x_label, found.xs, found.marked) == ("Checkpoint", (1, 2, 3, 4, 5, 6), None)


def test_a_single_checkpoint_is_no_picture() -> None:
    assert plot_of(make_alert(), [stored for _, stored in stored_series([{}])]) is None
    assert plot_of(make_alert(), []) is None


@given(any_alert, st.integers(0, POINTS_MAX + 50))
def test_every_alert_gives_finite_points_or_nothing(alert: Alert, n: int) -> None:
    _, stored = stored_series([{"gradient": 2.0}])[0]
    found = plot_of(alert, [replace(stored, step=step) for step in range(n)])
    assert (found is None) == (n < 2)
    assert found is None or len(found.xs) == len(found.ys) == min(n, POINTS_MAX)


def fill(database: Database, n: int = 5) -> None:
    with database.write() as session:
        for index in range(n):
            assert writer.add_snapshot(session, snapshot_of({"gradient": 1.0 + index}, index)) is not None


def test_a_picture_is_a_png_and_is_drawn_once_for_all_receivers(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(database)
    illustrate = Illustrator(database)
    alert = make_alert(run="gpt", rule="gradient_$explosion$", value=5.0, threshold=3.0, step=5)
    picture = illustrate(alert)
    assert picture is not None
    assert picture.startswith(PNG_SIGNATURE)
    assert struct.unpack(">II", picture[16:24]) == (960, 480)
    assert len(picture) < 200_000
    monkeypatch.setattr(illustration, "_draw", lambda *_: b"another")
    assert illustrate(alert) is picture
    assert illustrate(replace(alert, state=AlertState.RESOLVED)) == b"another"
    with database.write() as session:
        writer.add_snapshot(session, snapshot_of({"gradient": 9.0}, 5))
    assert illustrate(alert) == b"another"


def test_a_run_that_is_not_known_has_no_picture(database: Database) -> None:
    assert Illustrator(database)(make_alert()) is None


def test_without_matplotlib_there_is_no_picture(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(database)
    monkeypatch.setattr(illustration, "find_spec", lambda _: None)
    assert Illustrator(database)(make_alert()) is None


def test_a_database_that_fails_costs_only_the_picture(database: Database, caplog: pytest.LogCaptureFixture) -> None:
    illustrate = Illustrator(database)
    database.close()
    Path(str(database.url).removeprefix("sqlite:///")).unlink()
    Path(str(database.url).removeprefix("sqlite:///")).mkdir()
    assert illustrate(make_alert()) is None
    assert "no picture" in caplog.text


def test_drawing_that_takes_too_long_or_fails_costs_only_the_picture(
    database: Database, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    fill(database)
    alert = make_alert(step=3)
    assert Illustrator(database, seconds_max=0.01)(alert) is None
    assert "TimeoutExpired" in caplog.text
    monkeypatch.setattr(sys, "executable", "/bin/false")
    assert Illustrator(database)(alert) is None
    assert "status 1" in caplog.text


def test_the_daemons_side_does_not_import_matplotlib() -> None:
    code = "import sys, alerts.illustration, alerts.delivery; sys.exit('matplotlib' in sys.modules)"
    root = Path(__file__).parents[2]
    assert subprocess.run([sys.executable, "-c", code], cwd=root, check=False).returncode == 0
