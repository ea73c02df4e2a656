"""Modules of PyTorch measured in memory, against torch's own values and against their files."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from monitor.live import diff, measure
from monitor.measure.comparison import Relation
from monitor.measure.options import MeasureOptions
from monitor.measure.snapshot import measure_path
from monitor.read.reader import UnsupportedError
from storage.records import TensorKind
from tests.support.daemons import REPOSITORY


class Net(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = torch.nn.Embedding(7, 4)
        self.conv = torch.nn.Conv1d(4, 6, 3)
        self.norm = torch.nn.BatchNorm1d(6)
        self.low = torch.nn.Linear(6, 5).bfloat16()
        self.head = torch.nn.Linear(4, 7, bias=False)
        self.head.weight = self.embed.weight
        self.register_buffer("scale", torch.ones(3, dtype=torch.int16))
        self.register_buffer("passing", torch.ones(2), persistent=False)


def trained() -> tuple[Net, torch.optim.Optimizer]:
    torch.manual_seed(0)
    net = Net()
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.01, betas=(0.9, 0.98))
    for _ in range(3):
        x = net.norm(net.conv(net.embed(torch.randint(0, 7, (2, 8))).transpose(1, 2)))
        (net.low(x.transpose(1, 2).bfloat16()).float().square().mean() + net.head(torch.ones(4)).mean()).backward()
        optimizer.step()
    return net, optimizer


def test_statistics_names_and_kinds_are_those_of_the_state_dict() -> None:
    net, _ = trained()
    measured = measure(net)
    state = net.state_dict()
    assert [t.name for t in measured.tensors] == list(state)
    for tensor in measured.tensors:
        values = state[tensor.name].to(torch.float64)
        assert tensor.shape == tuple(values.shape)
        assert tensor.dtype == str(state[tensor.name].dtype).removeprefix("torch.")
        assert tensor.norm_l2 == pytest.approx(float(values.norm()), rel=1e-6)
        assert tensor.mean == pytest.approx(float(values.mean()), rel=1e-5, abs=1e-9)
        assert (tensor.min, tensor.max) == (float(values.min()), float(values.max()))
    kinds = {t.name: t.kind for t in measured.tensors}
    buffers = {name for name, kind in kinds.items() if kind is TensorKind.BUFFER}
    assert buffers == {"norm.running_mean", "norm.running_var", "norm.num_batches_tracked", "scale"}
    assert {t.name: t.tied_to for t in measured.tensors if t.tied_to} == {"head.weight": "embed.weight"}
    assert measured.n_parameters == sum(p.numel() for p in net.parameters())
    assert (measured.format, measured.step) == ("torch", None)


def test_model_and_optimizer_give_the_records_of_their_file(tmp_path: Path) -> None:
    net, optimizer = trained()
    torch.save({"model": net.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "both.pt")
    here, there = measure(net, optimizer), measure_path(str(tmp_path / "both.pt"), MeasureOptions())
    ours = {t.name: t for t in here.tensors}
    assert here.step == 3
    for tensor in there.tensors:
        found = ours.pop(tensor.name, None)
        assert found is not None, tensor.name
        assert (found.shape, found.dtype, found.norm_l2) == (tensor.shape, tensor.dtype, tensor.norm_l2)
        assert found.sketch == tensor.sketch
        assert found.kind is tensor.kind
    assert ours == {}
    group = "optimizer.param_groups.0."
    assert here.scalars == {
        k: v
        for k, v in there.scalars.items()
        if k.startswith(group) and (not k.startswith(f"{group}params.") or k.endswith("length"))
    }


def test_values_that_lie_in_another_order_or_on_no_device_are_measured_or_said_to_have_none() -> None:
    model = torch.nn.Module()
    turned = torch.arange(300_000.0).reshape(1000, 300).t()
    model.turned = torch.nn.Parameter(turned)
    model.empty = torch.nn.Parameter(torch.empty(0, 3))
    model.meta = torch.nn.Parameter(torch.empty(3, device="meta"))
    model.register_buffer("sparse", torch.eye(3).to_sparse())
    model.register_buffer("small", torch.tensor([1.0, 2.0]).to(torch.float8_e4m3fn))
    model.register_buffer("turning", torch.tensor([1 + 2j]).conj())
    found = {t.name: t for t in measure(model).tensors}
    assert found["turned"].sketch == measure({"turned": turned.contiguous().numpy()}).tensors[0].sketch
    assert (found["empty"].n_elements, found["empty"].problem, found["empty"].max) == (0, None, None)
    assert found["meta"].problem == "a tensor on the meta device has no values"
    assert "torch.sparse_coo" in (found["sparse"].problem or "")
    assert (found["small"].dtype, found["small"].max) == ("float8_e4m3fn", 2)
    assert (found["turning"].dtype, found["turning"].min) == ("complex64", -2)


def test_names_are_free_of_wrappers() -> None:
    inner = torch.nn.Linear(2, 2)
    wrapped = torch.nn.Module()
    wrapped.module = inner
    assert [t.name for t in measure(wrapped).tensors] == ["weight", "bias"]


def test_diff_names_what_changed_and_takes_paths(tmp_path: Path) -> None:
    net, _ = trained()
    torch.save(net.state_dict(), tmp_path / "before.pt")
    assert diff(net, tmp_path / "before.pt").identical
    with torch.no_grad():
        net.head.weight[2, 1] += 1
    compared = diff(tmp_path / "before.pt", net)
    assert not compared.identical
    changed, tied = [t for t in compared.tensors if t.relation is not Relation.SAME]
    assert (changed.name, changed.relation, changed.n_changed) == ("embed.weight", Relation.CHANGED, 1)
    assert (tied.name, tied.n_changed) == ("head.weight", 1)
    assert changed.max_abs_difference == pytest.approx(1)


def test_nested_arrays_and_state_dicts_are_measured_with_their_places_as_names() -> None:
    measured = measure({"layers": [{"w": np.eye(3, order="F")}, {"w": np.ones((2, 2), ">f4")}], "step": 7, "lr": 0.1})
    assert [(t.name, t.dtype, t.mean) for t in measured.tensors] == [
        ("layers.0.w", "float64", pytest.approx(1 / 3)),
        ("layers.1.w", "float32", 1.0),
    ]
    assert (measured.step, measured.scalars) == (7, {"step": 7.0, "lr": 0.1})
    assert [t.name for t in measure(torch.nn.Linear(2, 1).state_dict()).tensors] == ["weight", "bias"]


@pytest.mark.parametrize("thing", ["a text", 3, object(), {}, [], torch.nn.ReLU()])
def test_what_holds_no_tensors_is_refused_with_what_to_give_instead(thing: object) -> None:
    if isinstance(thing, str):
        with pytest.raises(UnsupportedError, match="give a model of PyTorch, Keras, TensorFlow, scikit-learn"):
            measure(thing)
    else:
        with pytest.raises(UnsupportedError):
            measure(thing)


def test_no_framework_is_imported_that_the_model_is_not_of() -> None:
    code = (
        "import sys, numpy, torch\n"
        "from monitor.live import measure\n"
        "assert measure({'w': numpy.ones(3)}).tensors[0].mean == 1\n"
        "assert measure(torch.nn.Linear(2, 2)).n_parameters == 6\n"
        "print(sorted({'tensorflow', 'keras', 'sklearn', 'jax', 'h5py'} & set(sys.modules)))\n"
    )
    ended = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert ended.stdout.strip() == "[]"
    code = "import sys, monitor.live; print(sorted({'torch', 'tensorflow', 'keras', 'sklearn'} & set(sys.modules)))"
    ended = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert ended.stdout.strip() == "[]"
