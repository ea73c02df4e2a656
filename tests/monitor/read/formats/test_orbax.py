"""Checkpoints that Orbax wrote in its several layouts, against the values that JAX had."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorstore

from monitor.measure.optimizer import gradient_estimate
from monitor.measure.options import MeasureOptions
from monitor.measure.snapshot import measure_path
from monitor.read.reader import ReadError, UnsupportedError
from monitor.read.registry import open_path
from storage.records import ProblemKind, TensorKind
from tests.conformance.unit import UnitConformance
from tests.support.daemons import REPOSITORY, clean_environment
from tests.support.memory import peak_bytes_of_reading
from tests.support.reading import bits, read_whole

pytestmark = pytest.mark.timeout(300)

LAYOUTS = ["manager/30", "composite/31", "zarr", "zarr3", "ocdbt3"]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("orbax")
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(REPOSITORY / "tests" / "support" / "orbax_writer.py"), str(directory)],
        env=clean_environment(JAX_PLATFORMS="cpu"),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return directory


def our_name(name: str) -> str:
    """Return what we call the leaf at this path of the tree."""
    for role, torch_role in (("mu", "exp_avg"), ("nu", "exp_avg_sq")):
        prefix = f"opt_state.0.{role}."
        if name.startswith(prefix):
            return f"optimizer.state.{name.removeprefix(prefix)}.{torch_role}"
    if name.startswith("opt_state."):
        return name.replace("opt_state.", "optimizer.", 1)
    return name.removeprefix("params.")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_names_shapes_values_and_kinds_are_those_of_the_tree(written: Path, layout: str) -> None:
    whole = read_whole(written / layout)
    with np.load(written / "truth.npz") as stored:
        true = {our_name(name): stored[name] for name in stored.files}
    assert set(whole.specs) == set(true)
    for name, array in true.items():
        assert whole.values[name].shape == array.shape
        assert bits(whole.values[name].astype(array.dtype)) == bits(array)
    assert whole.specs["dense.bias"].dtype == "bfloat16"
    parameters = {n for n, s in whole.specs.items() if s.kind is TensorKind.PARAMETER}
    assert parameters == {"dense.kernel", "dense.bias", "zero"}
    assert whole.specs["batch_stats.mean"].kind is TensorKind.BUFFER
    assert whole.step == 3
    assert whole.scalars["optimizer.state.dense.kernel.step"] == 3


def test_the_gradient_norm_is_estimated_with_the_default_beta2_of_optax(written: Path) -> None:
    measured = measure_path(str(written / LAYOUTS[0]), MeasureOptions())
    estimate = gradient_estimate(measured.tensors, measured.scalars)
    assert estimate is not None
    weights = [0.001 * 0.999 ** (2 - i) for i in range(3)]
    square = sum(w * 1250 * (0.5 + i) ** 2 for i, w in enumerate(weights)) / sum(weights)
    assert estimate.norm == pytest.approx(square**0.5, rel=1e-3)  # one parameter is bfloat16
    assert (estimate.source, estimate.beta2) == ("adam_ema_assumed", 0.999)


class _Orbax(UnitConformance):
    format = "orbax"
    layout: str

    def place(self, directory: Path, request: pytest.FixtureRequest) -> Path:
        written: Path = request.getfixturevalue("written")
        return Path(shutil.copytree(written / self.layout, directory / "30"))


class TestOrbaxStep(_Orbax):
    needed = ("_METADATA",)
    layout = "manager/30"


class TestOrbaxItem(_Orbax):
    needed = ("_METADATA",)
    layout = "ocdbt3"


class TestOrbaxZarr(_Orbax):
    layout = "zarr"


def problem(path: Path) -> ProblemKind:
    with pytest.raises(ReadError) as caught:
        read_whole(path)
    assert str(caught.value).isprintable()
    return caught.value.kind


@pytest.fixture
def copy(written: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(written / "zarr", tmp_path / "7"))


def test_a_chunk_that_was_lost_is_no_zero(copy: Path) -> None:
    (copy / "params.dense.kernel" / "0.0").unlink()
    assert problem(copy) is ProblemKind.INCOMPLETE


def test_a_checkpoint_that_is_not_committed_is_waited_for(copy: Path) -> None:
    (copy / "commit_success.txt").unlink()
    described = json.loads((copy / "_CHECKPOINT_METADATA").read_text())
    (copy / "_CHECKPOINT_METADATA").write_text(json.dumps({**described, "commit_timestamp_nsecs": None}))
    assert problem(copy) is ProblemKind.INCOMPLETE


@pytest.mark.parametrize("key", ["../../outside", "/etc", "a\\b", "..", "x\0y"])
def test_keys_that_lead_elsewhere_are_refused(copy: Path, key: str) -> None:
    described = json.loads((copy / "_METADATA").read_text())
    described["tree_metadata"]["evil"] = {"key_metadata": [{"key": key}], "value_metadata": {"value_type": "jax.Array"}}
    (copy / "_METADATA").write_text(json.dumps(described))
    assert problem(copy) is ProblemKind.CORRUPT


@pytest.mark.parametrize("tree", [[], {"a": 1}, {"a": {"key_metadata": []}}, {"a": {"key_metadata": [{"key": ""}]}}])
def test_a_tree_that_is_none_is_refused(copy: Path, tree: Any) -> None:
    described = json.loads((copy / "_METADATA").read_text())
    (copy / "_METADATA").write_text(json.dumps({**described, "tree_metadata": tree}))
    assert problem(copy) is ProblemKind.CORRUPT


def test_without_tensorstore_it_says_what_to_install(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorstore", None)
    with pytest.raises(UnsupportedError, match=r"pip install 'ckptwatch\[orbax\]'"), open_path(str(copy)):
        pass


def test_chunks_too_large_to_unpack_are_the_problem_of_their_tensor(copy: Path) -> None:
    made(copy / "params.dense.kernel", (2**13, 2**12), (2**13, 2**12))
    whole = read_whole(copy)
    assert "chunk_byte_size" in str(whole.specs["dense.kernel"].problem)
    assert "dense.bias" in whole.values


def made(path: Path, shape: tuple[int, ...], chunk: tuple[int, ...]) -> Any:
    shutil.rmtree(path, ignore_errors=True)
    metadata = {"shape": shape, "chunks": chunk, "dtype": "<f4", "compressor": {"id": "zstd", "level": 1}}
    spec = {
        "driver": "zarr",
        "kvstore": {"driver": "file", "path": f"{path}/"},
        "metadata": metadata,
        "store_data_equal_to_fill_value": True,
    }
    return tensorstore.open(spec, create=True).result()


@pytest.mark.slow
def test_two_gibibytes_need_the_memory_of_a_few_chunks(written: Path, copy: Path) -> None:
    shape, chunk = (2**15, 2**14), (3 * 2**7, 2**14)  # chunks as large as may be
    array = made(copy / "params.dense.kernel", shape, chunk)
    block = np.tile(np.arange(2**12, dtype=np.float32), (chunk[0], 4))
    for first in range(0, shape[0], chunk[0]):
        last = min(first + chunk[0], shape[0])
        array[first:last].write(block[: last - first]).result()
    with np.load(written / "truth.npz") as stored:
        others = sum(stored[name].size for name in stored.files if name != "params.dense.kernel")
    assert peak_bytes_of_reading(copy, n_elements=2**29 + others) < 250 * 2**20
