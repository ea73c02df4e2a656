import hashlib
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest

from monitor.measure.options import MeasureOptions
from monitor.measure.snapshot import measure_path
from monitor.read.reader import ReadError
from monitor.read.registry import open_path
from storage.records import ProblemKind
from tests.conformance.reader import Arrays, ReaderConformance
from tests.conformance.unit import UnitConformance
from tests.support.frameworks import CleanReader
from tests.support.memory import PEAK_BYTES_MAX, peak_bytes_of_reading
from tests.support.reading import bits, read_whole

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import onnx
    from onnx import TensorProto, helper, numpy_helper


def model(initializers: list[TensorProto], **metadata: str) -> onnx.ModelProto:
    node = helper.make_node("Identity", ["x"], ["y"])
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])]
    made = helper.make_model(helper.make_graph([node], "g", inputs, outputs, initializers), producer_name="tests")
    helper.set_model_props(made, metadata)
    return made


class TestOnnx(ReaderConformance):
    format = "onnx"

    def write(self, path: Path, arrays: Arrays) -> None:
        onnx.save(model([numpy_helper.from_array(array, name) for name, array in arrays.items()]), path)


class TestOnnxExternal(UnitConformance):
    format: ClassVar[str] = "onnx_external"
    needed: ClassVar[tuple[str, ...]] = ("model.onnx",)

    def place(self, directory: Path, request: pytest.FixtureRequest) -> Path:
        weights = np.random.default_rng(3).standard_normal((40, 30)).astype(np.float32)
        made = model(
            [
                numpy_helper.from_array(weights, "w"),
                numpy_helper.from_array(weights[0].astype(np.float16), "half"),
                numpy_helper.from_array(np.arange(3), "small"),
            ],
            step="7",
        )
        onnx.save(
            made,
            directory / "model.onnx",
            save_as_external_data=True,
            location="model.onnx.data",
            size_threshold=50,
        )
        return directory / "model.onnx"


TYPED = {
    "floats": (TensorProto.FLOAT, [1.5, -2.0], np.float32),
    "doubles": (TensorProto.DOUBLE, [1.5, -2.0], np.float64),
    "int64s": (TensorProto.INT64, [1, -(2**63), 3], np.int64),
    "uint64s": (TensorProto.UINT64, [1, 2**64 - 1], np.uint64),
    "int32s": (TensorProto.INT32, [1, -5, 2**31 - 1], np.int32),
    "int8s": (TensorProto.INT8, [1, -128], np.int8),
    "booleans": (TensorProto.BOOL, [True, False], np.bool_),
    "halves": (TensorProto.FLOAT16, [1.5, -2.0], np.float16),
    "complexes": (TensorProto.COMPLEX64, [1 + 2j, -3j], np.complex64),
}


@pytest.mark.parametrize(("kind", "values", "dtype"), TYPED.values(), ids=TYPED.keys())
def test_values_in_typed_fields_are_read(kind: int, values: list[float], dtype: type, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    tensor = helper.make_tensor("w", kind, [len(values)], values)
    assert not tensor.HasField("raw_data")
    onnx.save(model([tensor]), path)
    whole = read_whole(path)
    assert bits(whole.values["w"]) == bits(np.array(values, dtype)) == bits(numpy_helper.to_array(tensor))


def test_bfloat16_float8_and_packed_types(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    tensors = [
        helper.make_tensor("brain", TensorProto.BFLOAT16, [2], [1.5, -2.0]),
        helper.make_tensor("eight", TensorProto.FLOAT8E4M3FN, [2], [1.5, -2.0]),
        helper.make_tensor("four", TensorProto.INT4, [4], [1, -2, 3, 4]),
        TensorProto(name="text", data_type=TensorProto.STRING, dims=[1], string_data=[b"words"]),
    ]
    onnx.save(model(tensors), path)
    whole = read_whole(path)
    assert whole.values["brain"].astype(np.float32).tolist() == [1.5, -2.0]
    assert whole.values["eight"].astype(np.float32).tolist() == [1.5, -2.0]
    assert {"four", "text"}.isdisjoint(whole.values)
    assert whole.specs["four"].problem is not None
    by_name = {tensor.name: tensor for tensor in measure_path(str(path), MeasureOptions()).tensors}
    assert by_name["four"].content_hash is None  # typed fields are not in one piece


@pytest.mark.parametrize("external", [False, True])
def test_packed_types_are_hashed(external: bool, tmp_path: Path) -> None:
    path, raw = tmp_path / "model.onnx", bytes(range(200))
    onnx.save(
        model([helper.make_tensor("four", TensorProto.INT4, [400], raw, raw=True)]),
        path,
        save_as_external_data=external,
        location="model.onnx.data",
        size_threshold=0,
    )
    (four,) = measure_path(str(path), MeasureOptions()).tensors
    assert four.problem is not None
    assert four.content_hash == hashlib.sha256(raw).hexdigest()


def test_step_and_epoch_come_from_the_metadata(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(model([numpy_helper.from_array(np.ones(3), "w")], step="120", epoch="1.5", author="x"), path)
    whole = read_whole(path)
    assert (whole.step, whole.epoch, dict(whole.scalars)) == (120, 1.5, {"step": 120.0, "epoch": 1.5})


@pytest.mark.parametrize("location", ["model.onnx.data", "model.onnx_data", "model.data", None])
def test_values_beside_the_model_are_read(location: str | None, tmp_path: Path, clean_reader: CleanReader) -> None:
    path = tmp_path / "model.onnx"
    weights = np.random.default_rng(0).standard_normal((40, 30)).astype(np.float32)
    made = model([numpy_helper.from_array(weights, "w"), numpy_helper.from_array(np.arange(3), "small")])
    onnx.save(made, path, save_as_external_data=True, location=location, size_threshold=100)
    whole = read_whole(path)
    assert whole.format == "onnx_external"
    np.testing.assert_array_equal(whole.values["w"], weights)
    np.testing.assert_array_equal(whole.values["small"], np.arange(3))
    assert clean_reader.read(path) == ("onnx_external", [])


def _external(entries: dict[str, str]) -> bytes:
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[3], data_location=TensorProto.EXTERNAL)
    for key, value in entries.items():
        tensor.external_data.add(key=key, value=value)
    made: bytes = model([tensor]).SerializeToString()
    return made


@pytest.mark.parametrize("location", ["../secret", "/etc/passwd", "a/../../b", "..", "", "C:\\x", "sub/x.data"])
@pytest.mark.parametrize("beside", [True, False])
def test_a_location_that_leads_elsewhere_is_unsafe(location: str, beside: bool, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(_external({"location": location}))
    if beside:
        (tmp_path / "model.onnx.data").write_bytes(bytes(12))
    with pytest.raises(ReadError) as caught, open_path(str(path)):
        pass
    assert caught.value.kind is ProblemKind.UNSAFE_REFERENCE


@pytest.mark.parametrize(
    ("entries", "kind"),
    [
        ({"offset": "-1"}, ProblemKind.CORRUPT),
        ({"offset": "1e3"}, ProblemKind.CORRUPT),
        ({"length": "8"}, ProblemKind.CORRUPT),
        ({"offset": "9" * 30}, ProblemKind.CORRUPT),
        ({"offset": "4"}, ProblemKind.INCOMPLETE),
    ],
)
def test_a_place_that_is_not_in_the_other_file_is_refused(
    entries: dict[str, str], kind: ProblemKind, tmp_path: Path
) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(_external({"location": "model.onnx.data", **entries}))
    (tmp_path / "model.onnx.data").write_bytes(bytes(12))
    with pytest.raises(ReadError) as caught, open_path(str(path)):
        pass
    assert caught.value.kind is kind


def test_a_link_that_leads_elsewhere_is_not_followed(tmp_path: Path) -> None:
    directory = tmp_path / "models"
    directory.mkdir()
    (tmp_path / "secret").write_bytes(bytes(12))
    (directory / "model.onnx").write_bytes(_external({"location": "model.onnx.data"}))
    (directory / "model.onnx.data").symlink_to(tmp_path / "secret")
    with pytest.raises(ReadError) as caught, open_path(str(directory / "model.onnx")):
        pass
    assert caught.value.kind is ProblemKind.UNSAFE_REFERENCE


def test_a_file_of_an_unknown_name_is_a_problem_of_its_tensors_only(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(_external({"location": "elsewhere.values"}))
    whole = read_whole(path)
    assert "elsewhere.values" in (whole.specs["w"].problem or "")


def _raw(change: Callable[[TensorProto], None]) -> bytes:
    tensor = numpy_helper.from_array(np.ones(3, np.float32), "w")
    change(tensor)
    made: bytes = model([tensor]).SerializeToString()
    return made


def _negative(tensor: TensorProto) -> None:
    tensor.dims[0] = -3


def _large(tensor: TensorProto) -> None:
    tensor.dims.extend([2**62, 2**62])


def _short(tensor: TensorProto) -> None:
    tensor.raw_data = bytes(8)


def _none(tensor: TensorProto) -> None:
    tensor.ClearField("raw_data")


def _twice(tensor: TensorProto) -> None:
    tensor.float_data.extend([1.0, 2.0, 3.0])


def _many(tensor: TensorProto) -> None:
    tensor.dims.extend([1] * 100)


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        *((change, ProblemKind.CORRUPT) for change in (_negative, _large, _short, _none, _twice)),
        (_many, ProblemKind.LIMIT),
    ],
)
def test_an_initializer_that_lies_is_refused(
    change: Callable[[TensorProto], None], kind: ProblemKind, tmp_path: Path
) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(_raw(change))
    with pytest.raises(ReadError) as caught, open_path(str(path)):
        pass
    assert caught.value.kind is kind


@pytest.mark.slow
def test_two_gibibytes_need_the_memory_of_a_chunk(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    n = 2**29 - 2**20  # a protocol buffer has no more than two gibibytes
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[n]).SerializeToString()

    def field(number: int, length: int) -> bytes:
        digits, key = [], number << 3 | 2
        while length >= 0x80:
            digits.append(length & 0x7F | 0x80)
            length >>= 7
        return bytes([key, *digits, length])

    head = tensor + field(9, 4 * n)
    graph = field(5, len(head) + 4 * n) + head
    tail = onnx.ModelProto(opset_import=[helper.make_opsetid("", 20)]).SerializeToString()
    with path.open("wb") as stream:
        stream.write(b"\x08\x0a" + field(7, len(graph) + 4 * n) + graph)
        stream.truncate(stream.tell() + 4 * n)
        stream.seek(0, 2)
        stream.write(tail)
    assert peak_bytes_of_reading(path, n_elements=n) < 250 * 2**20


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_two_gibibytes_beside_the_model_need_the_memory_of_a_chunk(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    tensors = []
    for n in range(4):
        tensor = TensorProto(name=f"w{n}", data_type=TensorProto.FLOAT, dims=[2**14, 2**13])
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in (("location", "model.onnx.data"), ("offset", str(n * 2**29)), ("length", str(2**29))):
            tensor.external_data.add(key=key, value=value)
        tensors.append(tensor)
    path.write_bytes(model(tensors).SerializeToString())
    with (tmp_path / "model.onnx.data").open("wb") as stream:
        stream.truncate(2**31)
    assert peak_bytes_of_reading(path, n_elements=2**29) < PEAK_BYTES_MAX
