from __future__ import annotations

import io
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from numpy.lib import format as npy_format

from monitor.read.reader import (
    AmbiguousError,
    CorruptError,
    IncompleteError,
    LimitError,
    ReadError,
    ReadLimits,
    UnsupportedError,
)
from storage.records import TensorKind
from tests.hostile.zips import Member, build
from tests.support.audit import audited
from tests.support.reading import Whole, read_whole


def npy(array: Any, *, allow_pickle: bool = False) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=allow_pickle)
    return stream.getvalue()


def header(text: str, version: int = 1) -> bytes:
    raw = text.encode()
    return b"\x93NUMPY" + bytes([version, 0]) + struct.pack("<H" if version == 1 else "<I", len(raw)) + raw


def read(tmp_path: Path, data: bytes, suffix: str = ".npy", limits: ReadLimits | None = None) -> Whole:
    path = tmp_path / f"made{suffix}"
    path.write_bytes(data)
    return read_whole(path, limits)


def saved(tmp_path: Path, compressed: bool, limits: ReadLimits | None = None, **arrays: Any) -> Whole:
    return saved_arrays(tmp_path, compressed, arrays, limits)


def saved_arrays(tmp_path: Path, compressed: bool, arrays: dict[str, Any], limits: ReadLimits | None = None) -> Whole:
    path = tmp_path / "saved.npz"
    (np.savez_compressed if compressed else np.savez)(path, **arrays)
    return read_whole(path, limits)


DTYPES = [
    "<f2",
    ">f2",
    "<f4",
    ">f4",
    "<f8",
    ">f8",
    "<i2",
    ">i4",
    "<i8",
    ">u8",
    "|u1",
    "|i1",
    "|b1",
    "<c8",
    ">c8",
    ">c16",
]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("compressed", [False, True])
def test_values_of_every_dtype_and_order_are_those_of_numpy(
    tmp_path: Path, dtype: str, order: Any, compressed: bool
) -> None:
    array = np.arange(60).reshape(3, 4, 5).astype(dtype, order=order)
    for chunk_bytes_max in (48, 2**20):
        whole = saved(tmp_path, compressed, ReadLimits(chunk_bytes_max=chunk_bytes_max), w=array)
        assert whole.specs["w"].dtype == array.dtype.newbyteorder("=").name
        assert np.array_equal(whole.values["w"], array)
    assert np.array_equal(read(tmp_path, npy(array)).values["tensor"], array)


@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
def test_every_version_of_the_header_is_read(tmp_path: Path, version: tuple[int, int]) -> None:
    stream = io.BytesIO()
    npy_format.write_array(stream, np.arange(4.0), version=version)
    assert read(tmp_path, stream.getvalue()).values["tensor"].tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("compressed", [False, True])
def test_a_training_checkpoint_of_numpy_gives_step_scalars_and_kinds(tmp_path: Path, compressed: bool) -> None:
    whole = saved_arrays(
        tmp_path,
        compressed,
        {
            "layer.w": np.ones((2, 3), np.float32),
            "step": np.array(500),
            "epoch": np.array(2.5),
            "lr": np.float32(0.5),
            "optimizer.state.0.exp_avg": np.zeros(3),
            "bad": np.array(np.nan),
        },
    )
    assert (whole.step, whole.epoch) == (500, 2.5)
    assert dict(whole.scalars) == {"step": 500, "epoch": 2.5, "lr": 0.5}
    kinds = {name: spec.kind for name, spec in whole.specs.items()}
    assert kinds["layer.w"] is TensorKind.PARAMETER
    assert kinds["step"] is kinds["lr"] is TensorKind.OTHER
    assert kinds["optimizer.state.0.exp_avg"] is TensorKind.OPTIMIZER


def test_an_archive_without_arrays_is_whole(tmp_path: Path) -> None:
    assert saved(tmp_path, False).specs == {}


class Evil:
    def __init__(self, canary: str) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        import os

        return (os.system, (f"touch {self.canary}",))


def test_an_array_of_objects_is_not_unpickled(tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    evil = np.array([Evil(str(canary))], object)
    np.savez(tmp_path / "evil.npz", allow_pickle=True, evil=evil, good=np.ones(2))
    with audited() as events:
        whole = read_whole(tmp_path / "evil.npz")
    assert events == []
    assert not canary.exists()
    assert whole.values["good"].tolist() == [1, 1]
    assert whole.specs["evil"].problem is not None
    np.load(tmp_path / "evil.npz", allow_pickle=True)["evil"]
    assert canary.exists()


@pytest.mark.parametrize(
    "array",
    [
        np.array(["a", "bc"]),
        np.array([b"x"]),
        np.array(["2024-02-29"], "M8[D]"),
        np.array([1, 2], "m8[s]"),
        np.zeros(2, [("a", "<f4"), ("b", "<i4")]),
        np.zeros(2, "V7"),
        np.ones(3, ml_dtypes.bfloat16),
    ],
    ids=lambda array: array.dtype.str,
)
def test_arrays_of_no_plain_numbers_have_a_problem_and_the_others_are_read(tmp_path: Path, array: Any) -> None:
    whole = saved(tmp_path, False, odd=array, good=np.ones(2))
    assert list(whole.values) == ["good"]
    problem = whole.specs["odd"].problem
    assert problem is not None
    assert problem.isprintable()


HEADERS: dict[str, tuple[bytes, type[ReadError]]] = {
    "text that is code": (header("__import__('os').system('touch x')"), CorruptError),
    "nesting without end": (header("[" * 5000), CorruptError),
    "a list": (header("[1, 2]"), CorruptError),
    "a missing key": (header("{'descr': '<f4', 'shape': (1,)}"), CorruptError),
    "a further key": (header("{'descr': '<f4', 'shape': (), 'fortran_order': False, 'x': 1}"), CorruptError),
    "a shape that is a list": (header("{'descr': '<f4', 'shape': [1], 'fortran_order': False}"), CorruptError),
    "a negative size": (header("{'descr': '<f4', 'shape': (-1,), 'fortran_order': False}"), CorruptError),
    "a size that is a truth value": (
        header("{'descr': '<f4', 'shape': (True,), 'fortran_order': False}"),
        CorruptError,
    ),
    "an order that is a number": (header("{'descr': '<f4', 'shape': (), 'fortran_order': 1}"), CorruptError),
    "an unknown dtype": (header("{'descr': '<q9', 'shape': (), 'fortran_order': False}"), CorruptError),
    "a dtype that is an expression": (
        header("{'descr': 'f4,(2,)f8', 'shape': (1,), 'fortran_order': False}"),
        ReadError,
    ),
    "values that are not there": (
        header("{'descr': '<f4', 'shape': (2,), 'fortran_order': False}") + bytes(7),
        IncompleteError,
    ),
    "four tebibytes": (header("{'descr': '<f4', 'shape': (1099511627776,), 'fortran_order': False}"), IncompleteError),
    "values without shape": (
        header("{'descr': '<f4', 'shape': (2,), 'fortran_order': False}") + bytes(9),
        CorruptError,
    ),
    "ten thousand dimensions": (
        header(f"{{'descr': '<f4', 'shape': ({'1,' * 3000}), 'fortran_order': False}}"),
        LimitError,
    ),
    "a header over the limit": (header("{" + " " * 10_000), LimitError),
    "a header of four gigabytes": (b"\x93NUMPY\x02\x00\xff\xff\xff\xff", LimitError),
    "a version of the future": (b"\x93NUMPY\x09\x00\x00\x00{}", UnsupportedError),
    "a cut header": (header("{'descr': '<f4'")[:15], IncompleteError),
    "the magic only": (b"\x93NUMPY", IncompleteError),
    "no Python": (header("{'descr': \x00}"), CorruptError),
}


@pytest.mark.parametrize("case", HEADERS)
def test_a_header_that_breaks_a_rule_is_refused(tmp_path: Path, case: str) -> None:
    data, expected = HEADERS[case]
    with audited() as events, pytest.raises(expected) as caught:
        read_whole_quietly(tmp_path, data)
    assert [event for event in events if not event.startswith("open for writing")] == []
    assert str(caught.value).isprintable()


def read_whole_quietly(tmp_path: Path, data: bytes) -> Whole:
    whole = read(tmp_path, data)
    for spec in whole.specs.values():  # a dtype that NumPy knows but that holds no plain numbers
        if spec.problem is not None:
            raise UnsupportedError(spec.problem)
    return whole


def test_what_a_member_lacks_in_a_whole_archive_will_not_come(tmp_path: Path) -> None:
    data = npy(np.ones(10))
    with pytest.raises(CorruptError, match=r"w\.npy"):
        read(tmp_path, build([Member(name=b"w.npy", data=data[:-1])]), ".npz")


def test_other_members_are_passed_over_and_two_of_a_name_are_ambiguous(tmp_path: Path) -> None:
    member = Member(name=b"w.npy", data=npy(np.ones(2)))
    whole = read(
        tmp_path, build([member, Member(name=b"readme.txt", data=b"hi"), Member(name=b"in.npz", data=b"PK")]), ".npz"
    )
    assert list(whole.specs) == ["w"]
    with pytest.raises(AmbiguousError):
        read(tmp_path, build([member, member]), ".npz")
    with pytest.raises(UnsupportedError):
        read(tmp_path, build([Member(name=b"readme.txt", data=b"hi")]), ".npz")


def test_a_deflation_bomb_is_over_the_limit(tmp_path: Path) -> None:
    limits = ReadLimits(expanded_bytes_min=10_000)
    with pytest.raises(LimitError):
        saved(tmp_path, True, limits, bomb=np.zeros(10**6))
    assert saved(tmp_path, True, bomb=np.zeros(10**5)).values["bomb"].size == 10**5


def test_a_deflated_member_that_lies_about_its_size_is_corrupt(tmp_path: Path) -> None:
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    packed = packer.compress(npy(np.ones(100))) + packer.flush()
    claims = npy(np.ones(200))
    honest = build([Member(name=b"w.npy", data=packed, method=8, n_bytes=928, packed_bytes=len(packed))])
    assert read(tmp_path, honest, ".npz").values["w"].size == 100
    longer = claims[:128] + bytes(100)
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    packed = packer.compress(longer) + packer.flush()
    with pytest.raises(CorruptError):
        read(
            tmp_path,
            build([Member(name=b"w.npy", data=packed, method=8, n_bytes=len(claims), packed_bytes=len(packed))]),
            ".npz",
        )


def test_a_large_deflated_array_in_fortran_order_has_a_problem_and_the_others_are_read(tmp_path: Path) -> None:
    array = np.asfortranarray(np.arange(10_000.0).reshape(100, 100))
    whole = saved(tmp_path, True, ReadLimits(chunk_bytes_max=1000), big=array, small=np.ones(2))
    assert whole.specs["big"].problem is not None
    assert list(whole.values) == ["small"]
    assert np.array_equal(saved(tmp_path, True, ReadLimits(chunk_bytes_max=2000), big=array).values["big"], array)


def test_members_packed_by_other_methods_are_unsupported(tmp_path: Path) -> None:
    path = tmp_path / "packed.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_LZMA) as made:
        made.writestr("w.npy", npy(np.ones(3)))
    with pytest.raises(UnsupportedError):
        read_whole(path)
