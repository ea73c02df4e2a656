from __future__ import annotations

import os
import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import pytest
import torch

from monitor.measure.optimizer import gradient_estimate
from monitor.measure.options import MeasureOptions
from monitor.measure.snapshot import measure_path
from monitor.read.directories import claim_units
from monitor.read.reader import ReadError, ReadLimits
from monitor.read.registry import open_path
from monitor.read.unit import DirectoryListing
from storage.records import ProblemKind, TensorKind
from tests.conformance.unit import UnitConformance
from tests.support.audit import audited
from tests.support.deepspeed_writer import BETAS, LR, STEPS, Trained, train, write_stage_2, write_stage_3
from tests.support.frameworks import CleanReader
from tests.support.memory import peak_bytes_of_reading
from tests.support.reading import Whole, bits, read_whole
from tests.support.torch_values import numpy_of

GROUPS: list[dict[str, tuple[int, ...]]] = [
    {"embed.weight": (13, 5), "head.weight": (3, 5)},
    {"embed.scale": (1,), "head.bias": (3,), "norm": ()},
]
STAGES: dict[str, Callable[[Path, Trained, int], None]] = {"stage 2": write_stage_2, "stage 3": write_stage_3}


@pytest.fixture(scope="module")
def trained() -> Trained:
    return train(GROUPS)


class _DeepSpeed(UnitConformance):
    format: ClassVar[str] = "deepspeed"
    stage: ClassVar[str]

    def place(self, directory: Path, request: pytest.FixtureRequest) -> Path:
        trained: Trained = request.getfixturevalue("trained")
        STAGES[self.stage](directory / "global_step2", trained, 2)
        return directory / "global_step2"


class TestStage2(_DeepSpeed):
    stage = "stage 2"


class TestStage3(_DeepSpeed):
    stage = "stage 3"


def problem_of(path: Path) -> ProblemKind:
    with pytest.raises(ReadError) as caught:
        read_whole(path)
    assert str(caught.value).isprintable()
    assert 0 < len(str(caught.value)) <= 500
    return caught.value.kind


def assert_close(got: npt.NDArray[np.generic], expected: torch.Tensor) -> None:
    assert got.shape == tuple(expected.shape)
    np.testing.assert_allclose(got.astype(np.float64), expected.detach().double().numpy(), rtol=1e-6, atol=1e-30)


def assert_state(whole: Whole, trained: Trained, prefix: str = "") -> None:
    for name, state in trained.state.items():
        for key, value in state.items():
            got = whole.values[f"optimizer.state.{prefix}{name}.{key}"]
            if key == "step":
                assert got.item() == value.item()
            else:
                assert_close(got, value)


@pytest.mark.parametrize("n_ranks", [1, 2, 3, 8])
def test_flat_partitions_of_stages_1_and_2_are_mapped_back_to_parameters(
    tmp_path: Path, trained: Trained, n_ranks: int
) -> None:
    write_stage_2(tmp_path / "global_step40", trained, n_ranks)
    whole = read_whole(tmp_path / "global_step40")
    assert whole.format == "deepspeed"
    assert whole.step == 40
    assert_state(whole, trained)
    for name, value in trained.weights.items():
        assert bits(whole.values[name]) == bits(numpy_of(value.to(torch.bfloat16)))
        assert whole.specs[name].kind is TensorKind.PARAMETER
        master = f"optimizer.state.{name}.fp32_param"
        assert whole.specs[master].shape == tuple(value.shape)
        assert whole.specs[master].kind is TensorKind.OPTIMIZER
        assert_close(whole.values[master], value)
    assert whole.specs["steps_seen"].kind is TensorKind.BUFFER
    assert len(whole.specs) == 1 + 5 * len(trained.weights)
    assert whole.scalars["optimizer.param_groups.1.betas.1"] == BETAS[1]
    assert whole.scalars["optimizer.param_groups.0.lr"] == LR


@pytest.mark.parametrize("n_ranks", [1, 2, 3, 8])
def test_slices_of_stage_3_are_put_together_as_the_parameters(tmp_path: Path, trained: Trained, n_ranks: int) -> None:
    frozen = {"frozen.weight": torch.randn(7, 3)}
    write_stage_3(tmp_path / "global_step40", trained, n_ranks, frozen)
    whole = read_whole(tmp_path / "global_step40")
    assert_state(whole, trained)
    for name, value in (trained.weights | frozen).items():
        assert whole.specs[name].shape == tuple(value.shape)
        assert whole.specs[name].kind is TensorKind.PARAMETER
        assert_close(whole.values[name], value)
    assert len(whole.specs) == 2 + 4 * len(trained.weights)
    assert whole.step == 40


@pytest.mark.parametrize("stage", STAGES)
def test_statistics_and_gradients_are_those_of_an_optimizer_that_was_not_cut(
    tmp_path: Path, trained: Trained, stage: str
) -> None:
    STAGES[stage](tmp_path / "global_step40", trained, 3)
    measured = measure_path(str(tmp_path / "global_step40"), MeasureOptions())
    by_name = {tensor.name: tensor for tensor in measured.tensors}
    for name, state in trained.state.items():
        expected = state["exp_avg_sq"].double()
        found = by_name[f"optimizer.state.{name}.exp_avg_sq"]
        assert found.mean == pytest.approx(float(expected.mean()), rel=1e-6)
        assert found.norm_l2 == pytest.approx(float(expected.norm()), rel=1e-6)
    estimate = gradient_estimate(measured.tensors, measured.scalars)
    total = sum(float(state["exp_avg_sq"].double().sum()) for state in trained.state.values())
    assert estimate is not None
    assert estimate.norm == pytest.approx((total / (1 - BETAS[1] ** STEPS)) ** 0.5, rel=1e-6)


def test_the_bf16_optimizer_keeps_its_padding_and_is_read_alike(tmp_path: Path, trained: Trained) -> None:
    write_stage_2(tmp_path / "global_step40", trained, 3, prefix="bf16_")
    assert_state(read_whole(tmp_path / "global_step40"), trained)


def test_elastic_state_without_padding_is_read_alike(tmp_path: Path, trained: Trained) -> None:
    write_stage_2(tmp_path / "global_step40", trained, 3, elastic=True)
    assert_state(read_whole(tmp_path / "global_step40"), trained)


def test_shapes_that_do_not_fit_leave_the_state_by_rank_and_group(tmp_path: Path, trained: Trained) -> None:
    path = tmp_path / "global_step40"
    write_stage_2(path, trained, 2, param_shapes=[{"other": torch.Size((2, 2))}])
    whole = read_whole(path)
    assert set(trained.weights) <= set(whole.specs)
    states = {name: spec for name, spec in whole.specs.items() if name.endswith(".exp_avg_sq")}
    assert set(states) == {f"optimizer.state.rank_{r}_group_{g}.exp_avg_sq" for r in (0, 1) for g in (0, 1)}
    measured = measure_path(str(path), MeasureOptions())
    estimate = gradient_estimate(measured.tensors, measured.scalars)
    total = sum(float(state["exp_avg_sq"].double().sum()) for state in trained.state.values())
    assert estimate is not None
    assert estimate.norm == pytest.approx((total / (1 - BETAS[1] ** STEPS)) ** 0.5, rel=1e-6)


def test_ranks_of_a_model_parallel_run_keep_their_names_apart(tmp_path: Path, trained: Trained) -> None:
    path = tmp_path / "global_step40"
    for mp_rank in (0, 1):
        write_stage_2(path, trained, 2, mp_rank=mp_rank, mp_world_size=2)
    whole = read_whole(path)
    for prefix in ("mp_rank_00.", "mp_rank_01."):
        assert_state(whole, trained, prefix)
        assert f"{prefix}head.bias" in whole.specs
    assert whole.step == 40
    (path / "mp_rank_01_model_states.pt").unlink()
    assert problem_of(path) is ProblemKind.INCOMPLETE


def test_a_run_without_zero_keeps_its_optimizer_in_the_file_of_the_model(tmp_path: Path) -> None:
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(3)).sum().backward()
    optimizer.step()
    path = tmp_path / "global_step1"
    path.mkdir()
    state = {"module": model.state_dict(), "optimizer": optimizer.state_dict(), "param_shapes": None}
    torch.save({**state, "global_steps": 1, "dp_world_size": 4}, path / "mp_rank_00_model_states.pt")
    whole = read_whole(path)
    assert bits(whole.values["weight"]) == bits(model.weight.detach().numpy())
    assert whole.specs["optimizer.state.weight.exp_avg"].shape == (2, 3)
    assert whole.specs["optimizer.state.bias.exp_avg"].shape == (2,)


def test_layers_of_a_pipeline_and_experts_are_read_from_their_own_files(tmp_path: Path) -> None:
    path = tmp_path / "global_step1"
    path.mkdir()
    torch.save({"module": None, "param_shapes": None, "global_steps": 9}, path / "mp_rank_00_model_states.pt")
    layers = [{"weight": torch.randn(3, 2)}, {"weight": torch.randn(2, 2)}]
    for number, layer in enumerate(layers):
        torch.save(layer, path / f"layer_{number:02d}-model_00-model_states.pt")
    expert = {"moe.deepspeed_experts.1.w": torch.randn(4)}
    torch.save(expert, path / "layer_0_expert_1_mp_rank_00_model_states.pt")
    whole = read_whole(path)
    assert whole.step == 9
    assert set(whole.specs) == {"layer_00.weight", "layer_01.weight", "moe.deepspeed_experts.1.w"}
    for number, layer in enumerate(layers):
        assert bits(whole.values[f"layer_{number:02d}.weight"]) == bits(layer["weight"].numpy())


@pytest.mark.parametrize("stage", STAGES)
def test_every_rank_must_have_written_its_file_whatever_latest_says(
    tmp_path: Path, trained: Trained, stage: str
) -> None:
    path = tmp_path / "run" / "global_step40"
    STAGES[stage](path, trained, 3)
    (tmp_path / "run" / "latest").write_text("global_step40")
    for file in sorted(path.iterdir()):
        data = file.read_bytes()
        file.unlink()
        assert problem_of(path) is ProblemKind.INCOMPLETE
        for n in (0, 1, 100, len(data) // 2, len(data) - 1):
            file.write_bytes(data[:n])
            assert problem_of(path) is ProblemKind.INCOMPLETE
        file.write_bytes(data)
    assert_state(read_whole(path), trained)


@pytest.mark.parametrize("stage", STAGES)
def test_a_flipped_byte_is_read_or_refused_but_never_breaks_the_reader(
    tmp_path: Path, trained: Trained, stage: str
) -> None:
    path = tmp_path / "global_step40"
    STAGES[stage](path, trained, 2)
    chooser = random.Random(11)
    messages: list[str] = []
    for _ in range(150):
        file = chooser.choice(sorted(path.iterdir()))
        data = file.read_bytes()
        changed = bytearray(data)
        for _ in range(chooser.choice((1, 1, 4))):
            changed[chooser.randrange(len(data))] = chooser.randrange(256)
        file.write_bytes(changed)
        try:
            read_whole(path)
        except ReadError as error:
            messages.append(str(error))
        file.write_bytes(data)
    assert messages
    assert all(message.isprintable() and 0 < len(message) <= 500 for message in messages)


@pytest.mark.parametrize("chunk_bytes_max", [16, 40, 1000])
def test_chunks_are_bounded_and_any_size_gives_the_same_values(
    tmp_path: Path, trained: Trained, chunk_bytes_max: int
) -> None:
    path = tmp_path / "global_step40"
    write_stage_3(path, trained, 3)
    limits = ReadLimits(chunk_bytes_max=chunk_bytes_max)
    with open_path(str(path), limits) as opened:
        for spec in opened.checkpoint.tensors:
            assert all(chunk.values.nbytes <= chunk_bytes_max for chunk in opened.checkpoint.chunks(spec))
    assert_state(read_whole(path, limits), trained)


def test_reading_imports_runs_and_writes_nothing(tmp_path: Path, trained: Trained, clean_reader: CleanReader) -> None:
    path = tmp_path / "global_step40"
    write_stage_2(path, trained, 2)
    read_whole(path)
    with audited() as events:
        before = set(sys.modules)
        read_whole(path)
    assert events == []
    assert set(sys.modules) == before
    assert clean_reader.read(path) == ("deepspeed", [])


def test_a_directory_is_claimed_from_the_first_file_of_a_rank_on() -> None:
    ours = {"bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt", "layer_00-model_00-model_states.pt"}
    listing = DirectoryListing(name="checkpoint", files=frozenset({*ours, "zero_to_fp32.py"}), directories=frozenset())
    assert [(claim.reader, set(claim.files)) for claim in claim_units(listing)] == [("deepspeed", ours)]
    listing = DirectoryListing(name="run", files=frozenset({"latest", "zero_to_fp32.py"}), directories=frozenset())
    assert claim_units(listing) == ()


@pytest.mark.slow
def test_two_gibibytes_need_the_memory_of_a_chunk(tmp_path: Path) -> None:
    n_ranks, n = 4, 2**27
    shapes = [{"w": torch.Size((2**14, n // 2**14 * n_ranks))}]
    about = {"module": {"w": torch.empty(0)}, "param_shapes": shapes, "dp_world_size": n_ranks}
    zero = {"fp32_flat_groups": [torch.zeros(n)], "optimizer_state_dict": {"state": {}, "param_groups": []}}
    for name, value in (("model", about), ("optim", {"optimizer_state_dict": zero})):
        first = tmp_path / f"zero_pp_rank_0_mp_rank_00_{name}_states.pt"
        torch.save(value, first)
        for rank in range(1, n_ranks):  # every rank has the same, so once on disk is enough
            os.link(first, tmp_path / f"zero_pp_rank_{rank}_mp_rank_00_{name}_states.pt")
    assert peak_bytes_of_reading(tmp_path, n_elements=n * n_ranks) < 250 * 2**20
