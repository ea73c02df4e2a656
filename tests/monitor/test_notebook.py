"""The functions for notebooks, and the page that shows them: its example is run as it stands."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import monitor
from monitor import notebook
from monitor.files import CheckpointError
from monitor.read.reader import ReadError
from storage.records import ProblemKind
from tests.support.daemons import REPOSITORY, ckptwatch, clean_environment
from tests.support.faulty_runs import train

EXAMPLE = re.compile(r"```python\n(.*?)```", re.DOTALL)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a directory with a real run of three checkpoints and the database of it."""
    made = tmp_path_factory.mktemp("notebook")
    list(train(made / "runs" / "a", n_saves=3, seed=1))
    settings = {"CKPTWATCH_WATCH__SETTLE_SECONDS": "0.1"}
    assert ckptwatch("scan", made / "runs" / "a", "--db", made / "ckptwatch.db", **settings).returncode == 0
    return made


def test_the_example_of_the_page_runs_as_it_stands(directory: Path) -> None:
    (example,) = EXAMPLE.findall((REPOSITORY / "docs" / "notebook.md").read_text())
    environment = clean_environment(PYTHONWARNINGS="error::DeprecationWarning:monitor")
    ended = subprocess.run(
        [sys.executable, "-c", example], cwd=directory, env=environment, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr
    assert "torch_zip 40 " in ended.stdout


def test_every_function_is_on_the_page() -> None:
    page = (REPOSITORY / "docs" / "notebook.md").read_text()
    public = [name for name, found in vars(notebook).items() if getattr(found, "__module__", "") == notebook.__name__]
    functions = {name for name in public if name[0].islower()}
    assert functions == {"open", "measure", "diff", "history", "frame"}
    assert {name for name in functions if f"monitor.{name}(" not in page} == set()


def test_values_come_as_they_were_saved(directory: Path) -> None:
    path = directory / "runs" / "a" / "checkpoint-60.pt"
    truth = torch.load(path)["model"]
    with notebook.open(path) as checkpoint:
        assert checkpoint.step == 60
        assert set(truth) <= {spec.name for spec in checkpoint.tensors}
        for name, value in truth.items():
            assert name in checkpoint
            np.testing.assert_array_equal(checkpoint[name], value.numpy())
        with pytest.raises(KeyError):
            checkpoint["none"]


def test_a_path_and_the_model_in_memory_measure_alike(directory: Path) -> None:
    path = directory / "runs" / "a" / "checkpoint-60.pt"
    from_file = {tensor.name: tensor for tensor in notebook.measure(path).tensors}
    for name, value in torch.load(path)["model"].items():
        (tensor,) = notebook.measure({name: value}).tensors
        assert from_file[name].norm_l2 == pytest.approx(tensor.norm_l2, rel=1e-12)


def test_the_short_names_are_the_functions_of_the_notebook() -> None:
    package: Any = monitor
    assert package.open is notebook.open
    assert package.diff is notebook.diff
    assert package.history is notebook.history
    assert package.frame is notebook.frame
    with pytest.raises(CheckpointError):
        package.measure("/nowhere/model.pt")
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        package.nothing


def test_what_cannot_be_read_says_why(tmp_path: Path) -> None:
    broken = tmp_path / "broken.pt"
    broken.write_bytes(b"PK\x03\x04 and nothing of use")
    with pytest.raises(CheckpointError, match=re.escape(str(broken))) as failed:
        notebook.measure(broken)
    assert isinstance(failed.value.problem.kind, ProblemKind)
    with pytest.raises(ReadError), notebook.open(broken):
        pass
    with pytest.raises(FileNotFoundError, match="no database"):
        notebook.history(tmp_path / "none.db", "a")
    assert not os.path.exists(tmp_path / "none.db")


def test_a_table_has_a_row_a_record_and_plain_columns(directory: Path) -> None:
    snapshots = notebook.history(directory / "ckptwatch.db", "a")
    table = notebook.frame(snapshots)
    assert list(table["step"]) == [20, 40, 60]
    assert table["gradient.norm"].notna().all()
    tensors = notebook.frame(notebook.measure(directory / "runs" / "a" / "checkpoint-20.pt"))
    assert {"name", "norm_l2", "quantiles.0.5"} <= set(tensors.columns)
    with pytest.raises(KeyError, match="no run"):
        notebook.history(directory / "ckptwatch.db", "none")
