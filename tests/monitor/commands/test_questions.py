"""`runs`, `history`, `alerts`, `last-good` over one database, and `scan` which makes it."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any

import pytest

from tests.monitor.commands.conftest import Cli, Stored, write_step

RUN_KEYS = {
    *("run", "root", "attempt", "n_snapshots", "last_step", "healthy"),
    *("last_good_step", "last_good_path", "active"),
}
SNAPSHOT_KEYS = {
    *("step", "path", "format", "status", "problem", "size_bytes", "written_at", "measured_at", "weight_norm"),
    *("update_ratio", "gradient_norm", "gradient_source", "n_nonfinite"),
}
ALERT_KEYS = {
    *("fingerprint", "run", "rule", "severity", "state", "subject", "step", "value", "threshold", "summary"),
    *("opened_at", "resolved_at"),
}


def by_run(rows: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {row["run"]: row for row in rows}


def test_runs_tells_health_and_the_last_good_checkpoint_of_each(cli: Cli, stored: Stored) -> None:
    ended = cli("runs", "--db", stored.database, "--json")
    assert (ended.code, ended.err) == (0, "")
    runs = by_run(ended.document)
    assert all(set(run) >= RUN_KEYS for run in runs.values())
    assert set(runs) == {"runs/good", "runs/bad", "runs/broken"}
    good, bad, broken = (runs[f"runs/{name}"] for name in ("good", "bad", "broken"))
    assert (good["healthy"], good["last_step"], good["n_snapshots"], good["last_good_step"]) == (True, 30, 3, 30)
    assert (bad["healthy"], bad["last_step"], bad["n_snapshots"], bad["last_good_step"]) == (False, 40, 4, 20)
    assert bad["last_good_path"] == str(stored.root / "bad" / "step-20.npz")
    assert (broken["n_snapshots"], broken["last_good_step"], broken["last_good_path"]) == (1, None, None)
    text = cli("runs", "--db", stored.database).out
    assert "runs/bad" in text
    assert "BAD" in text


def test_history_tells_every_snapshot_oldest_first(cli: Cli, stored: Stored) -> None:
    ended = cli("history", "runs/bad", "--db", stored.database, "--json")
    assert ended.code == 0
    document = ended.document
    assert document["run"] == "runs/bad"
    assert all(set(snapshot) >= SNAPSHOT_KEYS for snapshot in document["snapshots"])
    assert [s["step"] for s in document["snapshots"]] == [10, 20, 30, 40]
    assert [s["n_nonfinite"] for s in document["snapshots"]] == [0, 0, 1, 1]
    assert document["snapshots"][0]["update_ratio"] is None
    assert document["snapshots"][1]["update_ratio"] > 0
    latest = cli("history", "runs/bad", "--limit", 1, "--db", stored.database, "--json").document
    assert [s["step"] for s in latest["snapshots"]] == [40]


def test_history_tells_how_far_each_snapshot_lies_from_a_reference(cli: Cli, stored: Stored) -> None:
    for against, references in (("first", [None, 10, 10]), ("previous", [None, 10, 20]), ("20", [20, 20, 20])):
        ended = cli("history", "runs/good", "--against", against, "--db", stored.database, "--json")
        drifts = [s["drift"] for s in ended.document["snapshots"]]
        assert [d and d["reference_step"] for d in drifts] == references
        assert all(d is None or (d["relative_l2"] >= 0 and d["reason"] is None) for d in drifts)
    text = cli("history", "runs/good", "--against", "first", "--db", stored.database).out
    assert "drift of all parameters from the first" in text
    assert "as the crow flies" in text
    one = cli("history", "runs/good", "--tensor", "*.weight", "--db", stored.database, "--json")
    assert one.document["snapshots"][1]["drift"]["n_tensors"] >= 1
    bad = cli("history", "runs/bad", "--against", "first", "--db", stored.database)
    assert bad.code == 0


@pytest.mark.parametrize("question", [["--against", "25"], ["--against", "worst"], ["--tensor", "nothing.*"]])
def test_a_reference_that_the_run_does_not_have_ends_with_2(cli: Cli, stored: Stored, question: list[str]) -> None:
    ended = cli("history", "runs/good", *question, "--db", stored.database, "--json")
    assert (ended.code, ended.out) == (2, "")
    assert ended.err.startswith("ckptwatch: ")


def test_history_tells_why_a_checkpoint_could_not_be_read(cli: Cli, stored: Stored) -> None:
    (snapshot,) = cli("history", "runs/broken", "--db", stored.database, "--json").document["snapshots"]
    assert (snapshot["status"], snapshot["problem"]["kind"]) == ("failed", "truncated")
    assert "truncated: " in cli("history", "runs/broken", "--db", stored.database).out


def test_alerts_are_chosen_by_state_run_and_time(cli: Cli, stored: Stored) -> None:
    def rows(*arguments: object) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = cli("alerts", "--db", stored.database, "--json", *arguments).document
        return found

    everything = rows()
    assert all(set(alert) >= ALERT_KEYS for alert in everything)
    nonfinite = [alert for alert in everything if alert["rule"] == "nonfinite"]
    assert [(a["run"], a["state"], a["severity"], a["subject"], a["step"]) for a in nonfinite] == [
        ("runs/bad", "firing", "critical", "layers.0.weight", 30)
    ]
    assert {alert["run"] for alert in everything} == {"runs/bad", "runs/broken"}
    assert {alert["run"] for alert in rows("--run", "runs/bad")} == {"runs/bad"}
    assert rows("--state", "resolved") == []
    assert len(rows("--state", "firing", "--since", "2h")) == len(everything)
    assert len(rows("--since", f"{time.time() - 7200:.0f}")) == len(everything)
    assert len(rows("--limit", 1)) == 1
    assert "layers.0.weight" in cli("alerts", "--db", stored.database).out
    assert cli("alerts", "--run", "runs/good", "--db", stored.database).out == "no alerts\n"


@pytest.mark.parametrize("since", ["yesterday", "4 parsecs", "-1h", ""])
def test_a_time_that_is_none_ends_with_2(cli: Cli, stored: Stored, since: str) -> None:
    ended = cli("alerts", "--since", since, "--db", stored.database)
    assert ended.code == 2
    assert "--since" in ended.err


def test_last_good_prints_one_path_fit_for_a_shell(cli: Cli, stored: Stored) -> None:
    ended = cli("last-good", "runs/bad", "--db", stored.database)
    assert (ended.code, ended.out, ended.err) == (0, f"{stored.root / 'bad' / 'step-20.npz'}\n", "")
    document = cli("last-good", "runs/bad", "--db", stored.database, "--json").document
    good = {"run": "runs/bad", "step": 20, "path": str(stored.root / "bad" / "step-20.npz"), "protected": False}
    assert document == good


def test_last_good_names_no_checkpoint_that_is_gone_or_was_rewritten(cli: Cli, stored: Stored, tmp_path: Path) -> None:
    root = tmp_path / "runs"
    for step in (1, 2, 3):
        write_step(root / "a", step)
    database = tmp_path / "x.db"
    assert cli("scan", root, "--db", database).code == 0
    (root / "a" / "step-3.npz").unlink()
    write_step(root / "a", 2, nan=True)
    ended = cli("last-good", "runs/a", "--db", database)
    assert (ended.code, ended.out) == (0, f"{root / 'a' / 'step-1.npz'}\n")


def test_last_good_ends_with_1_and_prints_nothing_where_there_is_none(cli: Cli, stored: Stored) -> None:
    ended = cli("last-good", "runs/broken", "--db", stored.database)
    assert (ended.code, ended.out) == (1, "")
    assert "no good checkpoint" in ended.err


@pytest.mark.parametrize("command", ["history", "last-good"])
def test_an_unknown_run_ends_with_2(cli: Cli, stored: Stored, command: str) -> None:
    ended = cli(command, "runs/none", "--db", stored.database)
    assert (ended.code, ended.out) == (2, "")
    assert "ckptwatch runs" in ended.err


@pytest.mark.parametrize("command", [["runs"], ["history", "r"], ["alerts"], ["last-good", "r"]], ids=" ".join)
def test_a_question_without_a_database_ends_with_4_and_makes_none(cli: Cli, tmp_path: Path, command: list[str]) -> None:
    ended = cli(*command, "--db", tmp_path / "none.db")
    assert (ended.code, ended.out) == (4, "")
    assert "there is no database" in ended.err
    assert not (tmp_path / "none.db").exists()


def test_a_database_that_is_none_ends_with_4(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "x.db").write_bytes(b"this is no database" * 100)
    ended = cli("runs", "--db", tmp_path / "x.db")
    assert (ended.code, ended.out) == (4, "")
    assert ended.err.startswith("ckptwatch: ")
    assert "Traceback" not in ended.err


def test_questions_find_the_database_of_the_configuration(cli: Cli, stored: Stored, tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(f"storage: {{url: 'sqlite:///{stored.database}'}}")
    assert len(cli("runs", "--config", config, "--json").document) == 3


def test_a_second_scan_reads_nothing_again_and_a_third_only_what_is_new(
    cli: Cli, stored: Stored, tmp_path: Path
) -> None:
    root = tmp_path / "runs"
    shutil.copytree(stored.root / "good", root / "good")
    database = tmp_path / "x.db"
    assert "3 checkpoints stored" in cli("scan", root, "--db", database).out
    assert "0 checkpoints stored" in cli("scan", root, "--db", database).out
    write_step(root / "good", 40)
    ended = cli("scan", root, "--db", database, "--json")
    assert by_run(ended.document)["runs/good"]["n_snapshots"] == 4
    snapshots = cli("history", "runs/good", "--db", database, "--json").document["snapshots"]
    assert [s["step"] for s in snapshots] == [10, 20, 30, 40]


def test_scan_of_something_that_is_no_directory_ends_with_2_and_creates_no_database(cli: Cli, tmp_path: Path) -> None:
    ended = cli("scan", tmp_path / "nowhere", "--db", tmp_path / "x.db")
    assert (ended.code, ended.out) == (2, "")
    assert "is not a directory" in ended.err
    assert not (tmp_path / "x.db").exists()


def test_scan_of_an_empty_directory_finds_nothing_and_ends_well(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    ended = cli("scan", tmp_path / "empty", "--db", tmp_path / "x.db")
    assert ended.code == 0
    assert "0 checkpoints stored" in ended.out


def test_history_and_runs_draw_the_course_of_the_numbers(cli: Cli, stored: Stored) -> None:
    ended = cli("history", "runs/good", "--db", stored.database)
    assert (ended.code, ended.err) == (0, "")
    course = {
        line.split()[0]: line.split()[-1] for line in ended.out.splitlines() if line.startswith(("weight ", "up"))
    }
    assert len(course["weight"]) == 3
    assert set(course["weight"]) <= set("▁▂▃▄▅▆▇█")
    runs = cli("runs", "--db", stored.database)
    assert runs.code == 0
    good = next(line for line in runs.out.splitlines() if line.startswith("runs/good"))
    assert "▁" in good
