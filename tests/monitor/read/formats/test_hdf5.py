"""HDF5 files of every make, the hostile ones included; written by h5py, which Keras writes with."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from monitor.read.reader import ReadError, ReadLimits, UnsafeReferenceError
from storage.records import ProblemKind, TensorKind
from tests.conformance.reader import Arrays, ReaderConformance
from tests.support.audit import audited
from tests.support.daemons import clean_environment
from tests.support.memory import peak_bytes_of_reading
from tests.support.reading import Whole, bits, read_whole


class TestHdf5(ReaderConformance):
    format = "hdf5"

    def write(self, path: Path, arrays: Arrays) -> None:
        with h5py.File(path, "w") as file:
            for name, array in arrays.items():
                file[name] = array


class TestPackedHdf5(ReaderConformance):
    format = "hdf5"

    def write(self, path: Path, arrays: Arrays) -> None:
        with h5py.File(path, "w", libver="latest") as file:
            for name, array in arrays.items():
                packing = {"compression": "gzip", "shuffle": True, "fletcher32": True} if array.size > 1 else {}
                file.create_dataset(name, data=array, **packing)

    test_bytes_read_are_counted_and_reported = None  # type: ignore[assignment]  # fewer than the values have
    test_a_file_cut_while_it_is_read_is_an_error_and_not_the_end_of_the_process = None  # type: ignore[assignment]


def made(path: Path, fill: Callable[[Any], None], **options: Any) -> Path:
    with h5py.File(path, "w", **options) as file:
        fill(file)
    return path


def read(tmp_path: Path, fill: Callable[[Any], None], **options: Any) -> Whole:
    return read_whole(made(tmp_path / "x.h5", fill, **options))


def problem(path: Path, limits: ReadLimits | None = None) -> ProblemKind:
    with pytest.raises(ReadError) as caught:
        read_whole(path, limits)
    assert 0 < len(str(caught.value)) <= 500
    assert str(caught.value).isprintable()
    return caught.value.kind


def test_big_endian_compact_chunked_and_complex_values_are_exact(tmp_path: Path) -> None:
    numbers = np.random.default_rng(1).standard_normal((70, 33))
    compact = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    compact.set_layout(h5py.h5d.COMPACT)

    def fill(file: Any) -> None:
        file["group/big"] = numbers.astype(">f4")
        file["complex"] = numbers + 1j
        file.create_dataset("chunked", data=numbers, chunks=(9, 7), compression="lzf")
        small = h5py.h5d.create(file.id, b"compact", h5py.h5t.NATIVE_FLOAT, h5py.h5s.create_simple((4,)), dcpl=compact)
        small.write(h5py.h5s.ALL, h5py.h5s.ALL, np.arange(4, dtype=np.float32))

    for libver in ("earliest", "latest"):
        whole = read(tmp_path, fill, libver=libver)
        assert bits(whole.values["group/big"]) == bits(numbers.astype(np.float32))
        assert bits(whole.values["complex"]) == bits(numbers + 1j)
        assert bits(whole.values["chunked"]) == bits(numbers)
        assert whole.values["compact"].tolist() == [0, 1, 2, 3]


def test_chunks_of_any_size_give_the_same_values(tmp_path: Path) -> None:
    numbers = np.arange(7 * 11 * 13, dtype=np.float64).reshape(7, 11, 13)
    path = made(tmp_path / "x.h5", lambda f: f.create_dataset("w", data=numbers, chunks=(2, 3, 5)))
    for chunk_bytes_max in (8, 16, 100, 900, 10**6):
        assert bits(read_whole(path, ReadLimits(chunk_bytes_max=chunk_bytes_max)).values["w"]) == bits(numbers)


def test_a_hard_link_is_a_tie(tmp_path: Path) -> None:
    def fill(file: Any) -> None:
        file["a"] = np.ones(3)
        file["b"] = file["a"]

    whole = read(tmp_path, fill)
    assert (whole.specs["a"].tied_to, whole.specs["b"].tied_to) == (None, "a")


def test_a_group_that_holds_itself_is_walked_once(tmp_path: Path) -> None:
    def fill(file: Any) -> None:
        file["g/w"] = np.ones(3)
        file["g/again"] = file["/"]

    assert set(read(tmp_path, fill).specs) == {"g/w"}


def test_numbers_give_step_epoch_and_scalars(tmp_path: Path) -> None:
    def fill(file: Any) -> None:
        file["step"], file["epoch"], file["optimizer/lr"], file["w"] = 12, 1.5, 0.1, np.ones(2)
        file["bad"] = float("nan")

    whole = read(tmp_path, fill)
    assert (whole.step, whole.epoch) == (12, 1.5)
    assert whole.scalars == {"step": 12, "epoch": 1.5, "optimizer/lr": 0.1}
    assert whole.specs["optimizer/lr"].kind is TensorKind.OPTIMIZER


def test_what_is_no_tensor_has_a_problem_of_its_own(tmp_path: Path) -> None:
    def fill(file: Any) -> None:
        file["w"] = np.ones(2)
        file["text"] = "words"
        file["texts"] = np.array([b"ab", b"cd"])
        file["table"] = np.zeros(2, np.dtype([("a", "f4"), ("b", "i4")]))
        file["null"] = h5py.Empty("f4")
        file["reference"] = np.array([file["w"].ref], h5py.ref_dtype)
        file.create_dataset("unwritten", (5,), "f4")

    whole = read(tmp_path, fill)
    assert set(whole.values) == {"w"}
    assert {n for n, s in whole.specs.items() if s.problem} == set(whole.specs) - {"w"}


def _soft(file: Any) -> None:
    file["w"] = h5py.SoftLink("/other")


def _external_link(file: Any) -> None:
    file["w"] = h5py.ExternalLink("/etc/hostname", "/x")


def _external_data(file: Any) -> None:
    file.create_dataset("w", (18,), "u1", external=[("/etc/hostname", 0, 18)])


def _virtual(file: Any) -> None:
    layout = h5py.VirtualLayout((3,), "f4")
    layout[:] = h5py.VirtualSource("/etc/hostname", "w", (3,))
    file.create_virtual_dataset("w", layout)


@pytest.mark.parametrize("fill", [_soft, _external_link, _external_data, _virtual])
def test_what_leads_out_of_the_file_is_refused_and_never_opened(tmp_path: Path, fill: Callable[[Any], None]) -> None:
    path = made(tmp_path / "x.h5", fill)
    made(tmp_path / "warm.h5", lambda f: f.create_dataset("w", data=np.ones(1)))
    read_whole(tmp_path / "warm.h5")
    with audited() as events, pytest.raises(UnsafeReferenceError):
        read_whole(path)
    assert events == []


def test_four_petabytes_in_a_small_file_are_over_the_limit(tmp_path: Path) -> None:
    shape = (10**6, 10**6, 10**3)
    path = made(
        tmp_path / "x.h5", lambda f: f.create_dataset("w", shape, "f4", chunks=(64, 64, 64), compression="gzip")
    )
    assert problem(path) is ProblemKind.LIMIT


def test_a_contiguous_dataset_that_claims_petabytes_is_over_the_limit(tmp_path: Path) -> None:
    path = made(tmp_path / "x.h5", lambda f: f.create_dataset("w", (10**15,), "f4"))
    assert problem(path) is ProblemKind.LIMIT


def test_a_packed_dataset_that_grows_a_hundredfold_is_over_the_limit(tmp_path: Path) -> None:
    zeros = np.zeros((1000, 1000), np.float32)
    path = made(tmp_path / "x.h5", lambda f: f.create_dataset("w", data=zeros, compression="gzip"))
    assert read_whole(path).values["w"].shape == zeros.shape
    assert problem(path, ReadLimits(expanded_bytes_min=2**20)) is ProblemKind.LIMIT


def test_groups_that_are_nested_too_deeply_are_over_the_limit(tmp_path: Path) -> None:
    path = made(tmp_path / "x.h5", lambda f: f.create_group("/".join("g" * 2000)))
    assert problem(path) is ProblemKind.LIMIT


def test_an_unknown_filter_is_the_problem_of_its_tensor(tmp_path: Path) -> None:
    def fill(file: Any) -> None:
        properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        properties.set_chunk((4,))
        properties.set_filter(32015, h5py.h5z.FLAG_OPTIONAL, (3,))
        dataset = h5py.h5d.create(file.id, b"w", h5py.h5t.NATIVE_FLOAT, h5py.h5s.create_simple((4,)), dcpl=properties)
        dataset.write(h5py.h5s.ALL, h5py.h5s.ALL, np.ones(4, np.float32))

    assert "filter 32015" in str(read(tmp_path, fill).specs["w"].problem)


def test_a_file_that_is_open_for_writing_is_not_yet_whole(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "x.h5", "w", libver="latest") as file:
        file["w"] = np.ones(1000)
        file.flush()
        assert problem(tmp_path / "x.h5") is ProblemKind.INCOMPLETE
    assert read_whole(tmp_path / "x.h5").values["w"].size == 1000


def test_a_flush_in_the_middle_of_saving_is_not_yet_whole_while_the_file_grows(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["w"] = np.ones(1000)
        file.flush()
        file["more"] = np.ones(200_000)
        assert problem(tmp_path / "x.h5") is ProblemKind.INCOMPLETE


@pytest.mark.timeout(20)
def test_a_heap_of_texts_that_never_ends_is_refused(tmp_path: Path) -> None:
    def fill(file: Any) -> None:
        file["w"] = np.ones(2)
        file.attrs["layer_names"] = ["x" * 50] * 300

    path = made(tmp_path / "x.h5", fill)
    data = bytearray(path.read_bytes())
    at = data.index(b"GCOL")
    total = int.from_bytes(data[at + 8 : at + 16], "little")
    length = (50).to_bytes(8, "little")
    places = [place for place in range(at + 16, at + total, 8) if data[place + 8 : place + 16] == length]
    assert len(places) > 10
    for place in (places[0], places[-1]):
        broken = data.copy()
        broken[place : place + 16] = bytes(16)
        path.write_bytes(broken)
        assert problem(path) is ProblemKind.CORRUPT


WRITER = """
import sys, h5py, numpy as np
path, n = sys.argv[1], int(sys.argv[2])
failures = 0
for i in range(n):
    try:
        with h5py.File(path, "w") as file:
            for layer in range(8):
                file[f"layers/dense_{layer}/vars/0"] = np.full((40, 40), i, np.float32)
                file[f"layers/dense_{layer}/vars/1"] = np.full(40, i, np.float32)
    except OSError as error:
        failures += 1
        print(error, file=sys.stderr)
print(failures)
"""


def test_660_saves_beside_a_reader_succeed_and_nothing_torn_is_taken(tmp_path: Path) -> None:
    path = tmp_path / "model.weights.h5"
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(path), "660"], env=clean_environment(), stdout=subprocess.PIPE, text=True
    )
    n_whole = 0
    while writer.poll() is None:
        try:
            whole = read_whole(path)
        except ReadError:
            continue
        n_whole += 1
        found = {float(v) for array in whole.values.values() for v in np.unique(array)}
        assert len(found) == 1, "values of two saves were mixed"
        assert len(whole.values) == 16
    assert writer.communicate()[0].strip() == "0"
    assert read_whole(path).values["dense_0/kernel"][0, 0] == 659
    assert n_whole > 0


@pytest.mark.slow
def test_memory_stays_small_on_a_checkpoint_of_two_gibibytes(tmp_path: Path) -> None:
    path = tmp_path / "large.h5"
    with h5py.File(path, "w") as file:
        properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        properties.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
        properties.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
        for i in range(4):
            space = h5py.h5s.create_simple((2**17, 1024))
            h5py.h5d.create(file.id, b"w%d" % i, h5py.h5t.NATIVE_FLOAT, space, dcpl=properties)
    assert path.stat().st_size > 2**31
    assert peak_bytes_of_reading(path, n_elements=2**29) < 250 * 2**20
