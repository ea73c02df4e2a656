"""`report`: one file about one run."""

from __future__ import annotations

import re
from pathlib import Path

from monitor.stored_views import StoredViews
from storage.database import open_database
from tests.monitor.commands.conftest import Cli, Stored


def test_a_report_tells_the_fault_and_needs_no_server(cli: Cli, stored: Stored, tmp_path: Path) -> None:
    file = tmp_path / "report.html"
    ended = cli("report", "runs/bad", "-o", file, "--db", stored.database)
    assert (ended.code, ended.out) == (0, "")
    text = file.read_text(encoding="utf-8")
    assert "first not finite at step 30: <code>layers.0.weight</code>" in text
    assert "step-20.npz" in text
    assert 'class="first"' in text
    assert ".card {" in text
    assert re.findall(r'\b(?:href|src|action)="', text) == []
    assert re.findall(r"<script|<link|http-equiv|url\(|@import", text) == []


def test_a_report_replaces_a_file_only_when_told_to(cli: Cli, stored: Stored, tmp_path: Path) -> None:
    file = tmp_path / "report.html"
    file.write_text("precious")
    ended = cli("report", "runs/good", "-o", file, "--db", stored.database)
    assert ended.code == 2
    assert "--force" in ended.err
    assert file.read_text() == "precious"
    assert cli("report", "runs/good", "-o", file, "--force", "--db", stored.database).code == 0
    assert "runs/good" in file.read_text(encoding="utf-8")


def test_what_cannot_be_reported_ends_in_one_line(cli: Cli, stored: Stored, tmp_path: Path) -> None:
    unknown = cli("report", "runs/none", "-o", tmp_path / "a.html", "--db", stored.database)
    assert (unknown.code, unknown.err.count("\n")) == (2, 1)
    nowhere = cli("report", "runs/good", "-o", tmp_path / "none" / "a.html", "--db", stored.database)
    assert (nowhere.code, nowhere.err.count("\n")) == (4, 1)
    assert list(tmp_path.iterdir()) == []


def test_a_tensor_comes_back_with_its_bins_and_drift(stored: Stored) -> None:
    database = open_database(f"sqlite:///{stored.database}")
    try:
        moments = StoredViews(database).tensor("runs/good", "layers.0.weight", 10)
    finally:
        database.close()
    assert [moment.snapshot.step for moment in moments] == [10, 20, 30]
    assert [moment.drift is not None for moment in moments] == [False, True, True]
    for moment in moments:
        assert sum(count for _, _, count in moment.bins) == 32
        assert all(low <= high for low, high, _ in moment.bins)
