from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from monitor.watch.names import NameRules
from monitor.watch.scanner import ScanLimits, Scanner, ScanResult, scan, stat_file
from storage.records import ProblemKind

RULES = NameRules.compile()


def names(result: ScanResult) -> list[str]:
    return [os.path.relpath(f.path, result.root) for f in result.entries]


def kinds(result: ScanResult) -> list[ProblemKind]:
    return [p.problem.kind for p in result.problems]


def write(path: Path, data: bytes = b"x") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def look(root: Path, **options: object) -> ScanResult:
    limits = ScanLimits(**options) if options else None  # type: ignore[arg-type]
    return scan(str(root), RULES, now=time.time(), limits=limits)


def test_matching_files_are_found_at_any_depth_with_what_stat_says(tmp_path: Path) -> None:
    deep = write(tmp_path / "a" / "b" / "checkpoint-5" / "model.safetensors", b"12345")
    write(tmp_path / "top.pt")
    write(tmp_path / "notes.txt")
    result = look(tmp_path)
    assert names(result) == ["a/b/checkpoint-5/model.safetensors", "top.pt"]
    status = deep.stat()
    assert result.entries[0] == stat_file(str(deep))
    assert (result.entries[0].size_bytes, result.entries[0].inode) == (5, status.st_ino)
    assert result.complete
    assert not result.truncated
    assert result.problems == ()


def test_temporary_names_and_excluded_directories_are_left_out(tmp_path: Path) -> None:
    for name in (".tmpX/a.pt", "tmp-checkpoint-5/a.pt", "x-tmp/a.pt", "a.pt.tmp", "__pycache__/a.pt", ".a.pt"):
        write(tmp_path / name)
    assert names(look(tmp_path)) == []


def test_a_missing_root_is_a_problem_and_says_nothing_about_its_files(tmp_path: Path) -> None:
    for root in (tmp_path / "missing", write(tmp_path / "file.pt")):
        result = look(root)
        assert result.entries == ()
        assert kinds(result) == [ProblemKind.VANISHED]
        assert not result.complete


def test_a_directory_that_may_not_be_listed_is_a_problem_and_the_rest_is_found(tmp_path: Path) -> None:
    write(tmp_path / "open" / "a.pt")
    write(tmp_path / "closed" / "b.pt")

    def scandir(path: str) -> os._ScandirIterator[str]:
        if path.endswith("/closed"):
            raise PermissionError(13, "Permission denied", path)
        return os.scandir(path)

    result = Scanner(str(tmp_path), RULES, scandir=scandir).scan(time.time())
    assert names(result) == ["open/a.pt"]
    assert kinds(result) == [ProblemKind.PERMISSION]
    assert result.problems[0].path == str(tmp_path.resolve() / "closed")
    assert not result.complete


def test_a_device_error_is_a_problem_of_its_own(tmp_path: Path) -> None:
    write(tmp_path / "bad" / "b.pt")

    def scandir(path: str) -> os._ScandirIterator[str]:
        if path.endswith("/bad"):
            raise OSError(5, "Input/output error")
        return os.scandir(path)

    assert kinds(Scanner(str(tmp_path), RULES, scandir=scandir).scan(time.time())) == [ProblemKind.IO_ERROR]


def test_a_directory_deleted_while_we_look_is_normal_life(tmp_path: Path) -> None:
    write(tmp_path / "gone" / "b.pt")

    def scandir(path: str) -> os._ScandirIterator[str]:
        if path.endswith("/gone"):
            raise FileNotFoundError(2, "No such file or directory")
        return os.scandir(path)

    result = Scanner(str(tmp_path), RULES, scandir=scandir).scan(time.time())
    assert result.problems == ()
    assert result.complete


def test_a_pipe_and_a_socket_are_named_and_never_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(tmp_path / "pipe.pt")
    monkeypatch.chdir(tmp_path)  # a socket's path is short
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("socket.pt")
        result = look(tmp_path)
    assert result.entries == ()
    assert kinds(result) == [ProblemKind.NOT_REGULAR] * 2
    assert result.complete


def test_a_directory_with_a_checkpoints_name_is_looked_into(tmp_path: Path) -> None:
    write(tmp_path / "sharded.ckpt" / "part.pt")
    assert names(look(tmp_path)) == ["sharded.ckpt/part.pt"]


def test_one_inode_with_three_names_is_one_entry_under_the_name_that_tells_most(tmp_path: Path) -> None:
    last = write(tmp_path / "last.pth.tar")
    os.link(last, tmp_path / "checkpoint-12.pth.tar")
    os.link(last, tmp_path / "model_best.pth.tar")
    assert names(look(tmp_path)) == ["checkpoint-12.pth.tar"]


def test_a_link_to_a_file_that_is_found_anyway_is_not_a_second_one(tmp_path: Path) -> None:
    write(tmp_path / "step=5.ckpt")
    (tmp_path / "last.ckpt").symlink_to("step=5.ckpt")
    (tmp_path / "again.ckpt").symlink_to("last.ckpt")
    result = look(tmp_path)
    assert names(result) == ["step=5.ckpt"]
    assert result.problems == ()


def test_a_link_whose_target_has_no_checkpoint_name_stands_for_it(tmp_path: Path) -> None:
    blob = write(tmp_path / "blobs" / "0123abcd", b"123")
    (tmp_path / "snapshot").mkdir()
    (tmp_path / "snapshot" / "model.safetensors").symlink_to("../blobs/0123abcd")
    result = look(tmp_path)
    assert names(result) == ["snapshot/model.safetensors"]
    assert result.entries[0].inode == blob.stat().st_ino
    assert result.entries[0] == stat_file(result.entries[0].path)


def test_dangling_and_circular_links_are_normal_life(tmp_path: Path) -> None:
    (tmp_path / "last.ckpt").symlink_to("gone.ckpt")
    (tmp_path / "self.ckpt").symlink_to("self.ckpt")
    result = look(tmp_path)
    assert result.entries == ()
    assert result.problems == ()
    assert result.complete


def test_a_link_to_a_file_outside_the_root_is_not_followed(tmp_path: Path) -> None:
    write(tmp_path / "secret.pt")
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "a.pt").symlink_to(tmp_path / "secret.pt")
    result = look(tmp_path / "root")
    assert result.entries == ()
    assert kinds(result) == [ProblemKind.UNSAFE_REFERENCE]


def test_links_to_directories_are_not_followed_so_that_circles_end(tmp_path: Path) -> None:
    write(tmp_path / "elsewhere" / "b.pt")
    write(tmp_path / "root" / "run" / "a.pt")
    (tmp_path / "root" / "run" / "up").symlink_to(tmp_path / "root")
    (tmp_path / "root" / "out").symlink_to(tmp_path / "elsewhere")
    assert names(look(tmp_path / "root")) == ["run/a.pt"]


def test_the_root_itself_may_be_a_link_and_hidden(tmp_path: Path) -> None:
    write(tmp_path / ".cache" / "a.pt")
    (tmp_path / "link").symlink_to(tmp_path / ".cache")
    result = look(tmp_path / "link")
    assert result.root == str(tmp_path.resolve() / ".cache")
    assert names(result) == ["a.pt"]


def test_other_roots_inside_are_skipped(tmp_path: Path) -> None:
    write(tmp_path / "inner" / "a.pt")
    write(tmp_path / "b.pt")
    scanner = Scanner(str(tmp_path), RULES, skip_directories=[str(tmp_path.resolve() / "inner")])
    assert names(scanner.scan(time.time())) == ["b.pt"]


def test_a_marked_checkpoint_is_held_back_until_the_marker_goes(tmp_path: Path) -> None:
    write(tmp_path / "step=5.ckpt")
    write(tmp_path / "step=6.ckpt")
    marker = write(tmp_path / "step=5-unfinished.txt", b"")
    scanner = Scanner(str(tmp_path), RULES)
    first = scanner.scan(time.time())
    assert names(first) == ["step=6.ckpt"]
    assert first.held_back == (str(tmp_path.resolve() / "step=5.ckpt"),)
    marker.unlink()
    second = scanner.scan(time.time())
    assert names(second) == ["step=5.ckpt", "step=6.ckpt"]
    assert second.held_back == ()


def test_a_name_that_is_not_text_is_a_problem_and_not_an_entry(tmp_path: Path) -> None:
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff\xfe.pt")).write_bytes(b"x")
    os.mkdir(os.fsencode(tmp_path) + b"/dir\xff")
    result = look(tmp_path)
    assert result.entries == ()
    assert kinds(result) == [ProblemKind.UNSUPPORTED] * 2
    for problem in result.problems:
        problem.path.encode()


@pytest.mark.parametrize(("files_max", "found", "truncated"), [(3, 3, False), (2, 2, True)])
def test_the_number_of_files_is_bounded(tmp_path: Path, files_max: int, found: int, truncated: bool) -> None:
    for i in range(3):
        write(tmp_path / f"{i}.pt")
    result = look(tmp_path, files_max=files_max)
    assert len(result.entries) == found
    assert result.truncated is truncated
    assert (ProblemKind.LIMIT in kinds(result)) is truncated
    assert result.complete is not truncated


@pytest.mark.parametrize(("names_max", "truncated"), [(3, False), (2, True)])
def test_the_number_of_names_is_bounded_even_when_none_matches(tmp_path: Path, names_max: int, truncated: bool) -> None:
    for i in range(3):
        write(tmp_path / f"{i}.txt")
    result = look(tmp_path, names_max=names_max)
    assert result.truncated is truncated
    assert result.n_names <= names_max + 1


@pytest.mark.parametrize(("depth_max", "found"), [(2, ["a/b/m.pt", "m.pt"]), (1, ["m.pt"])])
def test_the_depth_is_bounded(tmp_path: Path, depth_max: int, found: list[str]) -> None:
    write(tmp_path / "m.pt")
    write(tmp_path / "a" / "b" / "m.pt")
    result = look(tmp_path, depth_max=depth_max)
    assert names(result) == found
    assert (kinds(result) == [ProblemKind.LIMIT]) is (depth_max == 1)


def test_a_directory_that_did_not_change_is_not_listed_again_but_its_files_are_asked(tmp_path: Path) -> None:
    file = write(tmp_path / "a" / "m.pt")
    scanner = Scanner(str(tmp_path), RULES)
    later = time.time() + 60
    first = scanner.scan(later)
    assert first.n_listed == 2
    second = scanner.scan(later)
    assert second.n_listed == 0
    assert second.entries[0] is first.entries[0]  # nothing new is built for what did not change
    with file.open("r+b") as stream:
        stream.write(b"longer")
    third = scanner.scan(later)
    assert third.n_listed == 0
    assert third.entries[0].size_bytes == 6


def test_a_directory_touched_a_moment_ago_is_listed_again(tmp_path: Path) -> None:
    write(tmp_path / "m.pt")
    scanner = Scanner(str(tmp_path), RULES)
    now = (tmp_path.stat().st_mtime_ns / 1e9) + 1.0
    assert [scanner.scan(now).n_listed for _ in range(2)] == [1, 1]


def test_a_directory_whose_time_was_set_back_is_still_listed_again(tmp_path: Path) -> None:
    write(tmp_path / "m.pt")
    scanner = Scanner(str(tmp_path), RULES)
    later = time.time() + 60
    scanner.scan(later)
    before = tmp_path.stat()
    write(tmp_path / "n.pt")
    os.utime(tmp_path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert names(scanner.scan(later)) == ["m.pt", "n.pt"]


def test_a_file_replaced_by_a_link_after_the_listing_is_not_followed_out_of_the_root(tmp_path: Path) -> None:
    secret = write(tmp_path / "secret")
    file = write(tmp_path / "root" / "m.pt")

    def scandir(path: str) -> os._ScandirIterator[str]:
        return _ReplacedAfterListing(path, file, secret)  # type: ignore[return-value]

    result = Scanner(str(tmp_path / "root"), RULES, scandir=scandir).scan(time.time())
    assert result.entries == ()


class _ReplacedAfterListing:
    def __init__(self, path: str, file: Path, secret: Path) -> None:
        with os.scandir(path) as entries:
            self._entries = list(entries)
        self._file, self._secret = file, secret

    def __enter__(self) -> Iterator[os.DirEntry[str]]:
        return iter(self._entries)

    def __exit__(self, *_: object) -> None:
        self._file.unlink()
        self._file.symlink_to(self._secret)


def test_nothing_is_opened_or_changed_by_a_scan(tmp_path: Path) -> None:
    file = write(tmp_path / "a" / "m.pt")
    os.utime(file, ns=(1, 1))
    os.chmod(file, 0o000)
    before = (file.stat(), (tmp_path / "a").stat())
    assert names(look(tmp_path)) == ["a/m.pt"]
    after = (file.stat(), (tmp_path / "a").stat())
    assert [(s.st_mtime_ns, s.st_ctime_ns, s.st_atime_ns) for s in before[:1]] == [
        (s.st_mtime_ns, s.st_ctime_ns, s.st_atime_ns) for s in after[:1]
    ]
    assert before[1].st_mtime_ns == after[1].st_mtime_ns


def test_the_state_of_a_file_that_is_gone_is_none(tmp_path: Path) -> None:
    assert stat_file(str(tmp_path / "gone.pt")) is None
    assert stat_file(str(write(tmp_path / "a.pt") / "below")) is None
