import hashlib
import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import ml_dtypes
import numpy as np
import pytest

from monitor.commands.measuring import compare_files
from monitor.measure.codec import measured_from_json, measured_to_json
from monitor.measure.options import MeasureOptions
from monitor.measure.snapshot import measure_path
from monitor.read.reader import ReadError, ReadLimits
from monitor.read.registry import open_path
from storage.records import ProblemKind
from tests.conformance.reader import Arrays, ReaderConformance
from tests.support.memory import peak_bytes_of_reading
from tests.support.reading import bits, read_whole


def writer(path: Path, *, big_endian: bool = False) -> gguf.GGUFWriter:
    order = gguf.GGUFEndian.BIG if big_endian else gguf.GGUFEndian.LITTLE
    return gguf.GGUFWriter(path, "llama", endianess=order)


def finish(made: gguf.GGUFWriter) -> None:
    made.write_header_to_file()
    made.write_kv_data_to_file()
    made.write_tensors_to_file()
    made.close()


class TestGguf(ReaderConformance):
    format = "gguf"

    def arrays(self) -> Arrays:
        arrays = super().arrays()  # there is no type for booleans and unsigned integers
        arrays["mask"] = arrays["mask"].astype(np.int8)
        arrays["small"] = arrays["small"].astype(np.int16)
        del arrays["nothing"]
        return arrays

    def write(self, path: Path, arrays: Arrays) -> None:
        made = writer(path)
        for name, array in arrays.items():
            made.add_tensor(name, np.ascontiguousarray(array).reshape(array.shape))
        finish(made)


def test_keys_become_scalars_and_the_longest_tokens_are_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    made = writer(path)
    made.add_uint32("llama.block_count", 2)
    made.add_float32("llama.rope.freq_base", 10000.0)
    made.add_bool("tokenizer.add_bos", True)
    made.add_token_list([f"token {i}" for i in range(10_000)])
    made.add_array("llama.heads", [1, 2, 3])
    made.add_uint64("training.step", 77)
    made.add_tensor("w", np.ones((2, 3), np.float32))
    finish(made)
    whole = read_whole(path)
    assert whole.step == 77
    assert whole.scalars["llama.block_count"] == 2.0
    assert whole.scalars["llama.rope.freq_base"] == 10000.0
    assert whole.scalars["tokenizer.add_bos"] == 1.0


def test_bfloat16_is_measured_and_quantised_types_are_sized(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    weights = np.random.default_rng(0).standard_normal((8, 64)).astype(np.float32)
    half = weights.astype(ml_dtypes.bfloat16)
    quantised = gguf.quants.quantize(weights, gguf.GGMLQuantizationType.Q8_0)
    made = writer(path)
    made.add_tensor("half", half.view(np.uint8), raw_dtype=gguf.GGMLQuantizationType.BF16)
    made.add_tensor("blocks", quantised, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    made.add_tensor("after", weights)
    finish(made)
    whole = read_whole(path)
    assert bits(whole.values["half"]) == bits(half)
    blocks = whole.specs["blocks"]
    assert (blocks.dtype, blocks.shape, blocks.problem) == (
        "q8_0",
        (8, 64),
        "quantised (Q8_0): sized and hashed, not measured",
    )
    np.testing.assert_array_equal(whole.values["after"], weights)


def _quantised(path: Path, weights: dict[str, np.ndarray[Any, Any]]) -> Path:
    made = writer(path)
    for name, values in weights.items():
        blocks = gguf.quants.quantize(values, gguf.GGMLQuantizationType.Q4_0)
        made.add_tensor(name, blocks, raw_dtype=gguf.GGMLQuantizationType.Q4_0)
    made.add_tensor("norm", np.ones(4, np.float32))
    finish(made)
    return path


@pytest.mark.parametrize("chunk_bytes", [1024, 2**20])
def test_quantised_types_are_hashed_as_the_library_reads_them(chunk_bytes: int, tmp_path: Path) -> None:
    path = _quantised(tmp_path / "a.gguf", {"blocks": np.random.default_rng(0).standard_normal((64, 256), np.float32)})
    theirs = {t.name: t.data.tobytes() for t in gguf.GGUFReader(path).tensors}
    measured = measure_path(str(path), MeasureOptions(chunk_bytes=chunk_bytes))
    again = measured_from_json(json.loads(json.dumps(measured_to_json(measured))))
    for tensors in (measured.tensors, again.tensors):
        blocks, norm = tensors
        assert blocks.content_hash == hashlib.sha256(theirs["blocks"]).hexdigest()
        assert (blocks.mean, blocks.norm_l2) == (None, None)
        assert norm.content_hash is None
    assert measured.bytes_read >= len(theirs["blocks"])


def test_a_changed_block_changes_the_difference_and_the_others_are_the_same(tmp_path: Path) -> None:
    weights = {n: np.random.default_rng(i).standard_normal((8, 64), np.float32) for i, n in enumerate("ab")}
    old = _quantised(tmp_path / "old.gguf", weights)
    same = _quantised(tmp_path / "same.gguf", weights)
    weights["b"][3, 5] += 4.0
    new = _quantised(tmp_path / "new.gguf", weights)
    equal, differing = compare_files(str(old), str(same)), compare_files(str(old), str(new))
    assert equal.identical
    assert [(t.name, t.relation.value) for t in differing.tensors] == [
        ("a", "same"),
        ("b", "changed"),
        ("norm", "same"),
    ]
    assert differing.tensors[1].note == "q4_0 elements, of which only the hash is known"


def test_the_block_sizes_are_those_of_the_library() -> None:
    from monitor.read.formats.gguf import _BLOCKS, _PLAIN

    for number, (per_block, block_bytes) in gguf.GGML_QUANT_SIZES.items():
        if number in _BLOCKS:
            assert _BLOCKS[number] == (number.name.lower(), per_block, block_bytes)
        else:
            assert per_block == 1
            assert number in _PLAIN


def test_big_endian_files_are_read_in_their_own_order(tmp_path: Path) -> None:
    path = tmp_path / "big.gguf"
    made = writer(path, big_endian=True)
    made.add_uint32("general.count", 258)
    made.add_tensor("w", np.arange(6, dtype=np.float32).reshape(2, 3))
    finish(made)
    whole = read_whole(path)
    assert whole.scalars["general.count"] == 258
    np.testing.assert_array_equal(whole.values["w"], np.arange(6, dtype=np.float32).reshape(2, 3))


def _text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


def _tensor(name: str = "w", shape: tuple[int, ...] = (8,), kind: int = 0, offset: int = 0) -> bytes:
    return _text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


def _file(*parts: bytes, n_tensors: int = 1, n_keys: int = 0, version: int = 3, data: int = 32) -> bytes:
    head = b"GGUF" + struct.pack("<IQQ", version, n_tensors, n_keys) + b"".join(parts)
    return head + bytes(-len(head) % 32) + bytes(data)


def hostile() -> Iterator[object]:
    alignment = _text("general.alignment") + struct.pack("<II", 4, 24)
    a_key = _text("a") + struct.pack("<IB", 0, 1)
    yield pytest.param(_file(_tensor(), version=1), ProblemKind.UNSUPPORTED, id="version 1")
    yield pytest.param(_file(_tensor(), n_tensors=2**60), ProblemKind.LIMIT, id="too many tensors")
    yield pytest.param(_file(_tensor(), n_keys=2**60), ProblemKind.INCOMPLETE, id="too many keys")
    yield pytest.param(_file(_tensor(shape=(2**62, 4))), ProblemKind.CORRUPT, id="a product over 64 bits")
    yield pytest.param(_file(_tensor(shape=(2**40,))), ProblemKind.INCOMPLETE, id="a tensor beyond the file")
    yield pytest.param(_file(_tensor(offset=32), data=64), ProblemKind.CORRUPT, id="a gap")
    yield pytest.param(_file(_tensor(), _tensor("v"), n_tensors=2), ProblemKind.CORRUPT, id="an overlap")
    yield pytest.param(
        _file(_tensor(), _tensor(offset=32), n_tensors=2, data=64), ProblemKind.AMBIGUOUS, id="one name twice"
    )
    yield pytest.param(_file(a_key, a_key, _tensor(), n_keys=2), ProblemKind.AMBIGUOUS, id="one key twice")
    yield pytest.param(_file(alignment, _tensor(), n_keys=1), ProblemKind.CORRUPT, id="alignment of 24")
    yield pytest.param(_file(_tensor(kind=99)), ProblemKind.UNSUPPORTED, id="an unknown type")
    yield pytest.param(_file(_tensor(kind=8)), ProblemKind.CORRUPT, id="a part of a block")
    yield pytest.param(_file(_tensor(shape=(1,) * 65)), ProblemKind.LIMIT, id="too many dimensions")
    nested = _text("a") + struct.pack("<IIQ", 9, 9, 1)
    yield pytest.param(_file(nested, _tensor(), n_keys=1), ProblemKind.UNSUPPORTED, id="nested arrays")
    texts = _text("a") + struct.pack("<IIQ", 9, 8, 2**60)
    yield pytest.param(_file(texts, _tensor(), n_keys=1), ProblemKind.INCOMPLETE, id="endless texts")
    unknown = _text("a") + struct.pack("<I", 77)
    yield pytest.param(_file(unknown, _tensor(), n_keys=1), ProblemKind.CORRUPT, id="an unknown value")
    long = struct.pack("<Q", 2**20) + bytes(2**20)
    yield pytest.param(_file(long, n_keys=1), ProblemKind.LIMIT, id="a long key")


@pytest.mark.parametrize(("data", "kind"), list(hostile()))
def test_a_header_that_breaks_a_rule_is_refused(data: bytes, kind: ProblemKind, tmp_path: Path) -> None:
    path = tmp_path / "evil.gguf"
    path.write_bytes(data)
    with pytest.raises(ReadError) as caught, open_path(str(path)):
        pass
    assert caught.value.kind is kind


def test_a_header_longer_than_the_limit_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(_file(*[_text(f"{i:0100}") + struct.pack("<IB", 0, 1) for i in range(100)], _tensor(), n_keys=100))
    with pytest.raises(ReadError) as caught, open_path(str(path), ReadLimits(header_bytes_max=1000)):
        pass
    assert caught.value.kind is ProblemKind.LIMIT


@pytest.mark.slow
def test_two_gibibytes_need_the_memory_of_a_chunk(tmp_path: Path) -> None:
    path = tmp_path / "large.gguf"
    n = 2**29
    with path.open("wb") as stream:
        stream.write(_file(_tensor(shape=(n,)), data=0))
        stream.truncate(stream.tell() + 4 * n)
    assert peak_bytes_of_reading(path, n_elements=n) < 250 * 2**20
