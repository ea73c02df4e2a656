"""Files that Keras itself wrote, in all its ways, against the values that Keras itself had."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt
import pytest

from monitor.measure.optimizer import gradient_estimate
from monitor.measure.options import MeasureOptions
from monitor.measure.snapshot import measure_path
from monitor.read.reader import ReadError
from storage.records import ProblemKind, TensorKind
from tests.conformance.reader import Arrays, ReaderConformance
from tests.conformance.unit import UnitConformance
from tests.support.audit import audited
from tests.support.daemons import clean_environment
from tests.support.memory import PEAK_BYTES_MAX, peak_bytes_of_reading
from tests.support.reading import Whole, bits, read_whole
from tests.support.sparse_files import sparse_hdf5

pytestmark = pytest.mark.timeout(300)

WRITTEN = [
    *((name, suffix) for name in ("convolutional", "sequence") for suffix in (".weights.h5", ".keras", ".h5")),
    *((name, suffix) for name in ("subclassed", "mixed") for suffix in (".weights.h5", ".keras")),
]
# Not where only a configuration would tell: which layers are frozen, in which order a subclass made its layers, and
# which of its two further lists RMSprop kept.
UNTOLD = {
    ("convolutional", ".weights.h5"),
    ("mixed", ".weights.h5"),
    ("subclassed", ".weights.h5"),
    ("subclassed", ".keras"),
}
NAMED_STATE = [pair for pair in WRITTEN if pair not in UNTOLD]


TF_KERAS = Path(__file__).parents[3] / "golden" / "tf_keras"
Truth = dict[str, npt.NDArray[Any]]


def truth(keras_files: Path, name: str) -> Truth:
    with np.load(keras_files / f"{name}.truth.npz") as stored:
        return dict(stored)


def assert_equal(read: npt.NDArray[Any], true: npt.NDArray[Any]) -> None:
    assert read.shape == true.shape
    assert bits(read.astype(true.dtype)) == bits(true)


@pytest.mark.parametrize(("name", "suffix"), WRITTEN)
def test_variables_have_the_names_shapes_values_and_kinds_of_keras(keras_files: Path, name: str, suffix: str) -> None:
    whole = read_whole(keras_files / f"{name}{suffix}")
    true = truth(keras_files, name)
    expected = {key[2:]: array for key, array in true.items() if key[:2] in ("v:", "t:")}
    assert {n for n, s in whole.specs.items() if s.kind is not TensorKind.OPTIMIZER} == set(expected)
    for variable, array in expected.items():
        assert_equal(whole.values[variable], array)
    moving = {key for key in expected if "/moving_" in key}
    assert {n for n, s in whole.specs.items() if s.kind is TensorKind.BUFFER} == moving
    assert {n for n, s in whole.specs.items() if s.kind is TensorKind.PARAMETER} == set(expected) - moving


@pytest.mark.parametrize(("name", "suffix"), NAMED_STATE)
def test_the_optimizers_variables_bear_the_names_of_their_parameters(keras_files: Path, name: str, suffix: str) -> None:
    whole = read_whole(keras_files / f"{name}{suffix}")
    states = {key[2:]: array for key, array in truth(keras_files, name).items() if key.startswith("s:")}
    assert states
    for key, array in states.items():
        parameter, role = key.rsplit(":", 1)
        assert_equal(whole.values[f"optimizer.state.{parameter}.{role}"], array)
    named = {n for n in whole.specs if n.startswith("optimizer.state.")}
    assert len(named) == len(states)


def test_without_known_order_the_optimizers_variables_keep_numbers(keras_files: Path) -> None:
    for name, suffix in (("convolutional", ".weights.h5"), ("subclassed", ".keras"), ("subclassed", ".weights.h5")):
        whole = read_whole(keras_files / f"{name}{suffix}")
        states = {key[2:]: array for key, array in truth(keras_files, name).items() if key.startswith("s:")}
        trained = [key for key in states if key.endswith(("exp_avg", "momentum_buffer"))]
        for number, key in enumerate(trained):
            assert_equal(whole.values[f"optimizer.state.{number}.{key.rsplit(':', 1)[1]}"], states[key])


@pytest.mark.parametrize(("name", "suffix"), WRITTEN)
def test_the_step_is_the_optimizers_count_of_iterations(keras_files: Path, name: str, suffix: str) -> None:
    assert read_whole(keras_files / f"{name}{suffix}").step == int(truth(keras_files, name)["iterations"])


@pytest.mark.parametrize("suffix", [".keras", ".h5"])
def test_the_gradient_norm_follows_from_the_state_and_the_configuration(keras_files: Path, suffix: str) -> None:
    measured = measure_path(str(keras_files / f"convolutional{suffix}"), MeasureOptions())
    estimate = gradient_estimate(measured.tensors, measured.scalars)
    assert estimate is not None
    states = [a for key, a in truth(keras_files, "convolutional").items() if key.endswith(":exp_avg_sq")]
    total = math.fsum(float(a.astype(np.float64).sum()) for a in states)
    assert estimate.norm == pytest.approx(math.sqrt(total / (1 - 0.98**2)), rel=1e-6)
    assert (estimate.source, estimate.beta2) == ("adam_ema", 0.98)


def test_where_no_configuration_states_beta2_the_default_of_keras_is_assumed_and_said_to_be(keras_files: Path) -> None:
    states = [a for key, a in truth(keras_files, "convolutional").items() if key.endswith(":exp_avg_sq")]
    total = math.fsum(float(a.astype(np.float64).sum()) for a in states)
    for suffix in (".weights.h5", ".tf.index"):
        measured = measure_path(str(keras_files / f"convolutional{suffix}"), MeasureOptions())
        estimate = gradient_estimate(measured.tensors, measured.scalars)
        assert estimate is not None
        assert estimate.norm == pytest.approx(math.sqrt(total / (1 - 0.999**2)), rel=1e-6)
        assert (estimate.source, estimate.beta2, estimate.is_assumed) == ("adam_ema_assumed", 0.999, True)
        assert "optimizer.param_groups.0.betas.1" not in measured.scalars


@pytest.mark.parametrize("suffix", [".weights.h5", ".keras", ".h5", ".tf.index"])
def test_the_count_of_iterations_has_one_name_in_all_of_its_files(keras_files: Path, suffix: str) -> None:
    whole = read_whole(keras_files / f"convolutional{suffix}")
    assert int(whole.values["optimizer.iteration"]) == 2
    assert not {"optimizer.iter", "optimizer.iterations"} & set(whole.specs)


def test_no_framework_is_imported(keras_files: Path) -> None:
    code = (
        "import sys\nfrom monitor.read.registry import open_path\n"
        f"for path in {[str(keras_files / (n + s)) for n, s in WRITTEN]!r}:\n"
        "    with open_path(path) as opened:\n        assert opened.checkpoint.tensors\n"
        "assert not {'keras', 'tensorflow', 'torch', 'jax'} & set(sys.modules), 'a framework was imported'\n"
    )
    subprocess.run([sys.executable, "-c", code], env=clean_environment(), check=True, timeout=60)


def test_an_archive_cut_anywhere_is_not_yet_whole(keras_files: Path, tmp_path: Path) -> None:
    data = (keras_files / "mixed.keras").read_bytes()
    cut = tmp_path / "cut.keras"
    for n in sorted({*range(64), *range(0, len(data), max(1, len(data) // 60)), len(data) - 1}):
        cut.write_bytes(data[:n])
        assert problem(cut) is ProblemKind.INCOMPLETE, n


def problem(path: Path) -> ProblemKind:
    """Return the kind of problem that a file has."""
    with pytest.raises(ReadError) as caught:
        read_whole(path)
    assert 0 < len(str(caught.value)) <= 500
    assert str(caught.value).isprintable()
    return caught.value.kind


def rezipped(source: Path, target: Path, **members: bytes | None) -> Path:
    """Copy an archive with some members replaced, added or (None) left out."""
    names = {"config": "config.json", "weights": "model.weights.h5", "asset": "../../outside.txt"}
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        contents = {name: old.read(name) for name in old.namelist()}
        for key, data in members.items():
            contents.pop(names[key], None)
            if data is not None:
                contents[names[key]] = data
        for name, data in contents.items():
            new.writestr(name, data)
    return target


def test_a_configuration_is_never_run(keras_files: Path, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    evil = {"module": "os", "class_name": "system", "config": {"command": f"touch {canary}", "layers": [{"config": 1}]}}
    evil["compile_config"] = {"optimizer": {"class_name": "__import__('os')", "config": {"beta_2": "x" * 100}}}
    for config in (json.dumps(evil).encode(), b"[" * 100_000, b"\xff\xfe", b"null"):
        path = rezipped(keras_files / "mixed.keras", tmp_path / "evil.keras", config=config, asset=b"x")
        read_whole(path)
        with audited() as events:
            whole = read_whole(path)
        assert events == []
        assert "low/kernel" in whole.values
    assert not canary.exists()


def test_an_archive_without_its_weights_is_refused(keras_files: Path, tmp_path: Path) -> None:
    path = rezipped(keras_files / "mixed.keras", tmp_path / "x.keras", weights=None)
    assert problem(path) is ProblemKind.CORRUPT


def test_weights_cut_within_a_whole_archive_are_corrupt(keras_files: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(keras_files / "mixed.keras") as archive:
        weights = archive.read("model.weights.h5")
    for n in (0, 7, 100, len(weights) - 1):
        path = rezipped(keras_files / "mixed.keras", tmp_path / "x.keras", weights=weights[:n])
        assert problem(path) is ProblemKind.CORRUPT, n


class TestKerasArchive(ReaderConformance):
    """The container alone, with weights that h5py wrote; what Keras wrote is compared above."""

    format = "keras"

    def write(self, path: Path, arrays: Arrays) -> None:
        inner = path.with_name("inner.weights.h5")
        with h5py.File(inner, "w") as file:
            for name, array in arrays.items():
                file[name] = array
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("metadata.json", "{}")
            archive.writestr("config.json", "{}")
            archive.write(inner, "model.weights.h5")
        os.unlink(inner)


def test_weights_in_shards_are_one_checkpoint(keras_files: Path) -> None:
    index = keras_files / "sharded" / "sequence.weights.json"
    assert len(list(index.parent.glob("*.h5"))) > 2
    whole = read_whole(index)
    single = read_whole(keras_files / "sequence.weights.h5")
    assert whole.format == "keras_sharded"
    assert whole.specs.keys() == single.specs.keys()
    assert whole.step == single.step
    assert {n: bits(v) for n, v in whole.values.items()} == {n: bits(v) for n, v in single.values.items()}


class TestShards(UnitConformance):
    format = "keras_sharded"
    needed = ("sequence_00001.weights.h5",)

    def place(self, directory: Path, request: pytest.FixtureRequest) -> Path:
        for path in (request.getfixturevalue("keras_files") / "sharded").iterdir():
            shutil.copy2(path, directory / path.name)
        return directory / "sequence.weights.json"


@pytest.mark.parametrize(
    ("places", "kind"),
    [
        ({"/a": "../outside.weights.h5"}, ProblemKind.UNSAFE_REFERENCE),
        ({"/a": "/etc/hostname"}, ProblemKind.UNSAFE_REFERENCE),
        ({"/a": "sequence_00099.weights.h5"}, ProblemKind.INCOMPLETE),
        ({"/a": [3]}, ProblemKind.CORRUPT),
        ([], ProblemKind.CORRUPT),
        ({}, ProblemKind.LIMIT),
    ],
)
def test_an_index_that_lies_is_refused(keras_files: Path, tmp_path: Path, places: Any, kind: ProblemKind) -> None:
    copy = Path(shutil.copytree(keras_files / "sharded", tmp_path / "run"))
    (copy / "sequence.weights.json").write_text(json.dumps({"weight_map": places}))
    assert problem(copy / "sequence.weights.json") is kind


def test_whole_is_what_the_reader_says(keras_files: Path) -> None:
    whole: Whole = read_whole(keras_files / "mixed.keras")
    assert whole.format == "keras"
    assert whole.specs["low/kernel"].dtype == "bfloat16"


@pytest.mark.parametrize("name", ["adam", "legacy_adam"])
def test_files_that_tf_keras_wrote_hold_the_values_that_it_had(name: str) -> None:
    """Read what tests/support/tf_keras_writer.py wrote, which says why it cannot be run here."""
    whole = read_whole(TF_KERAS / f"{name}.h5")
    with np.load(TF_KERAS / f"{name}.npz") as stored:
        true = {key.removesuffix(":0"): stored[key] for key in stored.files}
    expected, roles = {}, {"m": "exp_avg", "v": "exp_avg_sq"}
    for key, array in true.items():
        prefix, _, path = key.partition("optimizer:Adam/")
        parts = path.split("/")
        if prefix == "optimizer:iteration" or path == "iter":
            expected["optimizer.iteration"] = array
        elif not path:
            expected[key] = array
        elif parts[0] in roles:
            expected[f"optimizer.state.{'/'.join(parts[1:])}.{roles[parts[0]]}"] = array
        else:
            expected[f"optimizer.state.{'/'.join(parts[:-1])}.{roles[parts[-1]]}"] = array
    assert len(expected) == 11 + 2 * 9 + 1
    assert whole.values.keys() == expected.keys()
    for key, array in expected.items():
        assert_equal(whole.values[key], array)
    buffers = {key for key, spec in whole.specs.items() if spec.kind is TensorKind.BUFFER}
    assert buffers == {"norm/moving_mean", "norm/moving_variance"}
    assert (whole.format, whole.step) == ("hdf5", 5)
    assert whole.scalars["optimizer.param_groups.0.betas.1"] == pytest.approx(0.98)


def legacy_file(path: Path, slots: list[str]) -> Path:
    """Write what older versions of TF-Keras wrote, by their source: names with `:0`, and slots as each named them."""
    weights = {"dense/kernel:0": np.ones((3, 2), np.float32), "dense/bias:0": np.zeros(2, np.float32)}
    with h5py.File(path, "w") as file:
        file.attrs["training_config"] = json.dumps(
            {"optimizer_config": {"class_name": "Adam", "config": {"beta_1": 0.8, "beta_2": 0.95}}}
        )
        model = file.create_group("model_weights")
        model.attrs["layer_names"] = [b"dense"]
        layer = model.create_group("dense")
        layer.attrs["weight_names"] = [name.encode() for name in weights]
        for name, array in weights.items():
            layer[name] = array
        optimizer = file.create_group("optimizer_weights")
        optimizer.attrs["weight_names"] = [name.encode() for name in slots]
        for i, name in enumerate(slots):
            number = np.int64(9) if "iter" in name else np.float32(0.5)
            optimizer[name] = number if i == 0 or "rate" in name else np.full((3, 2), i, np.float32)
    return path


@pytest.mark.parametrize(
    "slots",
    [
        ["Adam/iter:0", "Adam/dense/kernel/m:0", "Adam/dense/kernel/v:0"],
        ["iteration:0", "Adam/m/dense/kernel:0", "Adam/v/dense/kernel:0", "learning_rate:0"],
        ["training/Adam/iter:0", "training/Adam/dense/kernel/m:0", "training/Adam/dense/kernel/v:0"],
    ],
)
def test_files_of_tf_keras_have_the_same_names(tmp_path: Path, slots: list[str]) -> None:
    whole = read_whole(legacy_file(tmp_path / "old.h5", slots))
    assert whole.step == 9
    assert whole.specs["dense/kernel"].kind is TensorKind.PARAMETER
    assert float(whole.values["optimizer.state.dense/kernel.exp_avg"][0, 0]) == 1
    assert float(whole.values["optimizer.state.dense/kernel.exp_avg_sq"][0, 0]) == 2
    assert whole.scalars["optimizer.state.dense/kernel.step"] == 9
    assert whole.scalars["optimizer.param_groups.0.betas.1"] == 0.95


LARGE = {f"layers/dense_{n}/vars/0": (2**16, 2**11) for n in range(4)}


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_two_gibibytes_in_an_archive_need_the_memory_of_a_chunk(tmp_path: Path) -> None:
    sparse_hdf5(tmp_path / "inner", LARGE)
    with zipfile.ZipFile(tmp_path / "large.keras", "w") as archive:
        archive.writestr("metadata.json", "{}")
        archive.writestr("config.json", "{}")
        archive.write(tmp_path / "inner", "model.weights.h5")
    (tmp_path / "inner").unlink()
    assert peak_bytes_of_reading(tmp_path / "large.keras", n_elements=2**29) < PEAK_BYTES_MAX


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_two_gibibytes_in_shards_need_the_memory_of_a_chunk(tmp_path: Path) -> None:
    places = {}
    for n, (name, shape) in enumerate(LARGE.items()):
        shard = f"large_{n:05d}.weights.h5"
        sparse_hdf5(tmp_path / shard, {name: shape})
        places["/" + name.removesuffix("/0")] = [shard]
    index = tmp_path / "large.weights.json"
    index.write_text(json.dumps({"metadata": {"total_size": 2.0**31}, "weight_map": places}))
    assert peak_bytes_of_reading(index, n_elements=2**29) < PEAK_BYTES_MAX
