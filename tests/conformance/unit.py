"""What every reader of several files must do; a format's test subclasses UnitConformance and says where a unit lies."""

from __future__ import annotations

import os
import random
from abc import ABC, abstractmethod
from pathlib import Path
from typing import ClassVar

import pytest

from monitor.read.directories import (
    DIRECTORY_READERS,
    claim_units,
    directory_reader,
    locate,
    unit_files,
    unit_marks,
)
from monitor.read.reader import ReadError, ReadLimits
from monitor.read.registry import open_path
from monitor.read.unit import DirectoryListing, list_directory
from monitor.watch.names import NameRules
from monitor.watch.scanner import Scanner
from storage.records import ProblemKind
from tests.support.audit import audited
from tests.support.frameworks import CleanReader
from tests.support.reading import bits, read_whole

LONG_AGO_NS = 1_600_000_000_000_000_000  # a save under way is told by files younger than others


def files_below(directory: Path) -> list[Path]:
    return sorted(path for path in directory.rglob("*") if path.is_file())


class UnitConformance(ABC):
    """The contract of a directory reader, tested on what the format's own writer made.

    A subclass sets `format` to the name in the table, and copies a written unit (with whatever lies beside it) to a
    directory and returns the unit's path. `needed` are names whose absence makes the unit incomplete.
    """

    format: ClassVar[str]
    needed: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def place(self, directory: Path, request: pytest.FixtureRequest) -> Path:
        """Copy a unit to below `directory`, which is empty, and return the unit's path."""

    @pytest.fixture
    def unit(self, tmp_path: Path, request: pytest.FixtureRequest) -> Path:
        (tmp_path / "run").mkdir()
        placed = self.place(tmp_path / "run", request)
        for path in files_below(tmp_path / "run"):
            os.utime(path, ns=(LONG_AGO_NS, LONG_AGO_NS))
        return placed

    def parts(self, unit: Path) -> list[Path]:
        """Return the files of the unit, as the daemon sees them."""
        return [Path(file.path) for file in unit_files(str(unit)) or ()]

    def test_it_is_in_the_table_under_its_own_name(self) -> None:
        assert self.format in DIRECTORY_READERS
        reader = directory_reader(self.format)
        assert reader.name == self.format
        assert reader.marks
        assert set(reader.marks) <= set(unit_marks())

    def test_it_is_opened_as_its_format_and_its_values_are_whole(self, unit: Path) -> None:
        whole = read_whole(unit)
        assert whole.format == self.format
        assert whole.values
        assert all(name.isprintable() for name in whole.specs)

    def test_claiming_looks_at_names_alone_and_takes_none_twice(self, unit: Path) -> None:
        located = locate(str(unit))
        assert located is not None
        listing = list_directory(located.directory)
        claims = claim_units(listing)
        assert located.claim in claims
        taken = [name for claim in claims for name in claim.names]
        assert len(taken) == len(set(taken))
        assert set(taken) <= listing.files | listing.directories
        assert all(claim.index == "" or claim.index.isprintable() for claim in claims)

    def test_claiming_never_raises_whatever_the_names(self, unit: Path) -> None:
        located = locate(str(unit))
        assert located is not None
        names = sorted(located.claim.names)
        chooser = random.Random(3)
        for _ in range(200):
            kept = [name for name in names if chooser.random() < 0.5]
            odd = ["", "\u202e", "x" * 300, "-of-", "model-00001-of-00000.safetensors", *kept]
            listing = DirectoryListing(
                name=chooser.choice(["", "checkpoint-99999999999999999999", located.directory]),
                files=frozenset(n for n in odd if chooser.random() < 0.7),
                directories=frozenset(n for n in kept if chooser.random() < 0.3),
            )
            directory_reader(self.format).claim(listing)

    def test_the_scan_sees_the_unit_and_none_of_its_files(self, unit: Path, tmp_path: Path) -> None:
        scanner = Scanner(str(tmp_path), NameRules.compile(marks=unit_marks()), claims_of=claim_units)
        found = scanner.scan(1e10)
        assert [entry.path for entry in found.units] == [str(unit)]
        assert found.units[0].files == unit_files(str(unit))
        assert found.entries == ()
        assert found.problems == ()
        again = scanner.scan(1e10)
        assert again.units[0] is found.units[0]
        assert again.n_listed == 0

    @pytest.mark.parametrize("chunk_bytes_max", [16, 1000])
    def test_chunks_are_bounded_and_any_size_gives_the_same_values(self, unit: Path, chunk_bytes_max: int) -> None:
        expected = read_whole(unit)
        limits = ReadLimits(chunk_bytes_max=chunk_bytes_max)
        with open_path(str(unit), limits) as opened:
            for spec in opened.checkpoint.tensors:
                assert all(chunk.values.nbytes <= chunk_bytes_max for chunk in opened.checkpoint.chunks(spec))
        whole = read_whole(unit, limits)
        assert whole.values.keys() == expected.values.keys()
        assert all(bits(whole.values[name]) == bits(expected.values[name]) for name in expected.values)

    def test_a_missing_file_is_waited_for_or_not_needed(self, unit: Path) -> None:
        for path in self.parts(unit):
            aside = path.with_name("aside")
            path.rename(aside)
            kind = kind_of_reading(unit)
            waited_for = (ProblemKind.INCOMPLETE, ProblemKind.UNSUPPORTED, ProblemKind.VANISHED)
            assert kind in waited_for if path.name in self.needed else kind in (None, *waited_for), (path, kind)
            aside.rename(path)

    def test_files_cut_or_changed_anywhere_are_errors_of_the_tree(self, unit: Path) -> None:
        chooser = random.Random(5)
        for path in self.parts(unit):
            data = path.read_bytes()
            for _ in range(12):
                changed = bytearray(data[: chooser.randrange(len(data) + 1)] if chooser.random() < 0.5 else data)
                for _ in range(chooser.choice((0, 1, 4)) if changed else 0):
                    changed[chooser.randrange(len(changed))] = chooser.randrange(256)
                _put(path, bytes(changed))
                message = _message_of_opening(unit)
                assert message is None or (message.isprintable() and 0 < len(message) <= 1000)
            _put(path, data)

    def test_a_link_that_leads_out_is_never_followed(self, unit: Path, tmp_path: Path) -> None:
        outside = tmp_path / "outside"
        for path in self.parts(unit):
            data = path.read_bytes()
            path.unlink()
            path.symlink_to(outside)
            outside.write_bytes(b"")  # what follows the link finds nothing, and says so in another way
            os.utime(outside, ns=(LONG_AGO_NS, LONG_AGO_NS))
            kind = kind_of_reading(unit)
            assert kind in (None, ProblemKind.UNSAFE_REFERENCE), f"{path.name} was followed out of the unit: {kind}"
            path.unlink()
            _put(path, data)

    def test_writing_adding_and_deleting_meanwhile_are_noticed(self, unit: Path) -> None:
        for path in self.parts(unit):
            state = path.stat()
            with open_path(str(unit)) as opened:
                opened.file.verify_unchanged()
                os.utime(path, ns=(1, 1))
                with pytest.raises(ReadError) as caught:
                    opened.file.verify_unchanged()
                assert caught.value.kind is ProblemKind.CHANGED
                aside = path.with_name("aside")
                path.rename(aside)
                with pytest.raises(ReadError):
                    opened.file.verify_unchanged()
                aside.rename(path)
            os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))

    def test_few_descriptors_are_open_and_none_afterwards(self, unit: Path) -> None:
        read_whole(unit)
        before = len(os.listdir("/proc/self/fd"))
        with open_path(str(unit)) as opened:
            for spec in opened.checkpoint.tensors:
                for _ in opened.checkpoint.chunks(spec):
                    assert len(os.listdir("/proc/self/fd")) <= before + 4
        assert len(os.listdir("/proc/self/fd")) == before

    def test_reading_imports_runs_and_writes_nothing(self, unit: Path) -> None:
        read_whole(unit)
        with audited() as events:
            read_whole(unit)
        assert events == []

    def test_a_process_that_reads_it_has_imported_no_framework(self, unit: Path, clean_reader: CleanReader) -> None:
        assert clean_reader.read(unit) == (self.format, [])

    def test_bytes_read_are_counted_and_reported(self, unit: Path) -> None:
        reported: list[int] = []
        with open_path(str(unit), on_read=reported.append) as opened:
            for spec in opened.checkpoint.tensors:
                for _ in opened.checkpoint.chunks(spec):
                    pass
            assert sum(reported) == opened.file.bytes_read > 0
            assert opened.file.size_bytes == sum(path.stat().st_size for path in self.parts(unit))


def kind_of_reading(unit: Path) -> ProblemKind | None:
    """Read everything and return the kind of the error, None for none."""
    try:
        read_whole(unit)
    except ReadError as error:
        return error.kind
    return None


def _message_of_opening(unit: Path) -> str | None:
    try:
        with open_path(str(unit)) as opened:
            for spec in opened.checkpoint.tensors:
                for _ in opened.checkpoint.chunks(spec):
                    pass
    except ReadError as error:
        return str(error)
    return None


def _put(path: Path, data: bytes) -> None:
    path.write_bytes(data)
    os.utime(path, ns=(LONG_AGO_NS, LONG_AGO_NS))
