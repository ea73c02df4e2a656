"""Checkpoints and SavedModels that TensorFlow wrote, against its own values, and indexes that nobody would write."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from monitor.read.access.protobuf_wire import fields, varint
from monitor.read.reader import CorruptError, LimitError, ReadError, ReadLimits
from monitor.read.registry import open_path
from monitor.read.tensorflow.tensor_bundle import _masked, crc32c
from storage.records import ProblemKind, TensorKind
from tests.conformance.unit import UnitConformance
from tests.support.audit import audited
from tests.support.daemons import clean_environment
from tests.support.memory import PEAK_BYTES_MAX, peak_bytes_of_reading
from tests.support.reading import bits, read_whole

pytestmark = pytest.mark.timeout(300)

MODELS = ["convolutional", "sequence", "mixed"]


def truth(keras_files: Path, name: str) -> dict[str, Any]:
    with np.load(keras_files / f"{name}.truth.npz") as stored:
        return dict(stored)


def assert_equal(read: Any, true: Any) -> None:
    assert read.shape == true.shape
    assert bits(read.astype(true.dtype)) == bits(true)


@pytest.mark.parametrize("name", MODELS)
def test_variables_of_keras_models_have_their_names_values_and_kinds(keras_files: Path, name: str) -> None:
    whole = read_whole(keras_files / f"{name}.tf.index")
    assert whole.format == "tf_checkpoint"
    expected = {key[2:]: array for key, array in truth(keras_files, name).items() if key[:2] in ("v:", "t:")}
    model = {n: s for n, s in whole.specs.items() if s.kind in (TensorKind.PARAMETER, TensorKind.BUFFER)}
    assert {n for n in model if "seed_generator" not in n} == set(expected)
    for variable, array in expected.items():
        assert_equal(whole.values[variable], array)
        assert (model[variable].kind is TensorKind.BUFFER) == ("/moving_" in variable)


@pytest.mark.parametrize("name", MODELS)
def test_the_optimizers_variables_bear_the_names_of_their_parameters(keras_files: Path, name: str) -> None:
    whole = read_whole(keras_files / f"{name}.tf.index")
    states = {key[2:]: array for key, array in truth(keras_files, name).items() if key.startswith("s:")}
    for key, array in states.items():
        parameter, role = key.rsplit(":", 1)
        assert_equal(whole.values[f"optimizer.state.{parameter}.{role}"], array)
    assert len([n for n in whole.specs if n.startswith("optimizer.state.")]) == len(states)


def test_layers_of_a_subclass_are_named_by_its_attributes(keras_files: Path) -> None:
    # TensorFlow notes neither the names of layers nor, of a model that was built by calling it, distinct full names;
    # and of layers in a list only that the optimizer trains them.
    whole = read_whole(keras_files / "subclassed.tf.index")
    true = truth(keras_files, "subclassed")
    listed = [f"trainable_variables/{i}" for i in (2, 3, 4, 5)]
    names = ["z_first/kernel", "z_first/bias", *listed, "a_last/kernel", "a_last/bias"]
    assert {n for n, s in whole.specs.items() if s.kind is TensorKind.PARAMETER} == set(names)
    states = [key for key in true if key.startswith("s:")]
    for name, state in zip(names, states, strict=True):
        parameter = state[2:].rsplit(":", 1)[0]
        assert_equal(whole.values[name], true[f"t:{parameter}"])
        assert_equal(whole.values[f"optimizer.state.{name}.momentum_buffer"], true[state])


def test_a_variable_named_step_is_the_step_and_else_the_optimizers_iterations(keras_files: Path) -> None:
    assert read_whole(keras_files / "mixed.tf.index").step == 42
    assert read_whole(keras_files / "saved").step == 2
    whole = read_whole(keras_files / "everything.index")
    assert (whole.step, whole.epoch) == (77, 3.5)
    assert whole.specs["global_step"].kind is TensorKind.OTHER


def test_every_type_is_read_and_text_is_no_tensor(keras_files: Path) -> None:
    whole = read_whole(keras_files / "everything.index")
    for name, array in truth(keras_files, "everything").items():
        assert whole.specs[f"kinds/{name}"].dtype == name
        assert_equal(whole.values[f"kinds/{name}"], array)
    assert whole.specs["brain"].dtype == "bfloat16"
    assert whole.values["brain"].astype(np.float32).tolist() == [[-3, -2, -1, 0], [1, 2, 3, 4]]
    assert whole.specs["none"].shape == (0, 3)
    assert [float(whole.values[f"many/{i}"]) for i in range(300)] == list(range(300))
    assert not any("words" in name for name in whole.specs)


def test_a_checkpoint_of_tensorflow_one_is_read_by_its_names(keras_files: Path) -> None:
    whole = read_whole(keras_files / "one" / "model.ckpt-1.index")
    assert whole.step == 1
    assert_equal(whole.values["dense/kernel"], truth(keras_files, "one")["kernel"])
    kinds = {n: s.kind for n, s in whole.specs.items()}
    assert kinds["dense/kernel"] is TensorKind.PARAMETER
    assert kinds["dense/kernel/Adam"] is kinds["dense/kernel/Adam_1"] is TensorKind.OPTIMIZER
    assert kinds["global_step"] is TensorKind.OTHER


def test_saved_models_are_read_and_a_second_copy_is_no_weight(keras_files: Path) -> None:
    expected = {key[2:]: array for key, array in truth(keras_files, "convolutional").items() if key[:2] in ("v:", "t:")}
    for directory in ("saved", "exported"):
        whole = read_whole(keras_files / directory)
        assert whole.format == "saved_model"
        for variable, array in expected.items():
            assert_equal(whole.values[variable], array)
        weights = {n for n, s in whole.specs.items() if s.kind is TensorKind.PARAMETER}
        assert weights == {n for n in expected if "/moving_" not in n}


def test_reading_imports_runs_and_writes_nothing(keras_files: Path) -> None:
    read_whole(keras_files / "mixed.tf.index")
    with audited() as events:
        read_whole(keras_files / "mixed.tf.index")
    assert events == []
    code = (
        "import sys\nfrom monitor.read.registry import open_path\n"
        f"with open_path({str(keras_files / 'saved')!r}) as opened:\n    assert opened.checkpoint.tensors\n"
        "assert not {'keras', 'tensorflow', 'h5py', 'google.protobuf'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], env=clean_environment(), check=True, timeout=60)


class TestTfCheckpoint(UnitConformance):
    format = "tf_checkpoint"
    needed = ("ckpt-3.index", "ckpt-3.data-00000-of-00001")

    def place(self, directory: Path, request: pytest.FixtureRequest) -> Path:
        written: Path = request.getfixturevalue("keras_files")
        for suffix in ("index", "data-00000-of-00001"):
            shutil.copy2(written / f"mixed.tf.{suffix}", directory / f"ckpt-3.{suffix}")
        (directory / "checkpoint").write_text('model_checkpoint_path: "ckpt-3"\n')
        return directory / "ckpt-3.index"


class TestSavedModel(UnitConformance):
    format = "saved_model"
    needed = ("variables/variables.index", "variables/variables.data-00000-of-00001")

    def place(self, directory: Path, request: pytest.FixtureRequest) -> Path:
        written: Path = request.getfixturevalue("keras_files")
        return Path(shutil.copytree(written / "saved", directory / "saved"))


@pytest.fixture
def group(keras_files: Path, tmp_path: Path) -> Path:
    """Return the index of a copy that may be damaged."""
    for suffix in ("index", "data-00000-of-00001"):
        shutil.copy2(keras_files / f"mixed.tf.{suffix}", tmp_path / f"ckpt-3.{suffix}")
    return tmp_path / "ckpt-3.index"


def problem(path: Path, limits: ReadLimits | None = None) -> ProblemKind:
    with pytest.raises(ReadError) as caught:
        read_whole(path, limits)
    assert 0 < len(str(caught.value)) <= 500
    assert str(caught.value).isprintable()
    return caught.value.kind


def data_of(index: Path) -> Path:
    return index.with_name(index.name.replace(".index", ".data-00000-of-00001"))


def test_an_index_cut_anywhere_is_not_yet_whole(group: Path) -> None:
    raw = group.read_bytes()
    for n in sorted({*range(64), *range(0, len(raw), max(1, len(raw) // 60)), len(raw) - 1}):
        group.write_bytes(raw[:n])
        assert problem(group) is ProblemKind.INCOMPLETE, n


def test_values_cut_anywhere_are_not_yet_whole(group: Path) -> None:
    raw = data_of(group).read_bytes()
    for n in range(0, len(raw), max(1, len(raw) // 40)):
        data_of(group).write_bytes(raw[:n])
        assert problem(group) is ProblemKind.INCOMPLETE, n


def test_values_without_an_index_and_an_index_without_values_are_not_whole(group: Path) -> None:
    raw = group.read_bytes()
    group.unlink()
    assert problem(group) is ProblemKind.INCOMPLETE
    group.write_bytes(raw)
    data_of(group).rename(data_of(group).with_name("ckpt-3.data-00000-of-00002"))
    assert problem(group) is ProblemKind.INCOMPLETE


def test_values_of_another_save_than_the_index_are_noticed(group: Path) -> None:
    raw = bytearray(data_of(group).read_bytes())
    data_of(group).write_bytes(bytes(b ^ 1 for b in raw))
    os.utime(group, ns=(10**18, 10**18))
    assert problem(group) is ProblemKind.INCOMPLETE
    os.utime(data_of(group), ns=(10**17, 10**17))
    assert problem(group) is ProblemKind.CORRUPT


def test_a_flipped_byte_of_the_index_is_refused(group: Path) -> None:
    raw = group.read_bytes()
    chooser = np.random.default_rng(3)
    for _ in range(200):
        changed = bytearray(raw)
        changed[int(chooser.integers(len(raw)))] ^= int(chooser.integers(1, 256))
        group.write_bytes(changed)
        with contextlib.suppress(ReadError):
            read_whole(group)


def test_writing_meanwhile_is_noticed(group: Path) -> None:
    with open_path(str(group)) as opened:
        opened.file.verify_unchanged()
        os.utime(data_of(group), ns=(1, 1))
        with pytest.raises(ReadError) as caught:
            opened.file.verify_unchanged()
    assert caught.value.kind is ProblemKind.CHANGED


def number(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def entry(dtype: int = 1, shape: tuple[int, ...] = (2,), **places: int) -> bytes:
    """Return an entry as TensorFlow writes one; `places` are shard, offset, size and checksum."""
    dims = b"".join(b"\x12" + number(len(d)) + d for d in (b"\x08" + number(s % 2**64) for s in shape))
    out = b"\x08" + number(dtype) + b"\x12" + number(len(dims)) + dims
    for field, key in ((3, "shard"), (4, "offset"), (5, "size")):
        out += bytes([field << 3]) + number(places.get(key, 8 if key == "size" else 0) % 2**64)
    return out + b"\x35" + places.get("checksum", 0).to_bytes(4, "little")


def block(entries: list[tuple[bytes, bytes]]) -> bytes:
    body = b"".join(b"\x00" + number(len(k)) + number(len(v)) + k + v for k, v in entries)
    body += (0).to_bytes(4, "little") + (1).to_bytes(4, "little")
    return body + b"\0" + _masked(crc32c(body + b"\0")).to_bytes(4, "little")


def table(entries: list[tuple[bytes, bytes]], header: bytes = b"\x08\x01") -> bytes:
    data = block([(b"", header), *entries])
    handle = number(0) + number(len(data) - 5)
    index = block([(b"\xff", handle)])
    footer = (number(0) + number(0) + number(len(data)) + number(len(index) - 5)).ljust(40, b"\0")
    return data + index + footer + 0xDB4775248B80FB57.to_bytes(8, "little")


def made(
    tmp_path: Path, entries: list[tuple[bytes, bytes]], data: bytes = bytes(8), header: bytes = b"\x08\x01"
) -> Path:
    index = tmp_path / "made-1.index"
    index.write_bytes(table(entries, header))
    data_of(index).write_bytes(data)
    return index


def checked(data: bytes) -> int:
    return _masked(crc32c(data))


def test_an_index_made_by_hand_is_read(tmp_path: Path) -> None:
    data = np.array([1.5, -2.5], "<f4").tobytes()
    whole = read_whole(made(tmp_path, [(b"w", entry(checksum=checked(data)))], data))
    assert whole.values["w"].tolist() == [1.5, -2.5]
    swapped = np.array([1.5, -2.5], ">f4").tobytes()
    header = b"\x08\x01\x10\x01"
    whole = read_whole(made(tmp_path, [(b"w", entry(checksum=checked(swapped)))], swapped, header))
    assert whole.values["w"].tolist() == [1.5, -2.5]


@pytest.mark.parametrize(
    ("entries", "kind"),
    [
        ([(b"w", entry(shape=(3,)))], ProblemKind.CORRUPT),
        ([(b"w", entry(shape=(-1,)))], ProblemKind.CORRUPT),
        ([(b"w", entry(shape=(2**62, 4)))], ProblemKind.CORRUPT),
        ([(b"w", entry(shape=(1,) * 65))], ProblemKind.LIMIT),
        ([(b"w", entry(shard=1))], ProblemKind.CORRUPT),
        ([(b"w", entry(shard=-1))], ProblemKind.CORRUPT),
        ([(b"w", entry(offset=-8))], ProblemKind.CORRUPT),
        ([(b"w", entry(size=-8))], ProblemKind.CORRUPT),
        ([(b"w", entry(offset=2**62))], ProblemKind.INCOMPLETE),
        ([(b"w", entry(checksum=1))], ProblemKind.CORRUPT),
        ([(b"w", entry()), (b"a", entry())], ProblemKind.CORRUPT),
        ([(b"w", entry()), (b"w", entry())], ProblemKind.CORRUPT),
        ([(b"w", b"\x08")], ProblemKind.CORRUPT),
        ([(b"w", b"\x0a\xff\xff\xff\xff\x0f")], ProblemKind.CORRUPT),
        ([(b"w", b"\xff" * 12)], ProblemKind.CORRUPT),
        ([(b"w", b"\x0b\x0c")], ProblemKind.CORRUPT),
    ],
)
def test_entries_that_lie_are_refused(tmp_path: Path, entries: list[tuple[bytes, bytes]], kind: ProblemKind) -> None:
    index = made(tmp_path, entries)
    os.utime(data_of(index), ns=(1, 1))
    assert problem(index) is kind


@pytest.mark.parametrize("header", [b"\x08\x00", b"\x08" + number(2**40), b"\x08" + number(2**64 - 1)])
def test_impossible_numbers_of_files_are_refused(tmp_path: Path, header: bytes) -> None:
    assert problem(made(tmp_path, [], header=header)) is ProblemKind.LIMIT


def test_what_is_no_number_and_what_is_sliced_has_a_problem_of_its_own(tmp_path: Path) -> None:
    good = entry(checksum=checked(bytes(8)))
    entries = [(b"r", entry(dtype=20)), (b"s", entry() + b"\x3a\x00"), (b"u", entry(dtype=99)), (b"w", good)]
    whole = read_whole(made(tmp_path, entries))
    assert {n for n, s in whole.specs.items() if s.problem} == {"r", "s", "u"}
    assert set(whole.values) == {"w"}


def test_more_tensors_than_the_limit_are_refused(group: Path) -> None:
    assert problem(group, ReadLimits(tensors_max=3)) is ProblemKind.LIMIT


def test_the_checksum_is_the_one_that_tensorflow_uses() -> None:
    assert crc32c(b"123456789") == 0xE3069283


@given(st.binary(max_size=200))
def test_any_bytes_are_fields_or_corrupt(data: bytes) -> None:
    try:
        assert all(number > 0 for number, _ in fields(data))
    except CorruptError:
        return


@given(st.integers(0, 2**64 - 1))
def test_a_number_is_read_as_it_was_written(value: int) -> None:
    assert varint(number(value), 0) == (value, len(number(value)))


@given(st.binary(min_size=1, max_size=300))
def test_a_graph_of_any_bytes_is_named_or_refused(data: bytes) -> None:
    from monitor.read.tensorflow.object_graph import name_keys, parse_graph

    try:
        name_keys(parse_graph(data))
    except (CorruptError, LimitError):
        return


@pytest.mark.slow
def test_two_gibibytes_need_the_memory_of_a_chunk(tmp_path: Path) -> None:
    size = 2**31
    index = made(tmp_path, [(b"w", entry(shape=(2**29,), size=size))], b"")
    os.truncate(data_of(index), size)
    assert peak_bytes_of_reading(index, n_elements=2**29) < 250 * 2**20


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_two_gibibytes_in_a_saved_model_need_the_memory_of_a_chunk(tmp_path: Path) -> None:
    size = 2**31
    (tmp_path / "variables").mkdir()
    index = made(tmp_path / "variables", [(b"w", entry(shape=(2**29,), size=size))], b"")
    for path in (index, data_of(index)):
        path.rename(path.with_name(path.name.replace("made-1", "variables")))
    os.truncate(tmp_path / "variables" / "variables.data-00000-of-00001", size)
    (tmp_path / "saved_model.pb").write_bytes(b"\x08\x01")  # nobody opens it
    assert peak_bytes_of_reading(tmp_path, n_elements=2**29) < PEAK_BYTES_MAX
