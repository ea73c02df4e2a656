"""What every reader must do; a format's test subclasses ReaderConformance and says how its files are written."""

from __future__ import annotations

import os
import random
import sys
import tracemalloc
from abc import ABC, abstractmethod
from pathlib import Path
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import pytest

from monitor.read.bounded_file import open_bounded
from monitor.read.reader import (
    SNIFF_BYTES_MAX,
    ChangedError,
    OpenCheckpoint,
    Reader,
    ReadError,
    ReadLimits,
    VanishedError,
)
from monitor.read.registry import READERS, open_path, reader_class
from storage.records import ProblemKind
from tests.support.audit import audited
from tests.support.frameworks import CleanReader
from tests.support.reading import bits, read_whole

Arrays = dict[str, npt.NDArray[np.generic]]


def sample() -> Arrays:
    """Return arrays whose dtypes and shapes every format can hold."""
    random_numbers = np.random.default_rng(20240229)
    odd = np.array([0.0, -0.0, np.nan, np.inf, -np.inf, 1e-45, -1e-40, 3.4e38], np.float32)
    return {
        "encoder.weight": random_numbers.standard_normal((33, 17)).astype(np.float32),
        "encoder.bias": odd,
        "encoder.half": random_numbers.standard_normal((5, 4, 3)).astype(np.float16),
        "encoder.double": random_numbers.standard_normal(101),
        "steps": np.array([2**62, -5, 0], np.int64),
        "mask": np.array([True, False, True]),
        "small": np.array([[0, 255], [7, 128]], np.uint8),
        "scale": np.array(2.5, np.float32),
        "nothing": np.zeros((0, 4), np.float32),
    }


def _drain(checkpoint: OpenCheckpoint) -> int:
    """Read every value and return the number of elements."""
    return sum(chunk.values.size for spec in checkpoint.tensors for chunk in checkpoint.chunks(spec))


class ReaderConformance(ABC):
    """The contract of a reader, tested on files that the format's own writer made.

    A subclass sets `format` to the name in the registry and writes the arrays under their names. A format that holds
    one array only sets `one_array` to the name under which it gives that array.
    """

    format: ClassVar[str]
    one_array: ClassVar[str | None] = None

    @abstractmethod
    def write(self, path: Path, arrays: Arrays) -> None:
        """Write the arrays with the framework's own writer."""

    def reader(self) -> type[Reader]:
        return reader_class(self.format)

    def arrays(self) -> Arrays:
        arrays = sample()
        return arrays if self.one_array is None else {self.one_array: arrays["encoder.weight"]}

    @pytest.fixture
    def file(self, tmp_path: Path) -> Path:
        path = tmp_path / f"sample{self.reader().suffixes[0]}"
        self.write(path, self.arrays())
        return path

    def test_it_is_registered_under_its_own_name(self) -> None:
        assert self.format in READERS
        assert self.reader().name == self.format
        assert all(suffix.startswith(".") for suffix in self.reader().suffixes)

    def test_it_knows_its_files_by_content_whatever_their_name(self, file: Path, tmp_path: Path) -> None:
        other = tmp_path / "named.unlike"
        file.rename(other)
        with open_path(str(other)) as opened:
            assert opened.format == self.format

    def test_no_other_reader_takes_its_files(self, file: Path) -> None:
        head = file.read_bytes()[:SNIFF_BYTES_MAX]
        assert [name for name in READERS if reader_class(name).sniff(head, str(file))] == [self.format]

    def test_sniffing_never_raises(self, file: Path) -> None:
        head = file.read_bytes()[:SNIFF_BYTES_MAX]
        for n in range(min(len(head), 200)):
            assert self.reader().sniff(head[:n], str(file)) in (True, False)

    def test_names_shapes_dtypes_and_values_are_exact(self, file: Path) -> None:
        whole = read_whole(file)
        assert set(whole.values) == set(self.arrays())
        for name, array in self.arrays().items():
            spec = whole.specs[name]
            assert (spec.dtype, spec.shape, spec.n_elements) == (array.dtype.name, array.shape, array.size)
            assert spec.problem is None
            assert spec.tied_to is None
            if array.size:
                assert whole.values[name].dtype == array.dtype
                assert bits(whole.values[name]) == bits(array)

    @pytest.mark.parametrize("chunk_bytes_max", [16, 40, 1000, 2**20])
    def test_chunks_are_bounded_and_any_size_gives_the_same_values(self, file: Path, chunk_bytes_max: int) -> None:
        limits = ReadLimits(chunk_bytes_max=chunk_bytes_max)
        with open_path(str(file), limits) as opened:
            for spec in opened.checkpoint.tensors:
                assert all(chunk.values.nbytes <= chunk_bytes_max for chunk in opened.checkpoint.chunks(spec))
        whole = read_whole(file, limits)
        for name, array in self.arrays().items():
            assert bits(whole.values[name]) == (bits(array) if array.size else b"")

    def test_tensors_can_be_read_again_and_in_any_order(self, file: Path) -> None:
        expected = read_whole(file).values
        with open_path(str(file), ReadLimits(chunk_bytes_max=64)) as opened:
            for spec in [*reversed(opened.checkpoint.tensors), *opened.checkpoint.tensors]:
                got = b"".join(bits(chunk.values) for chunk in opened.checkpoint.chunks(spec))
                assert got == bits(expected[spec.name])

    def test_memory_is_bounded_by_the_chunk_not_by_the_tensor(self, tmp_path: Path) -> None:
        path = tmp_path / f"large{self.reader().suffixes[0]}"
        self.write(path, {self.one_array or "large": np.ones((4096, 2048), np.float32)})
        read_whole(path, ReadLimits(chunk_bytes_max=2**20))  # what is imported late is not counted
        tracemalloc.start()
        try:
            with open_path(str(path), ReadLimits(chunk_bytes_max=2**20)) as opened:
                assert _drain(opened.checkpoint) == 4096 * 2048
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert peak < 4 * 2**20, f"{peak} bytes for a tensor of 32 MiB in chunks of 1 MiB"

    def test_a_file_cut_anywhere_is_an_error_of_the_tree_and_not_yet_whole(self, file: Path, tmp_path: Path) -> None:
        data = file.read_bytes()
        cut = tmp_path / f"cut{file.suffix}"
        for n in sorted({*range(0, min(len(data), 64)), *range(0, len(data), max(1, len(data) // 60)), len(data) - 1}):
            cut.write_bytes(data[:n])
            with pytest.raises(ReadError) as caught, open_path(str(cut)):
                pass
            assert caught.value.kind is ProblemKind.INCOMPLETE, (n, caught.value)

    def test_a_flipped_byte_is_read_or_refused_but_never_breaks_the_reader(self, file: Path, tmp_path: Path) -> None:
        data = file.read_bytes()
        chooser = random.Random(4)
        broken = tmp_path / f"broken{file.suffix}"
        messages: list[str] = []
        for _ in range(300):
            changed = bytearray(data)
            for _ in range(chooser.choice((1, 1, 1, 4))):
                changed[chooser.randrange(len(data))] = chooser.randrange(256)
            broken.write_bytes(changed)
            try:
                with open_path(str(broken)) as opened:
                    for spec in opened.checkpoint.tensors:
                        assert spec.name.isprintable()
                        for _ in opened.checkpoint.chunks(spec):
                            pass
            except ReadError as error:
                messages.append(str(error))
        assert all(message.isprintable() and 0 < len(message) <= 500 for message in messages)

    def test_bytes_after_the_end_are_refused(self, file: Path) -> None:
        with file.open("ab") as stream:
            stream.write(b"\x01\x02\x03")
        with pytest.raises(ReadError) as caught, open_path(str(file)):
            pass
        assert caught.value.kind in (ProblemKind.CORRUPT, ProblemKind.AMBIGUOUS, ProblemKind.INCOMPLETE)

    def test_writing_meanwhile_is_noticed(self, file: Path) -> None:
        with open_path(str(file)) as opened:
            opened.file.verify_unchanged()
            os.utime(file, ns=(1, 1))
            with pytest.raises(ChangedError):
                opened.file.verify_unchanged()

    def test_replacing_and_deleting_meanwhile_are_noticed(self, file: Path, tmp_path: Path) -> None:
        other = tmp_path / "other"
        other.write_bytes(file.read_bytes())
        with open_path(str(file)) as opened:
            other.replace(file)
            with pytest.raises(ChangedError):
                opened.file.verify_unchanged()
            file.unlink()
            with pytest.raises(VanishedError):
                opened.file.verify_unchanged()

    def test_a_file_cut_while_it_is_read_is_an_error_and_not_the_end_of_the_process(self, file: Path) -> None:
        with open_path(str(file), ReadLimits(chunk_bytes_max=64)) as opened:
            os.truncate(file, 1)
            with pytest.raises(ChangedError):
                _drain(opened.checkpoint)

    def test_reading_imports_runs_and_writes_nothing(self, file: Path) -> None:
        read_whole(file)  # what is imported late is imported now
        with audited() as events:
            before = set(sys.modules)
            read_whole(file)
        assert events == []
        assert set(sys.modules) == before

    def test_a_process_that_reads_it_has_imported_no_framework(self, file: Path, clean_reader: CleanReader) -> None:
        assert clean_reader.read(file) == (self.format, [])

    def test_bytes_read_are_counted_and_reported(self, file: Path) -> None:
        reported: list[int] = []
        with open_path(str(file), on_read=reported.append) as opened:
            _drain(opened.checkpoint)
            assert sum(reported) == opened.file.bytes_read
            assert opened.file.bytes_read >= sum(array.nbytes for array in self.arrays().values())

    def test_the_reader_closes_nothing_and_keeps_no_second_descriptor(self, file: Path) -> None:
        with open_bounded(str(file)) as bounded:
            self.reader()().open(bounded, ReadLimits())
            assert bounded.head(1)
