from __future__ import annotations

import os
from pathlib import Path

import pytest

from monitor.read.bounded_unit import DESCRIPTORS_MAX, BoundedUnit, naming
from monitor.read.reader import (
    ChangedError,
    IncompleteError,
    LimitError,
    NotRegularError,
    ReadError,
    UnsafeReferenceError,
    VanishedError,
)
from monitor.read.unit import Claim


def claim(*files: str, directories: tuple[str, ...] = ()) -> Claim:
    return Claim(reader="r", files=frozenset(files), directories=frozenset(directories))


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    made = tmp_path / "unit"
    (made / "deep" / "er").mkdir(parents=True)
    for name in ("a", "b", "deep/c", "deep/er/d"):
        (made / name).write_bytes(name.encode() * 100)
    return made


def whole(directory: Path) -> BoundedUnit:
    return BoundedUnit(str(directory), claim("a", "b", directories=("deep",)))


def test_files_are_known_by_relative_names_and_read_by_offset(directory: Path) -> None:
    read: list[int] = []
    with BoundedUnit(str(directory), claim("a", "b", directories=("deep",)), on_read=read.append) as unit:
        assert unit.names == ("a", "b", "deep/c", "deep/er/d")
        assert unit.size_bytes == 100 + 100 + 600 + 900
        assert "deep/c" in unit
        assert unit.open("deep/c").read(6, 6) == b"deep/c"
        assert unit.read("a", 100) == b"a" * 100
        assert unit.bytes_read == sum(read) == 106
        unit.verify_unchanged()


def test_a_part_is_seen_as_a_unit_of_its_own(directory: Path) -> None:
    with whole(directory) as unit:
        part = unit.below("deep")
        assert part.names == ("c", "er/d")
        assert part.path == str(directory / "deep")
        assert part.below("er").read("d", 1000) == b"deep/er/d" * 100
        assert part.claim.files == {"c"}
        assert part.claim.directories == {"er"}
        (directory / "a").write_bytes(b"new")
        part.verify_unchanged()
        with pytest.raises(ChangedError):
            unit.verify_unchanged()
        (directory / "deep" / "c").write_bytes(b"new")
        with pytest.raises(ChangedError):
            part.verify_unchanged()
        assert unit.bytes_read == 900


@pytest.mark.parametrize(
    "name", ["../x", "/etc/passwd", "deep/../a", "./a", "", "deep//c", "a\0b", "a/", "deep\\c", ".."]
)
def test_names_that_lead_elsewhere_are_refused(directory: Path, name: str) -> None:
    with whole(directory) as unit:
        with pytest.raises(UnsafeReferenceError):
            unit.open(name)
        with pytest.raises(UnsafeReferenceError):
            unit.below(name)


def test_a_name_that_is_no_part_of_the_unit_is_not_there_yet(directory: Path) -> None:
    (directory / "later").write_bytes(b"x")
    with whole(directory) as unit, pytest.raises(IncompleteError, match="later"):
        unit.open("later")


def test_links_are_followed_only_within_the_unit(directory: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"secret")
    (directory / "out").symlink_to(tmp_path / "secret")
    (directory / "in").symlink_to("deep/c")
    (directory / "circle").symlink_to("circle")
    with BoundedUnit(str(directory), claim("a", "out", "in", "circle", directories=("deep",))) as unit:
        assert unit.read("in", 1000) == b"deep/c" * 100
        with pytest.raises(UnsafeReferenceError, match="leads out"):
            unit.open("out")
        assert "circle" not in unit


def test_a_directory_that_becomes_a_link_meanwhile_is_not_followed(directory: Path, tmp_path: Path) -> None:
    with whole(directory) as unit:
        (directory / "deep").rename(tmp_path / "moved")
        (directory / "deep").symlink_to(tmp_path / "moved")
        with pytest.raises(ReadError) as caught:
            unit.open("deep/c")
        assert isinstance(caught.value, UnsafeReferenceError | VanishedError)


def test_a_file_that_was_replaced_since_is_not_read(directory: Path) -> None:
    with whole(directory) as unit:
        (directory / "other").write_bytes(b"a" * 100)
        (directory / "other").rename(directory / "a")
        with pytest.raises(ChangedError):
            unit.open("a")
        (directory / "b").unlink()
        with pytest.raises(VanishedError):
            unit.open("b")


def test_any_number_of_files_needs_few_descriptors(tmp_path: Path) -> None:
    names = [f"f{n}" for n in range(40)]
    for name in names:
        (tmp_path / name).write_bytes(name.encode())
    before = len(os.listdir("/proc/self/fd"))
    with BoundedUnit(str(tmp_path), claim(*names)) as unit:
        files = [unit.open(name) for name in names]
        for _ in range(2):
            for name, file in zip(names, files, strict=True):
                assert file.read(0, len(name)) == name.encode()
                assert len(os.listdir("/proc/self/fd")) <= before + DESCRIPTORS_MAX
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("change", ["added", "deleted", "written", "replaced", "deeply added"])
def test_the_bracket_notices_what_happens_to_any_file(directory: Path, change: str) -> None:
    with whole(directory) as unit:
        unit.verify_unchanged()
        if change == "added":
            (directory / "deep" / "new").write_bytes(b"")
        elif change == "deeply added":
            (directory / "deep" / "x" / "y").mkdir(parents=True)
            (directory / "deep" / "x" / "y" / "z").write_bytes(b"")
        elif change == "deleted":
            (directory / "deep" / "er" / "d").unlink()
        elif change == "written":
            os.utime(directory / "b", ns=(5, 5))
        else:
            (directory / "other").write_bytes(b"a" * 100)
            os.utime(directory / "other", ns=(0, (directory / "a").stat().st_mtime_ns))
            (directory / "other").rename(directory / "a")
        with pytest.raises(ChangedError):
            unit.verify_unchanged()


def test_a_unit_of_which_nothing_is_left_is_gone(directory: Path) -> None:
    with BoundedUnit(str(directory), claim("a")) as unit:
        (directory / "a").unlink()
        with pytest.raises(VanishedError):
            unit.verify_unchanged()
    with pytest.raises(VanishedError):
        BoundedUnit(str(directory), claim("a"))


def test_what_is_no_regular_file_is_no_part_and_one_that_becomes_a_pipe_is_refused(directory: Path) -> None:
    os.mkfifo(directory / "pipe")
    with BoundedUnit(str(directory), claim("a", "pipe")) as unit:
        assert unit.names == ("a",)
        (directory / "a").unlink()
        os.mkfifo(directory / "a")
        with pytest.raises(NotRegularError):
            unit.open("a")


def test_small_files_are_read_within_their_limit_and_json_may_hold_nan(directory: Path) -> None:
    (directory / "a").write_text('{"x": NaN, "y": [1, -Infinity]}')
    (directory / "b").write_text('{"x": ')
    with whole(directory) as unit:
        content = unit.read_json("a")
        assert isinstance(content, dict)
        assert content["y"][0] == 1
        with pytest.raises(IncompleteError, match="'b' is not valid JSON"):
            unit.read_json("b")
        with pytest.raises(LimitError):
            unit.read("a", 10)


def test_an_error_names_the_file_it_is_about_once() -> None:
    with pytest.raises(IncompleteError, match=r"^'x/y': 3 bytes$"), naming("x/y"), naming("x/y"):
        raise IncompleteError("3 bytes")
