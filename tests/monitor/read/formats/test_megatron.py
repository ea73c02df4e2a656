from __future__ import annotations

import random
import shutil
import sys
from pathlib import Path
from typing import ClassVar

import pytest
import torch

from monitor.measure.optimizer import gradient_estimate
from monitor.measure.options import MeasureOptions
from monitor.measure.snapshot import measure_path
from monitor.read.directories import claim_units
from monitor.read.reader import ReadError
from monitor.read.registry import open_path
from monitor.read.unit import DirectoryListing
from storage.records import ProblemKind, TensorKind
from tests.conformance.unit import UnitConformance
from tests.support.audit import audited
from tests.support.frameworks import CleanReader
from tests.support.megatron_writer import BETAS, ITERATION, LR, SHAPES, Rank, make_rank, write_legacy, write_torch_dist
from tests.support.memory import peak_bytes_of_reading
from tests.support.reading import Whole, bits, read_whole
from tests.support.torch_values import numpy_of

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is:UserWarning")

NAME = f"iter_{ITERATION:07d}"


class TestMegatron(UnitConformance):
    format: ClassVar[str] = "megatron"

    def place(self, directory: Path, request: pytest.FixtureRequest) -> Path:
        write_legacy(directory, {"mp_rank_00": make_rank(1), "mp_rank_01": make_rank(2)}, (2, 1, 1))
        return directory / NAME


def problem_of(path: Path) -> ProblemKind:
    with pytest.raises(ReadError) as caught:
        read_whole(path)
    assert str(caught.value).isprintable()
    assert 0 < len(str(caught.value)) <= 500
    return caught.value.kind


def assert_rank(whole: Whole, rank: Rank, prefix: str = "") -> None:
    for name, value in rank.weights.items():
        assert bits(whole.values[prefix + name]) == bits(numpy_of(value.to(torch.bfloat16)))
        assert whole.specs[prefix + name].kind is TensorKind.PARAMETER
        for key, state in (("exp_avg", rank.exp_avg), ("exp_avg_sq", rank.exp_avg_sq)):
            got = whole.specs[f"optimizer.state.{prefix}{name}.{key}"]
            assert got.kind is TensorKind.OPTIMIZER
            assert bits(whole.values[got.name]) == bits(numpy_of(state[name]))


def expected_norm(ranks: list[Rank]) -> float:
    total = sum(float(value.double().sum()) for rank in ranks for value in rank.exp_avg_sq.values())
    return float((total / (1 - BETAS[1] ** ITERATION)) ** 0.5)


def test_a_run_on_one_rank_has_the_names_of_the_model(tmp_path: Path) -> None:
    rank = make_rank(1)
    write_legacy(tmp_path, {"mp_rank_00": rank}, (1, 1, 1))
    whole = read_whole(tmp_path / NAME)
    assert whole.format == "megatron"
    assert whole.step == ITERATION
    assert list(whole.specs)[: len(SHAPES)] == list(SHAPES)
    assert_rank(whole, rank)
    assert whole.scalars["optimizer.param_groups.0.lr"] == LR
    assert not any(name.startswith("args") for name in whole.scalars)


def test_every_rank_of_a_parallel_run_is_under_its_own_name(tmp_path: Path) -> None:
    ranks = {f"mp_rank_{t:02d}_{p:03d}": make_rank(2 * t + p) for t in (0, 1) for p in (0, 1)}
    write_legacy(tmp_path, ranks, (2, 2, 1))
    whole = read_whole(tmp_path / NAME)
    names = [name for name, spec in whole.specs.items() if spec.kind is TensorKind.PARAMETER]
    assert names == [f"{rank}.{name}" for rank in ranks for name in SHAPES]
    for name, rank in ranks.items():
        for parameter, value in rank.weights.items():
            assert bits(whole.values[f"{name}.{parameter}"]) == bits(numpy_of(value.to(torch.bfloat16)))
            assert bits(whole.values[f"optimizer.state.{name}.{parameter}.exp_avg"]) == bits(
                numpy_of(rank.exp_avg[parameter])
            )


def test_the_flat_buffers_of_a_distributed_optimizer_give_the_gradient(tmp_path: Path) -> None:
    ranks = {"mp_rank_00": make_rank(1), "mp_rank_01": make_rank(2)}
    write_legacy(tmp_path, ranks, (2, 1, 1), distributed=True)
    measured = measure_path(str(tmp_path / NAME), MeasureOptions())
    kinds = {tensor.name: tensor.kind for tensor in measured.tensors if tensor.name.startswith("optimizer.state.")}
    assert len(kinds) == 6
    assert set(kinds.values()) == {TensorKind.OPTIMIZER}
    estimate = gradient_estimate(measured.tensors, measured.scalars)
    assert estimate is not None
    assert estimate.norm == pytest.approx(expected_norm(list(ranks.values())), rel=1e-6)


def test_the_stretches_of_a_virtual_pipeline_are_the_model(tmp_path: Path) -> None:
    target = tmp_path / NAME / "mp_rank_00_000"
    target.mkdir(parents=True)
    state = {f"model{n}": {"decoder.layers.0.weight": torch.randn(3)} for n in (0, 1)}
    torch.save({"iteration": 5, "args": None, **state}, target / "model_optim_rng.pt")
    whole = read_whole(tmp_path / NAME)
    for n in (0, 1):
        assert whole.specs[f"model{n}.decoder.layers.0.weight"].kind is TensorKind.PARAMETER


@pytest.mark.parametrize("chained", [False, True])
def test_the_torch_dist_backend_gives_parameters_and_their_state_by_name(tmp_path: Path, chained: bool) -> None:
    rank = make_rank(1)
    path = write_torch_dist(tmp_path, rank, chained=chained)
    whole = read_whole(path)
    assert whole.format == "torch_dcp"
    assert whole.step == ITERATION
    assert_rank(whole, rank)
    for name, value in rank.weights.items():
        assert bits(whole.values[f"optimizer.state.{name}.fp32_param"]) == bits(numpy_of(value))
    assert len(whole.specs) == 4 * len(SHAPES)
    measured = measure_path(str(path), MeasureOptions())
    estimate = gradient_estimate(measured.tensors, measured.scalars)
    assert estimate is not None
    assert estimate.norm == pytest.approx(expected_norm([rank]), rel=1e-6)


def test_every_rank_must_have_written_its_file_whatever_the_tracker_says(tmp_path: Path) -> None:
    ranks = {f"mp_rank_{t:02d}": make_rank(t) for t in (0, 1)}
    write_legacy(tmp_path, ranks, (2, 1, 1), distributed=True)
    path = tmp_path / NAME
    for file in sorted(path.rglob("*.pt")):
        data = file.read_bytes()
        for n in (0, 1, 100, len(data) // 2, len(data) - 1):
            file.write_bytes(data[:n])
            assert problem_of(path) is ProblemKind.INCOMPLETE
        file.write_bytes(data)
    (path / "mp_rank_01" / "model_optim_rng.pt").unlink()
    assert problem_of(path) is ProblemKind.INCOMPLETE
    shutil.rmtree(path / "mp_rank_01")
    assert problem_of(path) is ProblemKind.INCOMPLETE


def test_a_flipped_byte_is_read_or_refused_but_never_breaks_the_reader(tmp_path: Path) -> None:
    write_legacy(tmp_path, {"mp_rank_00": make_rank(1)}, (1, 1, 1))
    path = tmp_path / NAME
    file = path / "mp_rank_00" / "model_optim_rng.pt"
    data = file.read_bytes()
    chooser = random.Random(3)
    messages: list[str] = []
    for _ in range(200):
        changed = bytearray(data)
        for _ in range(chooser.choice((1, 1, 4))):
            changed[chooser.randrange(len(data))] = chooser.randrange(256)
        file.write_bytes(changed)
        try:
            read_whole(path)
        except ReadError as error:
            messages.append(str(error))
    assert messages
    assert all(message.isprintable() and 0 < len(message) <= 500 for message in messages)


def test_a_file_outside_is_not_followed(tmp_path: Path) -> None:
    write_legacy(tmp_path, {"mp_rank_00": make_rank(1)}, (1, 1, 1))
    file = tmp_path / NAME / "mp_rank_00" / "model_optim_rng.pt"
    outside = tmp_path / "outside.pt"
    file.rename(outside)
    file.symlink_to(outside)
    assert problem_of(tmp_path / NAME) is ProblemKind.UNSAFE_REFERENCE


def test_reading_imports_runs_and_writes_nothing(tmp_path: Path, clean_reader: CleanReader) -> None:
    write_legacy(tmp_path, {"mp_rank_00": make_rank(1)}, (1, 1, 1), distributed=True)
    read_whole(tmp_path / NAME)
    with audited() as events:
        before = set(sys.modules)
        with open_path(str(tmp_path / NAME)) as opened:
            opened.file.verify_unchanged()
    assert events == []
    assert set(sys.modules) == before
    assert clean_reader.read(tmp_path / NAME) == ("megatron", [])


def test_a_directory_of_ranks_is_claimed_and_one_rank_alone_is_not() -> None:
    listing = DirectoryListing(
        name=NAME,
        files=frozenset({"notes.txt"}),
        directories=frozenset({"mp_rank_00_000", "mp_rank_00_001_003", "logs"}),
    )
    (claim,) = claim_units(listing)
    assert (claim.reader, set(claim.directories)) == ("megatron", {"mp_rank_00_000", "mp_rank_00_001_003"})
    assert not claim.files
    listing = DirectoryListing(name="x", files=frozenset(), directories=frozenset({"mp_rank_x", "mp_rank_00_model"}))
    assert claim_units(listing) == ()


@pytest.mark.slow
def test_two_gibibytes_need_the_memory_of_a_chunk(tmp_path: Path) -> None:
    target = tmp_path / NAME / "mp_rank_00"
    target.mkdir(parents=True)
    n = 2**26
    torch.save({"model": {f"w{i}": torch.zeros(n) for i in range(2)}, "iteration": 1}, target / "model_optim_rng.pt")
    buffers = {"param": torch.zeros(n), "exp_avg": torch.zeros(5 * n)}
    torch.save({0: {"buffer": buffers}}, target / "distrib_optim.pt")
    assert peak_bytes_of_reading(tmp_path / NAME, n_elements=8 * n) < 250 * 2**20
