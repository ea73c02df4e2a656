from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest

from monitor.read import directories, plugins
from monitor.read.directories import claim_units, directory_readers, unit_marks
from monitor.read.unit import Claim, DirectoryListing

MODULE = """
from monitor.read.unit import Claim

class Good:
    name = "good"
    marks = ("*.good",)

    @classmethod
    def claim(cls, directory):
        ours = frozenset(f for f in directory.files if f.endswith(".good"))
        return [Claim(reader="good", files=ours, index="a.good")]

    def open(self, unit, limits):
        raise NotImplementedError

class Failing(Good):
    name = "failing"
    marks = ("*.failing",)

    @classmethod
    def claim(cls, directory):
        raise RuntimeError("the\\nplugin is broken")

class Foreign(Good):
    name = "foreign"

    @classmethod
    def claim(cls, directory):
        return ["a.good"]

class NoMarks(Good):
    name = "no_marks"
    marks = "*.good"

class NoClaim:
    name = "no_claim"
    marks = ("*.x",)

class Taken(Good):
    name = "orbax"
"""


@pytest.fixture
def plugged(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Offer readers of all sorts, good and broken, as another distribution would."""
    (tmp_path / "offered_readers.py").write_text(MODULE)
    (tmp_path / "raises_when_imported.py").write_text("raise RuntimeError('needs a library that is too old')")
    (tmp_path / "leaves.py").write_text("import sys\nint('x')")
    monkeypatch.syspath_prepend(tmp_path)
    names = {n: f"offered_readers:{n}" for n in ("Good", "Failing", "Foreign", "NoMarks", "NoClaim", "Taken")}
    names |= {"peft": "offered_readers:Good", "raising": "raises_when_imported:Reader", "value": "leaves:Reader"}
    names |= {"missing": "offered_readers:Nothing", "syntax": "offered_readers"}
    offered = [EntryPoint(name, value, directories.DIRECTORY_ENTRY_POINT_GROUP) for name, value in names.items()]
    monkeypatch.setattr(plugins, "entry_points", lambda group: offered)
    caches: tuple[Any, ...] = (directories.directory_readers, directories._marks_pattern)
    for cached in caches:
        cached.cache_clear()
    monkeypatch.setattr(directories, "_FAILED", set())
    yield
    for cached in caches:
        cached.cache_clear()
    sys.modules.pop("offered_readers", None)


LISTING = DirectoryListing(name="run", files=frozenset({"a.good", "model.bin"}), directories=frozenset())


@pytest.mark.usefixtures("plugged")
def test_broken_readers_of_others_are_left_out_each_with_its_reason(caplog: pytest.LogCaptureFixture) -> None:
    assert [r.name for r in directory_readers()][-3:] == ["failing", "foreign", "good"]
    assert "*.good" in unit_marks()
    for name, reason in {
        "raising": "RuntimeError: needs a library that is too old",
        "value": "ValueError: invalid literal",
        "missing": "AttributeError: ",
        "syntax": "`name`",
        "NoMarks": "its `marks` are not a tuple of texts",
        "NoClaim": "it has no method `claim`",
        "Taken": "its `name` is not a text that is free",
        "peft": "the name is taken",
    }.items():
        assert any(f"{name!r}" in r.getMessage() and reason in r.getMessage() for r in caplog.records), (name, reason)


@pytest.mark.usefixtures("plugged")
def test_a_reader_that_fails_when_it_is_asked_costs_the_scan_nothing_and_says_so_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    for _ in range(3):
        (claim,) = claim_units(LISTING)
        assert claim == Claim(reader="good", files=frozenset({"a.good"}), index="a.good")
    said = [r.getMessage() for r in caplog.records if "cannot say what is its own" in r.getMessage()]
    assert len(said) == 2
    assert all(message.isprintable() for message in said)
