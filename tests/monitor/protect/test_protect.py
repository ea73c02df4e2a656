"""The newest good checkpoint outlives its original: overwritten, deleted, on a full disk, within a budget."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from alerts.verdict import last_good
from monitor.pipeline import files_at, is_still_there
from monitor.protect import tasks
from monitor.protect.protector import Protector, Refused
from monitor.protect.shelf import Kept, Shelf
from monitor.protect_config import ProtectConfig, place_problem
from monitor.read.reader import ChangedError, VanishedError
from monitor.watch.runs import signature
from storage.records import Severity, StoredSnapshot
from tests.support.stored import make_snapshot, stored_as

SIZE = 100_000


def checkpoint(path: Path, *, step: int = 1, run: str = "gpt", number: int = 1, **facts: Any) -> StoredSnapshot:
    """Return what is stored of the checkpoint at a path."""
    files = files_at(str(path))
    assert files is not None
    snapshot = make_snapshot(
        step,
        run=run,
        path=str(path),
        signature=signature(files, str(path)),
        size_bytes=sum(f.size_bytes for f in files),
    )
    return replace(stored_as(snapshot, number), format="safetensors", **facts)


def save(path: Path, value: float, n: int = SIZE // 4) -> None:
    save_file({"weight": np.full(n, value, np.float32)}, path)


@pytest.fixture
def protector(tmp_path: Path) -> Iterator[Protector]:
    made = Protector(config(tmp_path), clock=iter(range(1000)).__next__)
    yield made
    made.stop()


def config(tmp_path: Path, **changes: Any) -> ProtectConfig:
    return ProtectConfig(enabled=True, directory=str(tmp_path / "kept"), **changes)


def kept(outcome: object) -> Kept:
    assert isinstance(outcome, Kept), outcome
    return outcome


def test_a_good_checkpoint_that_is_overwritten_in_place_is_still_there(tmp_path: Path, protector: Protector) -> None:
    path = tmp_path / "last.safetensors"
    save(path, 1.0)
    good = checkpoint(path)
    made = kept(protector.protect(good))
    assert made.method in {"copy", "reflink"}
    with path.open("r+b") as file:
        file.truncate(0)
        file.write(b"NaN")
    bad = replace(checkpoint(path, step=2, number=2), n_nonfinite=3, worst_severity=Severity.CRITICAL)
    found = last_good([good, bad], exists=is_still_there, kept=protector.shelf.path_of)
    assert found is not None
    assert (found.step, found.path) == (1, made.path)
    assert Path(found.path).name == "last.safetensors"
    assert load_file(found.path)["weight"][0] == 1.0


def test_the_original_is_named_as_long_as_it_is_there(tmp_path: Path, protector: Protector) -> None:
    path = tmp_path / "a.safetensors"
    save(path, 1.0)
    good = checkpoint(path)
    protector.protect(good)
    assert protector.protect(good) is None  # it is kept already
    found = last_good([good], exists=is_still_there, kept=protector.shelf.path_of)
    assert found == good
    path.unlink()
    found = last_good([good], exists=is_still_there, kept=protector.shelf.path_of)
    assert found is not None
    assert found.path.startswith(str(tmp_path / "kept"))


def test_all_of_a_directory_is_kept_and_links_out_of_it_are_not(tmp_path: Path, protector: Protector) -> None:
    directory = tmp_path / "out" / "checkpoint-7"
    directory.mkdir(parents=True)
    save(directory / "model.safetensors", 2.0)
    (directory / "config.json").write_text("{}")
    (directory / "trainer_state.json").write_text('{"global_step": 7, "log_history": []}')
    (directory / "extra").mkdir()
    (directory / "extra" / "tokens.txt").write_text("a b c")
    (directory / "secret").symlink_to("/etc/hostname")
    made = kept(protector.protect(checkpoint(directory, step=7)))
    copy = Path(made.path)
    assert copy.name == "checkpoint-7"
    found = sorted(str(p.relative_to(copy)) for p in copy.rglob("*") if p.is_file())
    assert found == ["config.json", "extra/tokens.txt", "model.safetensors", "trainer_state.json"]
    assert load_file(copy / "model.safetensors")["weight"][0] == 2.0


def test_the_newest_are_kept_and_older_ones_go(tmp_path: Path) -> None:
    protector = Protector(config(tmp_path, keep=2), clock=iter(range(1000)).__next__)
    for step in (1, 2, 3):
        save(tmp_path / f"{step}.safetensors", float(step))
        kept(protector.protect(checkpoint(tmp_path / f"{step}.safetensors", step=step)))
    save(tmp_path / "other.safetensors", 9.0)
    kept(protector.protect(checkpoint(tmp_path / "other.safetensors", run="bert")))
    protector.stop()
    assert [(k.run, k.step) for k in protector.shelf.kept()] == [("gpt", 2), ("gpt", 3), ("bert", 1)]
    assert len(list((tmp_path / "kept").rglob("*.safetensors"))) == 3


def test_within_the_budget_nothing_is_given_up_for_what_is_not_whole_yet(tmp_path: Path) -> None:
    protector = Protector(config(tmp_path, bytes_max=250_000, keep=9), clock=iter(range(1000)).__next__)
    places = [tmp_path / f"{n}.safetensors" for n in range(4)]
    for n, place in enumerate(places):
        save(place, float(n))
    large = tmp_path / "large.safetensors"
    save(large, 1.0, n=70_000)
    outcomes = [
        protector.protect(checkpoint(large, step=9)),
        protector.protect(checkpoint(places[0], step=1)),
        protector.protect(checkpoint(places[1], step=2)),
        protector.protect(checkpoint(places[2], step=3)),  # takes the place of the oldest, which is superseded
        protector.protect(checkpoint(places[3], step=1, run="bert")),
    ]
    protector.stop()
    assert isinstance(outcomes[0], Refused)
    assert "protect.bytes_max is 250000" in outcomes[0].reason
    assert [isinstance(o, Kept) for o in outcomes[1:]] == [True] * 4
    assert [(k.run, k.step) for k in protector.shelf.kept()] == [("gpt", 3), ("bert", 1)]
    assert sum(k.size_bytes for k in protector.shelf.kept()) <= 250_000
    save(tmp_path / "next.safetensors", 5.0)
    refused = protector.protect(checkpoint(tmp_path / "next.safetensors", step=4))
    assert isinstance(refused, Refused)
    assert "to be replaced" in refused.reason
    assert [(k.run, k.step) for k in protector.shelf.kept()] == [("gpt", 3), ("bert", 1)]


def test_only_writers_that_rename_get_a_hard_link(tmp_path: Path, protector: Protector) -> None:
    for name, methods in (("orbax", {"reflink", "hard link"}), ("torch_zip", {"reflink", "copy"})):
        path = tmp_path / f"{name}.safetensors"
        save(path, 1.0)
        made = kept(protector.protect(replace(checkpoint(path), format=name)))
        assert made.method in methods
        assert (os.stat(made.path).st_ino == path.stat().st_ino) == (made.method == "hard link")
        assert protector.shelf.path_of(checkpoint(path)) == made.path


def test_what_is_no_longer_what_was_measured_is_not_kept(tmp_path: Path, protector: Protector) -> None:
    path = tmp_path / "a.safetensors"
    save(path, 1.0)
    good = checkpoint(path)
    save(path, 2.0, n=1000)
    refused = protector.protect(good)
    assert isinstance(refused, Refused)
    assert "no longer what was measured" in refused.reason
    path.unlink()
    assert isinstance(protector.protect(good), Refused)
    assert protector.shelf.kept() == []


def brought(path: Path, target: Path, **changes: Any) -> dict[str, Any]:
    files = files_at(str(path))
    assert files is not None
    target.mkdir()
    payload = {"files": [[path.name, asdict(files[0])]], "target": str(target), "may_link": False, **changes}
    return tasks.protect(payload)


def test_a_file_that_changes_while_it_is_copied_is_worthless(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(bytes(SIZE))
    copy = tasks._copy

    def rewritten(file: Any, descriptor: int) -> None:
        copy(file, descriptor)
        path.write_bytes(bytes(range(256)) * 10)

    monkeypatch.setattr(tasks, "_reflink", lambda *_: False)
    monkeypatch.setattr(tasks, "_copy", rewritten)
    with pytest.raises(ChangedError):
        brought(path, tmp_path / "one")

    def deleted(file: Any, descriptor: int) -> None:
        copy(file, descriptor)
        path.unlink()

    monkeypatch.setattr(tasks, "_copy", deleted)
    with pytest.raises(VanishedError):
        brought(path, tmp_path / "two")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    place = tmp_path / "small"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=65536", "tmpfs", str(place)]
    done = subprocess.run(command, capture_output=True, check=False)
    if done.returncode != 0:
        pytest.skip("a small filesystem can only be mounted by root")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_a_full_disk_is_an_answer_and_leaves_nothing(
    tmp_path: Path, small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.safetensors"
    save(path, 1.0)
    protector = Protector(ProtectConfig(enabled=True, directory=str(small_disk / "kept")))
    refused = protector.protect(checkpoint(path))
    protector.stop()
    assert isinstance(refused, Refused)
    assert "No space left on device" in refused.reason
    assert [p for p in small_disk.rglob("*") if p.is_file()] == []
    # The same where the room runs out in the midst of writing.
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 1 << 40}))
    answer = brought(path, small_disk / "target")
    assert "No space left on device" in answer["error"]


def test_nothing_is_removed_but_its_own(tmp_path: Path, protector: Protector) -> None:
    save(tmp_path / "1.safetensors", 1.0)
    save(tmp_path / "2.safetensors", 2.0)
    first = kept(protector.protect(checkpoint(tmp_path / "1.safetensors", step=1)))
    stranger = Path(first.directory) / "notes.txt"
    stranger.write_text("mine")
    foreign = Path(first.directory).parent / "foreign"
    foreign.mkdir()
    (foreign / "manifest.json").write_text('{"kind": "something else"}')
    kept(protector.protect(checkpoint(tmp_path / "2.safetensors", step=2)))
    assert stranger.read_text() == "mine"
    assert not Path(first.path).exists()
    assert (foreign / "manifest.json").exists()
    assert (tmp_path / "1.safetensors").exists()


def test_what_an_earlier_process_left_half_done_is_removed_at_the_start(tmp_path: Path) -> None:
    shelf = Shelf(str(tmp_path / "kept"))
    partial = Path(shelf.begin("gpt", "/x/a.pt", "s"))
    (partial / "a.pt").write_bytes(b"half")
    protector = Protector(config(tmp_path))
    protector.start()
    protector.stop()
    assert not partial.exists()


@pytest.mark.parametrize("text", ["", "[]", "{", '{"kind": "ckptwatch protected checkpoint"}', "null", "1"])
def test_a_manifest_that_makes_no_sense_is_no_copy(tmp_path: Path, protector: Protector, text: str) -> None:
    save(tmp_path / "a.safetensors", 1.0)
    good = checkpoint(tmp_path / "a.safetensors")
    made = kept(protector.protect(good))
    (Path(made.directory) / "manifest.json").write_text(text)
    assert protector.shelf.path_of(good) is None
    assert protector.shelf.kept() == []


def test_a_manifest_cannot_point_outside(tmp_path: Path, protector: Protector) -> None:
    save(tmp_path / "a.safetensors", 1.0)
    made = kept(protector.protect(checkpoint(tmp_path / "a.safetensors")))
    manifest = Path(made.directory) / "manifest.json"
    manifest.write_text(manifest.read_text().replace('["a.safetensors"', '["../../../a.safetensors"'))
    assert protector.shelf.kept() == []


def test_a_copy_that_was_changed_is_not_named(tmp_path: Path, protector: Protector) -> None:
    save(tmp_path / "a.safetensors", 1.0)
    good = checkpoint(tmp_path / "a.safetensors")
    made = kept(protector.protect(good))
    Path(made.path).write_bytes(b"other")
    assert protector.shelf.path_of(good) is None


def test_a_copy_that_was_damaged_is_made_again(tmp_path: Path, protector: Protector) -> None:
    save(tmp_path / "a.safetensors", 1.0)
    good = checkpoint(tmp_path / "a.safetensors")
    first = kept(protector.protect(good))
    Path(first.path).unlink()
    again = kept(protector.protect(good))
    assert again.path == first.path
    assert protector.shelf.path_of(good) == first.path
    assert load_file(first.path)["weight"][0] == 1.0


def test_copies_do_not_lie_in_what_is_watched(tmp_path: Path) -> None:
    inside = config(tmp_path)
    assert "lies in the watched directory" in (place_problem(inside, (str(tmp_path),)) or "")
    assert place_problem(inside, (str(tmp_path / "runs"),)) is None
    (tmp_path / "link").symlink_to(tmp_path / "kept")
    assert place_problem(inside, (str(tmp_path / "link"),)) is not None


def test_the_thread_takes_the_newest_of_each_run(tmp_path: Path) -> None:
    done: list[Kept | Refused] = []
    protector = Protector(config(tmp_path), on_done=done.append)
    for step in (1, 2):
        save(tmp_path / f"{step}.safetensors", float(step))
        protector.ask(checkpoint(tmp_path / f"{step}.safetensors", step=step))
    protector.start()
    protector.ask(replace(checkpoint(tmp_path / "1.safetensors", run="bert"), path="/nowhere/x.pt"))
    for _ in range(600):
        if len(done) == 2:
            break
        protector._thread.join(0.1)
    protector.stop()
    assert sorted(type(o).__name__ for o in done) == ["Kept", "Refused"]
    assert [k.step for k in protector.shelf.kept()] == [2]
