from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from monitor.measure.options import MeasureOptions
from monitor.measure.snapshot import aligned_chunk_bytes, measure_path
from monitor.read.reader import ChangedError, IncompleteError, ReadError, VanishedError
from storage.records import TensorKind, TensorSummary
from tests.support.measuring import Array, assert_equals_numpy

SMALL_CHUNKS = MeasureOptions(chunk_bytes=2000)


def _model(seed: int = 0) -> dict[str, Array]:
    rng = np.random.default_rng(seed)
    return {
        "a.weight": rng.standard_normal((70, 90)).astype(np.float32),
        "b.bias": rng.standard_normal(11).astype(np.float16),
        "c.empty": np.empty((0, 4), np.float32),
        "d.scale": np.array(2.5),
        "e.ids": np.arange(3000, dtype=np.int64),
    }


@pytest.fixture
def path(tmp_path: Path) -> str:
    target = tmp_path / "step-7.safetensors"
    save_file(_model(), target, metadata={"step": "7"})
    return str(target)


@pytest.mark.parametrize("options", [MeasureOptions(), SMALL_CHUNKS], ids=["one chunk", "many chunks"])
def test_every_tensor_of_a_file_equals_numpy(path: str, options: MeasureOptions) -> None:
    reads: list[int] = []
    measured = measure_path(path, options, on_read=reads.append)
    assert (measured.format, measured.step, measured.n_parameters) == (
        "safetensors",
        7,
        70 * 90 + 11 + 1,
    )  # ids are no weights
    assert measured.bytes_read == sum(reads) >= os.path.getsize(path) - 8
    assert [t.position for t in measured.tensors] == list(range(5))
    by_name = {t.name: t for t in measured.tensors}
    for name, values in _model().items():
        assert by_name[name].shape == values.shape
        assert_equals_numpy(by_name[name], values)


def test_the_size_of_chunks_changes_nothing_but_rounding(path: str) -> None:
    for a, b in zip(
        measure_path(path, MeasureOptions()).tensors, measure_path(path, SMALL_CHUNKS).tensors, strict=True
    ):
        assert (a.histogram, a.quantiles, a.min, a.max, a.n_zero) == (b.histogram, b.quantiles, b.min, b.max, b.n_zero)


def test_tied_tensors_are_read_once_and_counted_once(tmp_path: Path) -> None:
    target = tmp_path / "model.pt"
    weight = torch.arange(120_000.0).reshape(300, 400)
    torch.save({"embed.weight": weight, "head.weight": weight, "other.weight": weight.clone()}, target)
    measured = measure_path(str(target), MeasureOptions())
    embed, head, other = measured.tensors
    assert (embed.tied_to, head.tied_to, other.tied_to) == (None, "embed.weight", None)
    assert dataclasses.replace(head, name=embed.name, position=0, tied_to=None) == embed
    assert measured.n_parameters == 240_000
    assert measured.bytes_read < 2.5 * 480_000


def test_a_torch_checkpoint_with_its_optimizer_is_measured(tmp_path: Path) -> None:
    model = torch.nn.Linear(8, 4).to(torch.bfloat16)
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.95))
    model(torch.ones(2, 8, dtype=torch.bfloat16)).sum().backward()
    optimizer.step()
    target = tmp_path / "checkpoint.pt"
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": 1}, target)
    measured = measure_path(str(target), MeasureOptions())
    by_name = {t.name: t for t in measured.tensors}
    assert measured.step == 1
    assert measured.n_parameters == 36
    weight = model.weight.detach().view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    assert_equals_numpy(by_name["weight"], weight)
    assert by_name["optimizer.state.weight.exp_avg_sq"].kind is TensorKind.OPTIMIZER
    assert measured.scalars["optimizer.param_groups.0.betas.1"] == 0.95


def test_exact_drift_reads_the_reference_too(path: str, tmp_path: Path) -> None:
    old = _model()
    new = {
        **old,
        "a.weight": old["a.weight"].astype(np.float32) * np.float32(1.01),
        "b.bias": old["b.bias"][:5],
        "f.new": np.ones(3),
    }
    target = tmp_path / "new.safetensors"
    save_file(new, target)
    measured = measure_path(str(target), SMALL_CHUNKS, reference_path=path)
    drifts = {d.name: d for d in measured.exact_drifts}
    assert set(drifts) == {"a.weight", "c.empty", "d.scale", "e.ids"}
    assert drifts["a.weight"].relative_l2 == pytest.approx(0.01, rel=1e-4)
    assert (drifts["a.weight"].method, drifts["a.weight"].reference_step) == ("exact", 7)
    assert (drifts["e.ids"].difference_l2, drifts["e.ids"].n_changed) == (0.0, 0)
    assert measured.bytes_read > os.path.getsize(target)


@pytest.mark.parametrize(
    "options",
    [MeasureOptions(drift="sketch"), MeasureOptions(drift="auto", exact_drift_bytes_max=100)],
    ids=["sketch", "auto over the limit"],
)
def test_the_reference_is_not_compared_when_the_options_say_so(path: str, options: MeasureOptions) -> None:
    assert measure_path(path, options, reference_path=path).exact_drifts == ()
    assert measure_path(path, dataclasses.replace(options, drift="exact"), reference_path=path).exact_drifts != ()


def test_a_reference_that_cannot_be_read_is_no_error(path: str, tmp_path: Path) -> None:
    broken = tmp_path / "old.safetensors"
    broken.write_bytes(Path(path).read_bytes()[:-100])
    for reference in (str(broken), str(tmp_path / "gone.safetensors")):
        measured = measure_path(path, MeasureOptions(drift="exact"), reference_path=reference)
        assert measured.exact_drifts == ()
        assert len(measured.tensors) == 5


def test_a_reference_that_is_written_meanwhile_gives_no_exact_drift(path: str, tmp_path: Path) -> None:
    reference = tmp_path / "old.safetensors"
    reference.write_bytes(Path(path).read_bytes())
    touched: list[int] = []

    def touch(n_bytes: int) -> None:
        if not touched:
            os.utime(
                reference, ns=(1, 1)
            )  # between opening the file itself and its reference: still before the bracket
        elif len(touched) == 12:
            os.utime(reference, ns=(2, 2))
        touched.append(n_bytes)

    measured = measure_path(path, SMALL_CHUNKS, on_read=touch, reference_path=str(reference))
    assert len(touched) > 12
    assert measured.exact_drifts == ()
    assert len(measured.tensors) == 5


def test_a_file_that_is_written_meanwhile_is_changed(path: str) -> None:
    with pytest.raises(ChangedError):
        measure_path(path, SMALL_CHUNKS, on_read=lambda _: os.utime(path, ns=(1, 1)))


def test_a_file_that_is_deleted_meanwhile_is_vanished(path: str) -> None:
    with pytest.raises(VanishedError):
        measure_path(path, SMALL_CHUNKS, on_read=lambda _: Path(path).unlink(missing_ok=True))


def test_a_file_that_is_cut_meanwhile_is_not_measured(path: str) -> None:
    with pytest.raises(ReadError):
        measure_path(path, SMALL_CHUNKS, on_read=lambda _: os.truncate(path, 3000))


def test_a_truncated_file_is_incomplete(path: str) -> None:
    os.truncate(path, os.path.getsize(path) - 1)
    with pytest.raises(IncompleteError):
        measure_path(path, MeasureOptions())


def test_a_tensor_that_cannot_be_delivered_keeps_its_place_and_says_why(tmp_path: Path) -> None:
    target = tmp_path / "mixed.pt"
    torch.save({"good": torch.ones(4), "sparse": torch.eye(3).to_sparse(), "last": torch.zeros(2)}, target)
    measured = measure_path(str(target), MeasureOptions())
    problems: dict[str, TensorSummary] = {t.name: t for t in measured.tensors if t.problem is not None}
    assert measured.tensors[0].problem is None
    assert problems
    assert all(t.mean is None and t.sketch is None for t in problems.values())
    assert [t.position for t in measured.tensors] == list(range(len(measured.tensors)))


@pytest.mark.parametrize("n_buckets", [97, 1021, 8191])
@pytest.mark.parametrize("chunk_bytes", [1024, 65_344, 2**20, 2**24])
def test_chunks_are_never_larger_than_asked_and_end_with_a_group_where_they_can(
    n_buckets: int, chunk_bytes: int
) -> None:
    options = MeasureOptions(chunk_bytes=chunk_bytes, sketch_buckets=n_buckets)
    aligned = aligned_chunk_bytes(options)
    group = 4 * n_buckets * 16
    assert 0 < aligned <= chunk_bytes
    assert aligned % group == 0 or aligned == chunk_bytes < group
