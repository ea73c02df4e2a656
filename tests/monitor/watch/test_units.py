"""Checkpoints of several files: seen by the scan as one, settled as one, named and woken for as one."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

import pytest

from monitor.read.directories import claim_units, unit_files, unit_marks
from monitor.watch.events import EventHints
from monitor.watch.names import DEFAULT_EXCLUDES, NameRules
from monitor.watch.runs import epoch_from_path, resolve_roots, step_from_path
from monitor.watch.scanner import ScanLimits, Scanner, ScanResult
from monitor.watch.settle import Broken, Gone, NotYet, Settled, SettlePolicy, Tracker
from storage.records import Problem, ProblemKind

RULES = NameRules.compile(marks=unit_marks())
NOW = 2_000_000_000.0
OLD = 1_900_000_000.0


def made(directory: Path, *names: str, at: float = OLD) -> Path:
    for name in names:
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
        os.utime(path, (at, at))
    return directory


def scanner(root: Path, rules: NameRules = RULES, **limits: int) -> Scanner:
    return Scanner(str(root), rules, limits=ScanLimits(**limits), claims_of=claim_units)


def seen(result: ScanResult) -> tuple[list[str], list[str]]:
    """Return the relative paths of units and of single files."""
    return (
        [os.path.relpath(u.path, result.root) for u in result.units],
        [os.path.relpath(f.path, result.root) for f in result.entries],
    )


def tracker() -> Tracker:
    return Tracker(
        run_of=lambda root, path: os.path.basename(os.path.dirname(path)),
        policy=SettlePolicy(settle_seconds=2.0, incomplete_timeout_seconds=100.0),
    )


HF = ("model.safetensors", "optimizer.pt", "scheduler.pt", "trainer_state.json", "rng_state.pth", "training_args.bin")


def test_a_directory_is_one_unit_beside_single_files_and_holds_what_is_excluded_alone(tmp_path: Path) -> None:
    made(tmp_path / "a" / "checkpoint-5", *HF)
    made(tmp_path / "a", "model.safetensors", "optimizer.pt")
    made(tmp_path / "b", "step_7.pt", "m-00001-of-00002.safetensors", "m-00002-of-00002.safetensors")
    result = scanner(tmp_path).scan(NOW)
    units, files = seen(result)
    assert units == ["a/checkpoint-5", "b/m.safetensors.index.json"]
    assert files == ["a/model.safetensors", "b/step_7.pt"]
    names = [os.path.basename(f.path) for f in result.units[0].files]
    assert names == ["model.safetensors", "optimizer.pt", "scheduler.pt", "trainer_state.json"]


def test_the_root_itself_may_be_a_checkpoint(tmp_path: Path) -> None:
    root = made(tmp_path / "checkpoint-5", *HF)
    assert seen(scanner(root).scan(NOW)) == (["."], [])
    (watched,) = resolve_roots([(str(root), None)])
    assert watched.run_of(f"{root}/") == "checkpoint-5"


def test_a_known_unit_is_the_same_object_until_a_file_changes_and_no_directory_is_listed_again(tmp_path: Path) -> None:
    unit = made(tmp_path / "checkpoint-5", *HF)
    made_scanner = scanner(tmp_path)
    first = made_scanner.scan(NOW)
    second = made_scanner.scan(NOW)
    assert second.units[0] is first.units[0]
    assert second.n_listed == 0
    with (unit / "model.safetensors").open("ab") as stream:
        stream.write(b"x")
    third = made_scanner.scan(NOW)
    assert third.n_listed == 0
    assert third.units[0].files != first.units[0].files


def test_files_that_are_added_or_deleted_change_the_unit(tmp_path: Path) -> None:
    unit = made(tmp_path / "checkpoint-5", "model.safetensors")
    made_scanner = scanner(tmp_path)
    assert len(made_scanner.scan(NOW).units[0].files) == 1
    made(unit, "optimizer.pt", "trainer_state.json")
    assert len(made_scanner.scan(NOW).units[0].files) == 3
    (unit / "optimizer.pt").unlink()
    assert len(made_scanner.scan(NOW).units[0].files) == 2
    shutil.rmtree(unit)
    gone = made_scanner.scan(NOW)
    assert gone.units == ()
    assert gone.complete


def test_links_into_a_unit_are_no_checkpoints_of_their_own(tmp_path: Path) -> None:
    made(tmp_path / "checkpoint-5", *HF)
    (tmp_path / "latest.safetensors").symlink_to("checkpoint-5/model.safetensors")
    (tmp_path / "latest").symlink_to("checkpoint-5")
    assert seen(scanner(tmp_path).scan(NOW)) == (["checkpoint-5"], [])


@pytest.mark.parametrize(
    ("patterns", "excludes", "units", "files"),
    [
        (None, (), ["checkpoint-5"], []),
        (("*.safetensors",), (), ["checkpoint-5"], []),
        (("checkpoint-*",), (), ["checkpoint-5"], []),
        (("*.npz",), (), [], []),
        (("*.pth",), (), [], []),
        (None, ("checkpoint-5/",), [], []),
        (None, ("*.json", "*.safetensors"), [], []),
    ],
)
def test_patterns_and_excludes_are_about_units_as_well(
    tmp_path: Path, patterns: tuple[str, ...] | None, excludes: tuple[str, ...], units: list[str], files: list[str]
) -> None:
    made(tmp_path / "checkpoint-5", *HF)
    rules = NameRules.compile(patterns, (*DEFAULT_EXCLUDES, *excludes))
    assert seen(scanner(tmp_path, rules).scan(NOW)) == (units, files)


def test_a_directory_that_a_marker_calls_unfinished_is_held_back(tmp_path: Path) -> None:
    made(tmp_path / "checkpoint-5", *HF)
    made(tmp_path, "checkpoint-5-unfinished")
    result = scanner(tmp_path).scan(NOW)
    assert seen(result) == ([], [])
    assert [os.path.basename(path) for path in result.held_back] == ["checkpoint-5"]


def test_files_of_units_count_towards_the_limit_of_files(tmp_path: Path) -> None:
    for step in range(5):
        made(tmp_path / f"checkpoint-{step}", *HF)
    result = scanner(tmp_path, files_max=10).scan(NOW)
    assert result.truncated
    assert not result.complete


def test_a_unit_settles_when_its_last_file_is_quiet_and_carries_all_of_them(tmp_path: Path) -> None:
    unit = made(tmp_path / "run" / "checkpoint-5", *HF)
    found, follow = scanner(tmp_path), tracker()
    follow.observe(found.scan(NOW), NOW)
    assert follow.ready(NOW + 1) == []
    with (unit / "optimizer.pt").open("ab") as stream:
        stream.write(b"x")
    os.utime(unit / "optimizer.pt", (OLD, OLD))
    follow.observe(found.scan(NOW + 1), NOW + 1)
    assert follow.ready(NOW + 2.5) == []
    (ready,) = follow.ready(NOW + 3)
    assert isinstance(ready, Settled)
    checkpoint = ready.checkpoint
    assert (checkpoint.run, checkpoint.step) == ("checkpoint-5", 5)  # this test's runs are the parent of what is given
    assert checkpoint.path == str(unit)
    assert len(checkpoint.files) == 4
    assert checkpoint.files == unit_files(str(unit))
    follow.succeed(checkpoint)
    follow.observe(found.scan(NOW + 4), NOW + 4)
    assert follow.ready(NOW + 100) == []
    assert follow.pending() == []


def test_a_change_after_the_last_scan_is_noticed_before_a_unit_is_handed_out(tmp_path: Path) -> None:
    unit = made(tmp_path / "checkpoint-5", *HF)
    follow = tracker()
    follow.observe(scanner(tmp_path).scan(NOW), NOW)
    made(unit, "pytorch_model.bin")
    assert follow.ready(NOW + 3) == []
    (ready,) = follow.ready(NOW + 5)
    assert isinstance(ready, Settled)
    assert len(ready.checkpoint.files) == 5


def test_an_incomplete_unit_is_tried_again_and_at_last_given_up(tmp_path: Path) -> None:
    made(tmp_path / "checkpoint-5", "model.safetensors", "optimizer.pt")
    follow = tracker()
    follow.observe(scanner(tmp_path).scan(NOW), NOW)
    incomplete = Problem(kind=ProblemKind.INCOMPLETE, message="trainer_state.json is not there (yet)")
    (ready,) = follow.ready(NOW + 2)
    assert isinstance(ready, Settled)
    # It was left like this long before we came: there is nothing to wait for.
    decision = follow.fail(ready.checkpoint, incomplete, NOW + 2)
    assert isinstance(decision, Broken)
    assert decision.problem.kind is ProblemKind.TRUNCATED
    made(tmp_path / "checkpoint-6", "model.safetensors", "optimizer.pt", at=NOW + 10)
    follow.succeed(decision.checkpoint)
    follow.observe(scanner(tmp_path).scan(NOW + 10), NOW + 10)
    (ready,) = follow.ready(NOW + 13)
    assert isinstance(ready, Settled)
    assert isinstance(follow.fail(ready.checkpoint, incomplete, NOW + 13), NotYet)
    made(tmp_path / "checkpoint-6", "trainer_state.json", at=NOW + 14)
    follow.observe(scanner(tmp_path).scan(NOW + 14), NOW + 14)
    (again,) = follow.ready(NOW + 17)
    assert isinstance(again, Settled)
    assert again.checkpoint.signature != ready.checkpoint.signature


def test_a_unit_that_is_rotated_away_while_it_is_read_is_forgotten(tmp_path: Path) -> None:
    unit = made(tmp_path / "checkpoint-5", *HF)
    follow = tracker()
    follow.observe(scanner(tmp_path).scan(NOW), NOW)
    (ready,) = follow.ready(NOW + 2)
    assert isinstance(ready, Settled)
    shutil.rmtree(unit)
    vanished = Problem(kind=ProblemKind.VANISHED, message="gone")
    assert isinstance(follow.fail(ready.checkpoint, vanished, NOW + 3), Gone)
    assert follow.n_units == 0


def test_a_single_file_that_turns_out_to_be_part_of_a_unit_is_followed_as_such(tmp_path: Path) -> None:
    made(tmp_path / "best", "model.safetensors")
    found, follow = scanner(tmp_path), tracker()
    follow.observe(found.scan(NOW), NOW)
    assert [c.path for c in follow.pending()] == [str(tmp_path / "best" / "model.safetensors")]
    made(tmp_path / "best", "training_args.bin")
    follow.observe(found.scan(NOW + 1), NOW + 1)
    assert [c.path for c in follow.pending()] == [str(tmp_path / "best")]


@pytest.mark.parametrize(
    ("path", "run", "step"),
    [
        ("exp/checkpoint-500/", "root/exp", 500),
        ("exp/checkpoints/checkpoint_3/", "root/exp", 3),
        ("exp/100/", "root/exp", 100),
        ("exp/best/", "root/exp", None),
        ("exp/step_7/", "root/exp", 7),
        ("exp/adapter/", "root/exp/adapter", None),
        ("exp/", "root/exp", None),
        ("exp/model.safetensors.index.json", "root/exp", None),
        ("exp/checkpoint-20/m.safetensors.index.json", "root/exp", 20),
    ],
)
def test_runs_and_steps_of_units_come_from_their_paths(tmp_path: Path, path: str, run: str, step: int | None) -> None:
    root = tmp_path.resolve()
    (watched,) = resolve_roots([(str(root), "root")])
    assert watched.run_of(f"{root}/{path}") == run
    assert step_from_path(f"/{path.rstrip('/')}") == step
    assert epoch_from_path("/exp/epoch_3") == 3.0


def test_the_file_that_completes_a_unit_wakes_the_daemon(tmp_path: Path) -> None:
    root = tmp_path.resolve()
    made(root / "checkpoint-5", "model.safetensors")
    hinted: list[str] = []
    events = EventHints(hinted.append, debounce_seconds=0.01)
    try:
        assert events.watch(str(root), RULES).has_events
        made(root / "checkpoint-5", "notes.txt")
        made(root / "checkpoint-5", "trainer_state.json")
        deadline = time.monotonic() + 30
        while not hinted and time.monotonic() < deadline:
            time.sleep(0.01)
        assert hinted
    finally:
        events.stop()
    assert not RULES.takes_path("checkpoint-5/notes.txt")
    assert RULES.takes_path("checkpoint-5/trainer_state.json")
    assert not RULES.takes_path(".hidden/trainer_state.json")
