"""Models of Keras and TensorFlow measured in memory, against the same models measured from their files."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from monitor.measure.codec import measured_from_json
from monitor.measure.measured import Measured
from monitor.measure.options import MeasureOptions
from monitor.measure.snapshot import measure_path
from storage.records import TensorKind, TensorSummary
from tests.support.daemons import REPOSITORY, clean_environment

pytestmark = pytest.mark.timeout(300)

MODELS = ["convolutional", "sequence", "subclassed", "mixed"]
FACTS = ("dtype", "shape", "n_elements", "n_nan", "n_zero", "min", "max", "mean", "std", "norm_l1", "norm_l2")


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("live")
    subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "tests.support.live_models", str(directory)],
        env=clean_environment(CUDA_VISIBLE_DEVICES="", TF_CPP_MIN_LOG_LEVEL="3", KERAS_BACKEND="tensorflow"),
        cwd=REPOSITORY,
        check=True,
        timeout=240,
        capture_output=True,
    )
    return directory


def live(written: Path, name: str) -> Measured:
    return measured_from_json(json.loads((written / f"{name}.json").read_text()))


def facts(tensor: TensorSummary) -> dict[str, object]:
    return {name: getattr(tensor, name) for name in FACTS} | {"kind": tensor.kind}


def model_tensors(measured: Measured) -> dict[str, dict[str, object]]:
    return {t.name: facts(t) for t in measured.tensors if t.kind in {TensorKind.PARAMETER, TensorKind.BUFFER}}


@pytest.mark.parametrize("name", MODELS)
def test_a_model_of_keras_gives_the_records_of_its_file(written: Path, name: str) -> None:
    here = live(written, f"{name}.keras")
    there = measure_path(str(written / f"{name}.keras"), MeasureOptions())
    assert model_tensors(here) == model_tensors(there)
    assert (here.step, here.n_parameters, here.format) == (there.step, there.n_parameters, "keras")


@pytest.mark.parametrize("name", ["convolutional", "sequence"])
def test_the_optimizer_of_keras_gives_the_records_of_its_file(written: Path, name: str) -> None:
    here = live(written, f"{name}.keras")
    there = measure_path(str(written / f"{name}.keras"), MeasureOptions())
    states = {t.name: facts(t) for t in there.tensors if t.name.startswith("optimizer.state.")}
    assert states
    assert {t.name: facts(t) for t in here.tensors if t.name.startswith("optimizer.state.")} == states
    assert here.scalars == pytest.approx(there.scalars)


@pytest.mark.parametrize("name", MODELS)
def test_a_checkpoint_of_tensorflow_gives_the_names_and_values_of_its_file(written: Path, name: str) -> None:
    here = live(written, f"{name}.tf")
    there = measure_path(str(written / f"{name}.tf.index"), MeasureOptions())
    ours = model_tensors(here)
    theirs = {n: f for n, f in model_tensors(there).items() if "seed_generator" not in n}
    if name == "subclassed":  # the file knows attributes of the model, the model knows names of layers
        assert sorted(map(str, ours.values())) == sorted(map(str, theirs.values()))
    else:
        assert ours == theirs
    assert (here.step, there.step) == (42, 42)


def test_a_list_of_variables_goes_by_their_names(written: Path) -> None:
    first, second = live(written, "variables").tensors
    assert (first.name, first.kind, first.dtype, first.shape) == ("first", TensorKind.PARAMETER, "float64", (2, 3))
    assert first.norm_l1 == 15
    assert (second.name, second.kind) == ("second", TensorKind.BUFFER)


def test_a_module_of_tensorflow_goes_by_places_and_text_is_a_problem(written: Path) -> None:
    weight, part, text = live(written, "module").tensors
    assert (weight.name, weight.dtype, weight.max) == ("w", "bfloat16", 2)
    assert (part.name, part.norm_l2) == ("parts/0", 3)
    assert (text.name, text.problem) == ("parts/1", "values of dtype string are not measured")


def test_a_model_of_keras_equals_its_conversion_to_torch_in_memory(written: Path) -> None:
    identical, n_tensors = json.loads((written / "identical.json").read_text())
    assert identical
    assert n_tensors == 17
