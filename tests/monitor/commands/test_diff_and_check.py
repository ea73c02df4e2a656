"""`ckptwatch diff` and `ckptwatch check`: answers for scripts, by exit status and JSON."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.monitor.commands.conftest import Cli, save_npz, write_step

DIFF_KEYS = {"name", "other_name", "relation", "relative_l2", "cosine_distance", "max_abs_difference", "n_changed"}
FINDING_KEYS = {"rule", "severity", "step", "subject", "value", "threshold", "summary"}


def write(path: Path, **tensors: list[float]) -> Path:
    return save_npz(path, tensors)


def test_equal_checkpoints_are_identical_and_end_with_0(cli: Cli, tmp_path: Path) -> None:
    a = write(tmp_path / "a.npz", w=[1, 2], b=[0])
    b = write(tmp_path / "b.npz", w=[1, 2], b=[0])
    ended = cli("diff", a, b, "--json")
    assert (ended.code, ended.err) == (0, "")
    assert ended.document["identical"] is True
    assert all(row["relation"] == "same" and row["relative_l2"] == 0 for row in ended.document["tensors"])


def test_every_relation_and_its_numbers_are_in_the_json_and_a_difference_ends_with_1(cli: Cli, tmp_path: Path) -> None:
    a = write(tmp_path / "a.npz", same=[1, 2], moved=[3, 4], old=[1], shaped=[1, 2])
    b = write(tmp_path / "b.npz", same=[1, 2], moved=[3, 5], new=[1], shaped=[1, 2, 3])
    ended = cli("diff", a, b, "--json")
    assert ended.code == 1
    document = ended.document
    assert set(document) == {"identical", "tensors"}
    assert document["identical"] is False
    rows = {row["name"] or row["other_name"]: row for row in document["tensors"]}
    assert all(set(row) >= DIFF_KEYS for row in rows.values())
    assert {name: row["relation"] for name, row in rows.items()} == {
        "same": "same",
        "moved": "changed",
        "new": "added",
        "old": "removed",
        "shaped": "reshaped",
    }
    moved = rows["moved"]
    assert moved["relative_l2"] == pytest.approx(1 / 5)
    assert moved["max_abs_difference"] == pytest.approx(1)
    assert moved["n_changed"] == 1
    cosine = 29 / (5 * np.sqrt(34))
    assert moved["cosine_distance"] == pytest.approx(1 - cosine, rel=1e-5)
    assert (rows["new"]["other_name"], rows["old"]["name"]) == (None, None)


def test_fail_over_accepts_small_changes_and_no_missing_tensor(cli: Cli, tmp_path: Path) -> None:
    a = write(tmp_path / "a.npz", w=[3, 4])
    b = write(tmp_path / "b.npz", w=[3, 5])
    c = write(tmp_path / "c.npz", w=[3, 4], more=[1])
    nan = write(tmp_path / "nan.npz", w=[3, np.nan])
    assert cli("diff", a, b, "--fail-over", 0.3).code == 0
    assert cli("diff", a, b, "--fail-over", 0.1).code == 1
    assert cli("diff", a, c, "--fail-over", 10).code == 1
    assert cli("diff", a, nan, "--fail-over", 1e9).code == 1


def test_the_table_shows_what_changed_most_first(cli: Cli, tmp_path: Path) -> None:
    a = write(tmp_path / "a.npz", little=[100, 1], much=[1, 1], same=[5])
    b = write(tmp_path / "b.npz", little=[100, 2], much=[9, 9], same=[5])
    ended = cli("diff", a, b)
    assert ended.out.index("much") < ended.out.index("little")
    assert "1 of 3 tensors are equal bit by bit" in ended.out
    assert "same " not in ended.out.split("tensors are equal")[0].replace("\n", " ")[:60]


@pytest.mark.parametrize("broken", [0, 1])
def test_a_side_that_cannot_be_read_ends_with_3_and_is_named(cli: Cli, tmp_path: Path, broken: int) -> None:
    paths = [write(tmp_path / "a.npz", w=[1]), write(tmp_path / "b.npz", w=[1])]
    paths[broken].write_bytes(b"nonsense")
    ended = cli("diff", *paths)
    assert (ended.code, ended.out) == (3, "")
    assert ended.err.startswith(f"ckptwatch: {paths[broken]}: ")


def test_check_passes_a_sound_checkpoint_with_0(cli: Cli, tmp_path: Path) -> None:
    path = write_step(tmp_path, 3)
    assert "nothing found" in cli("check", path).out
    ended = cli("check", path, "--json")
    assert (ended.code, ended.document) == (0, {"path": str(path), "problem": None, "findings": []})


def test_check_ends_with_1_on_nan_and_names_the_tensor(cli: Cli, tmp_path: Path) -> None:
    path = write_step(tmp_path, 3, nan=True)
    ended = cli("check", path, "--json")
    assert ended.code == 1
    (finding,) = ended.document["findings"]
    assert set(finding) >= FINDING_KEYS
    assert (finding["rule"], finding["severity"], finding["subject"]) == ("nonfinite", "critical", "layers.0.weight")
    text = cli("check", path)
    assert text.code == 1
    assert text.out.startswith("critical: NaN in layers.0.weight")


def test_check_asks_only_the_rules_that_the_configuration_leaves_on(cli: Cli, tmp_path: Path) -> None:
    path = write_step(tmp_path, 3, nan=True)
    config = tmp_path / "config.yaml"
    config.write_text("rules: {nonfinite: {enabled: false}}")
    assert cli("check", path, "--config", config).code == 0


def test_check_ends_with_3_on_a_file_that_cannot_be_read(cli: Cli, tmp_path: Path) -> None:
    path = tmp_path / "cut.safetensors"
    path.write_bytes(b"\xff\x00\x00\x00\x00\x00\x00\x00{")
    ended = cli("check", path, "--json")
    assert ended.code == 3
    assert ended.document["problem"]["kind"] == "incomplete"
