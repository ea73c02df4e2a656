from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from monitor.read.reader import CorruptError, IncompleteError, LimitError, ReadError, ReadLimits
from storage.records import TensorKind
from tests.support.reading import Whole, bits, read_whole


def made(header: object, data: bytes = b"", *, raw: bytes | None = None, length: int | None = None) -> bytes:
    text = json.dumps(header).encode() if raw is None else raw
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def read(tmp_path: Path, data: bytes, limits: ReadLimits | None = None) -> Whole:
    path = tmp_path / "made.safetensors"
    path.write_bytes(data)
    return read_whole(path, limits)


def entry(begin: int, end: int, shape: list[Any] | None = None, dtype: str = "F32") -> dict[str, object]:
    return {"dtype": dtype, "shape": [(end - begin) // 4] if shape is None else shape, "data_offsets": [begin, end]}


@pytest.mark.parametrize(
    "dtype",
    [
        *(torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.complex64, torch.bool),
        *(torch.int8, torch.int16, torch.int32, torch.int64, torch.uint8, torch.uint16, torch.uint32, torch.uint64),
        *(torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz, torch.float8_e8m0fnu),
    ],
    ids=str,
)
def test_values_of_every_dtype_are_those_that_were_saved(tmp_path: Path, dtype: torch.dtype) -> None:
    name = str(dtype).removeprefix("torch.")
    raw = torch.randint(0, 2 if dtype is torch.bool else 256, (24 * dtype.itemsize,), dtype=torch.uint8)
    save_file({"w": raw.view(dtype).reshape(4, 6)}, tmp_path / "x.safetensors")
    whole = read_whole(tmp_path / "x.safetensors")
    assert (whole.specs["w"].dtype, whole.specs["w"].shape) == (name, (4, 6))
    assert whole.values["w"].dtype == np.dtype(getattr(ml_dtypes, name, name))
    assert bits(whole.values["w"]) == bytes(raw.numpy())


def test_numbers_in_the_metadata_become_scalars_and_step(tmp_path: Path) -> None:
    metadata = {
        "step": "1200",
        "epoch": "2.5",
        "lr": "1e-4",
        "format": "pt",
        "bad": "nan",
        "huge": "9" * 60,
        "inf": "1e999",
    }
    save_file({"w": torch.ones(2)}, tmp_path / "x.safetensors", metadata=metadata)
    whole = read_whole(tmp_path / "x.safetensors")
    assert whole.step == 1200
    assert whole.epoch == 2.5
    assert dict(whole.scalars) == {"step": 1200.0, "epoch": 2.5, "lr": 1e-4}


def test_kinds_follow_from_the_names(tmp_path: Path) -> None:
    tensors = {"w": torch.ones(2), "bn.running_mean": torch.ones(2), "optimizer.state.0.exp_avg": torch.ones(2)}
    save_file(tensors, tmp_path / "x.safetensors")
    kinds = {name: spec.kind for name, spec in read_whole(tmp_path / "x.safetensors").specs.items()}
    assert kinds == {
        "w": TensorKind.PARAMETER,
        "bn.running_mean": TensorKind.BUFFER,
        "optimizer.state.0.exp_avg": TensorKind.OPTIMIZER,
    }


def test_elements_packed_within_bytes_have_a_problem_and_the_others_are_read(tmp_path: Path) -> None:
    header = {"a": entry(0, 4), "b": entry(4, 8, [8], "F4"), "c": entry(8, 14, [2, 4], "F6_E2M3")}
    whole = read(tmp_path, made(header, struct.pack("<f", 7) + bytes(10)))
    assert whole.values["a"].tolist() == [7]
    assert whole.specs["b"].problem is not None
    assert (whole.specs["b"].dtype, whole.specs["b"].shape) == ("f4", (8,))
    assert whole.specs["c"].problem is not None


def test_tensors_come_in_the_order_of_their_place(tmp_path: Path) -> None:
    whole = read(tmp_path, made({"z": entry(0, 4), "e": entry(4, 4), "a": entry(4, 12)}, bytes(12)))
    assert list(whole.specs) == ["z", "e", "a"]


def test_a_header_padded_with_spaces_is_read(tmp_path: Path) -> None:
    raw = json.dumps({"a": entry(0, 4)}).encode() + b" " * 13
    assert list(read(tmp_path, made(None, bytes(4), raw=raw)).specs) == ["a"]


def test_a_file_without_tensors_is_whole(tmp_path: Path) -> None:
    assert read(tmp_path, made({})).specs == {}


ONE = {"a": entry(0, 4)}
CASES: dict[str, tuple[bytes, type[ReadError]]] = {
    "a header longer than the file": (made(ONE, length=10_000), IncompleteError),
    "a header of 2^63 bytes": (made(ONE, length=2**63), LimitError),
    "a header over the limit": (made(ONE, length=100_000_001), LimitError),
    "no header yet": (bytes(8), IncompleteError),
    "only zeros yet": (bytes(5000), IncompleteError),
    "a length only": (struct.pack("<Q", 40), IncompleteError),
    "fewer bytes than the tensors need": (made(ONE, bytes(3)), IncompleteError),
    "no data": (made(ONE), IncompleteError),
    "bytes after the last tensor": (made(ONE, bytes(5)), CorruptError),
    "an overlap": (made({"a": entry(0, 8), "b": entry(4, 12)}, bytes(12)), CorruptError),
    "a gap": (made({"a": entry(0, 4), "b": entry(8, 12)}, bytes(12)), CorruptError),
    "a beginning after zero": (made({"a": entry(4, 8)}, bytes(8)), CorruptError),
    "reversed places": (made({"a": {**entry(0, 4), "data_offsets": [4, 0]}}, bytes(4)), CorruptError),
    "a negative place": (made({"a": {**entry(0, 4), "data_offsets": [-4, 0]}}, bytes(4)), CorruptError),
    "three places": (made({"a": {**entry(0, 4), "data_offsets": [0, 2, 4]}}, bytes(4)), CorruptError),
    "a place that is a truth value": (made({"a": {**entry(0, 4), "data_offsets": [False, 4]}}, bytes(4)), CorruptError),
    "a place that is a float": (made({"a": {**entry(0, 4), "data_offsets": [0, 4.0]}}, bytes(4)), CorruptError),
    "a shape that needs more": (made({"a": entry(0, 4, [2])}, bytes(4)), CorruptError),
    "a shape that needs less": (
        made({"a": entry(0, 8, [1])}, bytes(8)),
        CorruptError,
    ),
    "a product beyond 64 bits": (made({"a": entry(0, 4, [2**40, 2**40])}, bytes(4)), CorruptError),
    "a negative size": (made({"a": entry(0, 4, [-1, -1])}, bytes(4)), CorruptError),
    "a size that is text": (made({"a": entry(0, 4, ["1"])}, bytes(4)), CorruptError),
    "an unknown dtype": (made({"a": entry(0, 4, [1], "F33")}, bytes(4)), CorruptError),
    "a dtype that is none": (made({"a": {**entry(0, 4), "dtype": 3}}, bytes(4)), CorruptError),
    "half a byte": (made({"a": entry(0, 2, [3], "F4")}, bytes(2)), CorruptError),
    "a missing key": (made({"a": {"dtype": "F32", "shape": [1]}}, bytes(4)), CorruptError),
    "a further key": (made({"a": {**entry(0, 4), "more": 1}}, bytes(4)), CorruptError),
    "an entry that is a list": (made({"a": [1]}, bytes(4)), CorruptError),
    "a duplicate name": (
        made(None, bytes(8), raw=b'{"a":%s,"a":%s}' % (_a := json.dumps(entry(0, 4)).encode(), _a)),
        CorruptError,
    ),
    "a duplicate key in an entry": (
        made(None, bytes(4), raw=b'{"a":{"dtype":"F32","dtype":"F32","shape":[1],"data_offsets":[0,4]}}'),
        CorruptError,
    ),
    "a list for a header": (made([1, 2]), CorruptError),
    "JSON nested without end": (made(None, raw=b'{"a":' + b"[" * 100_000), CorruptError),
    "an integer of ten thousand digits": (made(None, raw=b'{"a":' + b"1" * 10_000 + b"}"), CorruptError),
    "NaN": (made(None, raw=b'{"__metadata__":NaN}'), CorruptError),
    "a byte order mark": (made(None, raw=b"\xef\xbb\xbf{}"), CorruptError),
    "a leading space": (made(None, raw=b" {}"), CorruptError),
    "UTF-16": (made(None, raw="{}".encode("utf-16-le")), CorruptError),
    "broken UTF-8": (made(None, raw=b'{"\xff":1}'), CorruptError),
    "cut JSON": (made(None, raw=b'{"a":'), CorruptError),
    "metadata that is no map": (made({"__metadata__": [1]}), CorruptError),
    "metadata that is no text": (made({"__metadata__": {"a": 1}}), CorruptError),
    "too many dimensions": (made({"a": entry(0, 4, [1] * 65)}, bytes(4)), LimitError),
}


@pytest.mark.parametrize("case", CASES)
def test_a_file_that_breaks_a_rule_is_refused(tmp_path: Path, case: str) -> None:
    data, expected = CASES[case]
    with pytest.raises(ReadError) as caught:
        read(tmp_path, data)
    assert type(caught.value) is expected
    assert str(caught.value).isprintable()


def test_the_limits_hold_at_their_value_and_not_beyond(tmp_path: Path) -> None:
    data = made({"a": entry(0, 4), "b": entry(4, 8)}, bytes(8))
    n_header = len(data) - 16
    assert len(read(tmp_path, data, ReadLimits(tensors_max=2, header_bytes_max=n_header)).specs) == 2
    with pytest.raises(LimitError):
        read(tmp_path, data, ReadLimits(tensors_max=1))
    with pytest.raises(LimitError):
        read(tmp_path, data, ReadLimits(header_bytes_max=n_header - 1))


@pytest.mark.parametrize("name", ["", "\n<script>", '"', "\u202e", "\0", "x" * 5000, "'; DROP TABLE", "é"])
def test_any_name_is_made_printable(tmp_path: Path, name: str) -> None:
    (got,) = read(tmp_path, made({name: entry(0, 4)}, bytes(4))).specs
    assert got.isprintable()
    assert 0 < len(got) <= 1024


def test_names_that_become_equal_stay_two_tensors(tmp_path: Path) -> None:
    whole = read(tmp_path, made({"\n": entry(0, 4), "\\x0a": entry(4, 8)}, struct.pack("<2f", 1, 2)))
    assert [value.tolist() for value in whole.values.values()] == [[1], [2]]


def test_a_growing_file_is_incomplete_until_it_is_whole(tmp_path: Path) -> None:
    data = made({"a": entry(0, 400)}, bytes(400))
    for n in (0, 4, 20, len(data) - 400, len(data) - 1):
        with pytest.raises(IncompleteError):
            read(tmp_path, data[:n])
    assert read(tmp_path, data).values["a"].size == 100
