from __future__ import annotations

import io
import pickle
import random
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.state_dict_saver import save

from monitor.measure.optimizer import gradient_estimate
from monitor.measure.options import MeasureOptions
from monitor.measure.snapshot import measure_path
from monitor.read.directories import claim_units
from monitor.read.formats.torch_dcp import TorchDcpReader
from monitor.read.reader import ChangedError, ReadError, ReadLimits
from monitor.read.registry import open_path
from monitor.read.unit import DirectoryListing
from storage.records import ProblemKind, TensorKind, TensorSummary
from tests.conformance.unit import UnitConformance
from tests.support.audit import audited
from tests.support.dcp_writer import write_from_two_ranks
from tests.support.frameworks import CleanReader
from tests.support.memory import peak_bytes_of_reading
from tests.support.reading import Whole, bits, read_whole
from tests.support.torch_values import numpy_of

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is:UserWarning")

Edit = Callable[[Metadata], None]


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("ranks")
    write_from_two_ranks(directory)
    return directory


class TestTorchDcp(UnitConformance):
    format: ClassVar[str] = "torch_dcp"
    needed: ClassVar[tuple[str, ...]] = (".metadata",)

    def place(self, directory: Path, request: pytest.FixtureRequest) -> Path:
        two_ranks: Path = request.getfixturevalue("two_ranks")
        return Path(shutil.copytree(two_ranks / "fsdp", directory / "step-5"))


def saved(path: Path, state: dict[str, Any]) -> Path:
    """Write a state from this process alone."""
    save(state, checkpoint_id=path)
    return path


def read(tmp_path: Path, state: dict[str, Any], limits: ReadLimits | None = None) -> Whole:
    return read_whole(saved(tmp_path / "step-5", state), limits)


def edited(path: Path, edit: Edit) -> Path:
    """Write the metadata of a checkpoint anew, with PyTorch's own classes, after a change."""
    file = path / ".metadata"
    metadata = pickle.loads(file.read_bytes())
    edit(metadata)
    file.write_bytes(pickle.dumps(metadata))
    return path


def problem_of(path: Path) -> ProblemKind:
    with pytest.raises(ReadError) as caught:
        read_whole(path)
    message = str(caught.value)
    assert message.isprintable()
    assert 0 < len(message) <= 500
    return caught.value.kind


def assert_same(whole: Whole, expected: dict[str, torch.Tensor]) -> None:
    for name, value in expected.items():
        assert whole.specs[name].shape == tuple(value.shape), name
        assert whole.specs[name].dtype == str(value.dtype).removeprefix("torch.")
        assert bits(whole.values[name]) == bits(numpy_of(value)), name


def assert_statistics(tensor: TensorSummary, value: npt.NDArray[np.float64]) -> None:
    assert tensor.mean == pytest.approx(value.mean(), rel=1e-6, abs=1e-6 * np.abs(value).mean())
    assert tensor.std == pytest.approx(value.std(), rel=1e-6, abs=1e-12)
    assert tensor.norm_l2 == pytest.approx(np.linalg.norm(value.reshape(-1)), rel=1e-6)
    assert (tensor.min, tensor.max) == (value.min(), value.max())


@pytest.mark.parametrize("name", ["fsdp", "titan", "boards", "alone"])
def test_what_two_ranks_saved_is_read_as_they_gathered_it(two_ranks: Path, name: str) -> None:
    expected = torch.load(two_ranks / f"{name}.pt")
    whole = read_whole(two_ranks / name)
    assert whole.format == "torch_dcp"
    assert_same(whole, expected)
    assert set(whole.specs) - set(expected) <= {"train_state.step"}
    assert all(spec.problem is None and spec.tied_to is None for spec in whole.specs.values())


@pytest.mark.parametrize("name", ["fsdp", "boards"])
def test_statistics_are_those_of_torch(two_ranks: Path, name: str) -> None:
    expected = torch.load(two_ranks / f"{name}.pt")
    measured = {tensor.name: tensor for tensor in measure_path(str(two_ranks / name), MeasureOptions()).tensors}
    for key, value in expected.items():
        assert_statistics(measured[key], value.double().numpy())


def test_sharded_tensors_come_in_the_order_of_the_model_with_their_kinds(two_ranks: Path) -> None:
    for name in ("fsdp", "titan"):
        specs = read_whole(two_ranks / name).specs
        assert list(specs)[:9] == list(torch.load(two_ranks / "alone.pt"))
        assert specs["0.weight"].kind is TensorKind.PARAMETER
        assert specs["1.running_mean"].kind is TensorKind.BUFFER
        assert specs["optimizer.state.0.weight.exp_avg"].kind is TensorKind.OPTIMIZER


def test_step_and_numbers_are_found_in_objects_and_in_tensors(two_ranks: Path) -> None:
    fsdp, titan = read_whole(two_ranks / "fsdp"), read_whole(two_ranks / "titan")
    assert (fsdp.step, titan.step) == (2, 17)
    assert fsdp.scalars["scheduler.last_epoch"] == 2
    assert fsdp.scalars["scheduler.w.0"] == 3.5
    for whole in (fsdp, titan):
        assert whole.scalars["optimizer.param_groups.0.lr"] == 0.125
        assert whole.scalars["optimizer.param_groups.0.betas.1"] == 0.96875
        assert not any(name.startswith("optimizer.param_groups.1") for name in whole.scalars)


@pytest.mark.parametrize("name", ["fsdp", "titan"])
def test_the_gradient_is_estimated_from_the_sharded_optimizer_state(two_ranks: Path, name: str) -> None:
    measured = measure_path(str(two_ranks / name), MeasureOptions())
    estimate = gradient_estimate(measured.tensors, measured.scalars)
    expected = torch.load(two_ranks / f"{name}.pt")
    total = sum(float(v.double().sum()) for k, v in expected.items() if k.endswith("exp_avg_sq"))
    assert estimate is not None
    assert estimate.norm == pytest.approx((total / (1 - 0.96875**2)) ** 0.5, rel=1e-6)


def test_settings_per_parameter_that_differ_become_groups(tmp_path: Path) -> None:
    names = ["a", "b.weight", "c"]
    flat: dict[str, object] = {f"param_groups.{name}.betas": (0.5, 0.75) for name in names}
    flat |= {f"param_groups.{name}.lr": 0.5 if name == "c" else 0.25 for name in names}
    flat |= {f"state.{name}.exp_avg_sq": torch.ones(3) for name in names}
    whole = read(tmp_path, {"optimizer": flat})
    assert set(whole.specs) == {f"optimizer.state.{name}.exp_avg_sq" for name in names}
    groups = {k: v for k, v in whole.scalars.items() if k.endswith((".lr", ".betas.1"))}
    assert groups == {
        **{"optimizer.param_groups.0.betas.1": 0.75, "optimizer.param_groups.0.lr": 0.25},
        **{"optimizer.param_groups.1.betas.1": 0.75, "optimizer.param_groups.1.lr": 0.5},
    }


@pytest.mark.parametrize("chunk_bytes_max", [16, 40, 1000, 2**20])
def test_chunks_are_bounded_and_any_size_gives_the_same_values(two_ranks: Path, chunk_bytes_max: int) -> None:
    limits = ReadLimits(chunk_bytes_max=chunk_bytes_max)
    with open_path(str(two_ranks / "boards"), limits) as opened:
        for spec in opened.checkpoint.tensors:
            assert all(chunk.values.nbytes <= chunk_bytes_max for chunk in opened.checkpoint.chunks(spec))
    assert_same(read_whole(two_ranks / "boards", limits), torch.load(two_ranks / "boards.pt"))


@pytest.mark.parametrize(
    "dtype",
    [
        *(torch.float64, torch.float16, torch.bfloat16, torch.complex64, torch.bool, torch.int8, torch.uint16),
        *(torch.int64, torch.float8_e4m3fn, torch.float8_e5m2),
    ],
    ids=str,
)
def test_values_of_every_dtype_are_those_of_torch(tmp_path: Path, dtype: torch.dtype) -> None:
    raw = torch.randint(0, 2 if dtype is torch.bool else 256, (24 * dtype.itemsize,), dtype=torch.uint8)
    state = {"w": raw.view(dtype).reshape(4, 6), "t": raw.view(dtype).reshape(4, 6).t(), "none": torch.zeros(0, 3)}
    assert_same(read(tmp_path, state), state)


def test_a_checkpoint_has_the_same_names_as_the_file_that_torch_saves_of_the_same_state(tmp_path: Path) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    state = {"state_dict": model.state_dict(), "epoch": 4, "ema": {"0.weight": torch.ones(2, 3)}, "rng": torch.ones(5)}
    torch.save(state, tmp_path / "whole.pt")
    one, many = read_whole(tmp_path / "whole.pt"), read(tmp_path, state)
    assert list(one.specs) == list(many.specs)
    assert {n: s.kind for n, s in one.specs.items()} == {n: s.kind for n, s in many.specs.items()}
    assert one.epoch == many.epoch == 4


def test_tensors_inside_of_pickled_objects_are_read_too(tmp_path: Path) -> None:
    class_free = {"nested": ({"w": torch.arange(6.0).reshape(2, 3)}, 5), "raw": io.BytesIO(b"no archive")}
    whole = read(tmp_path, {"w": torch.ones(2), **class_free})
    assert bits(whole.values["nested.0.w"]) == bits(np.arange(6, dtype=np.float32).reshape(2, 3))
    assert whole.scalars["nested.1"] == 5


def test_unfinished_checkpoints_are_incomplete(two_ranks: Path, tmp_path: Path) -> None:
    state = {"a": torch.randn(50, 3), "b": torch.randn(7), "n": 3}
    whole = saved(tmp_path / "whole", state)
    slices = (whole / "__0_0.distcp").read_bytes()
    description = (whole / ".metadata").read_bytes()
    growing = tmp_path / "growing"
    growing.mkdir()
    for n in (0, 1, 500, len(slices) // 2, len(slices) - 1, len(slices)):
        (growing / "__0_0.distcp").write_bytes(slices[:n])
        assert problem_of(growing) is ProblemKind.INCOMPLETE
    (growing / ".metadata").write_bytes(description)
    for n in (0, 1, 500, len(slices) // 2, len(slices) - 1):
        (growing / "__0_0.distcp").write_bytes(slices[:n])
        assert problem_of(growing) is ProblemKind.INCOMPLETE
    for n in (0, 500, len(slices) // 2, len(slices) - 40):  # room made before it is filled
        (growing / "__0_0.distcp").write_bytes(slices[:n] + bytes(len(slices) - n))
        assert problem_of(growing) is ProblemKind.INCOMPLETE
    (growing / "__0_0.distcp").rename(growing / "__1_0.distcp")
    assert problem_of(growing) is ProblemKind.INCOMPLETE
    (growing / "__0_0.distcp").write_bytes(slices)
    assert_same(read_whole(growing), {"a": state["a"]})  # type: ignore[dict-item]


def test_every_rank_that_wrote_must_have_described_what_it_wrote(two_ranks: Path, tmp_path: Path) -> None:
    for missing in ("__0.metadata", "__1.metadata", "__1_0.distcp"):
        copy = tmp_path / missing
        copy.mkdir()
        for file in (two_ranks / "alone").iterdir():
            if file.name != missing:
                (copy / file.name).write_bytes(file.read_bytes())
        assert problem_of(copy) is ProblemKind.INCOMPLETE


def _place(metadata: Metadata, **changes: object) -> None:
    for info in metadata.storage_data.values():
        for key, value in changes.items():
            setattr(info, key, value)


def _parts_of(metadata: Metadata, name: str = "w") -> list[ChunkStorageMetadata]:
    found = metadata.state_dict_metadata[name]
    assert isinstance(found, TensorStorageMetadata)
    return found.chunks


def _overlap(metadata: Metadata) -> None:
    (part,) = _parts_of(metadata)
    _parts_of(metadata)[:] = [ChunkStorageMetadata(part.offsets, torch.Size((2, 3))) for _ in range(2)]


def _gap(metadata: Metadata) -> None:
    _parts_of(metadata)[0].sizes = torch.Size((3, 3))


def _outside(metadata: Metadata) -> None:
    (part,) = _parts_of(metadata)
    (info,) = metadata.storage_data.values()
    part.offsets = torch.Size((1, 0))
    metadata.storage_data = {MetadataIndex("w", part.offsets): info}


def _other_shape(metadata: Metadata) -> None:
    found = metadata.state_dict_metadata["w"]
    assert isinstance(found, TensorStorageMetadata)
    found.size = torch.Size((3, 4))
    _parts_of(metadata)[0].sizes = found.size


def _other_dtype(metadata: Metadata) -> None:
    found = metadata.state_dict_metadata["w"]
    assert isinstance(found, TensorStorageMetadata)
    found.properties = TensorProperties(dtype=torch.int32)


def _nowhere(metadata: Metadata) -> None:
    metadata.storage_data = {}


HOSTILE: list[tuple[Edit, ProblemKind]] = [
    (lambda m: _place(m, relative_path="../outside.distcp"), ProblemKind.UNSAFE_REFERENCE),
    (lambda m: _place(m, relative_path="/etc/passwd"), ProblemKind.UNSAFE_REFERENCE),
    (lambda m: _place(m, relative_path="a/../../outside.distcp"), ProblemKind.UNSAFE_REFERENCE),
    (lambda m: _place(m, relative_path="link.distcp"), ProblemKind.UNSAFE_REFERENCE),
    (lambda m: _place(m, relative_path="other.distcp"), ProblemKind.INCOMPLETE),
    (lambda m: _place(m, relative_path=7), ProblemKind.CORRUPT),
    (lambda m: _place(m, offset=-1), ProblemKind.CORRUPT),
    (lambda m: _place(m, offset=3), ProblemKind.INCOMPLETE),
    (lambda m: _place(m, offset=3, length=900), ProblemKind.CORRUPT),
    (lambda m: _place(m, length=2**70), ProblemKind.CORRUPT),
    (lambda m: _place(m, length=2**60), ProblemKind.INCOMPLETE),
    (lambda m: _place(m, length=100), ProblemKind.INCOMPLETE),
    (lambda m: _place(m, transform_descriptors=["zstd"]), ProblemKind.UNSUPPORTED),
    (_overlap, ProblemKind.CORRUPT),
    (_gap, ProblemKind.CORRUPT),
    (_outside, ProblemKind.CORRUPT),
    (_other_shape, ProblemKind.CORRUPT),
    (_other_dtype, ProblemKind.CORRUPT),
    (_nowhere, ProblemKind.CORRUPT),
]


@pytest.mark.parametrize(("edit", "kind"), HOSTILE, ids=[str(n) for n in range(len(HOSTILE))])
def test_metadata_that_lies_is_refused(tmp_path: Path, edit: Edit, kind: ProblemKind) -> None:
    path = saved(tmp_path / "step-1", {"w": torch.randn(4, 3)})
    outside = tmp_path / "outside.distcp"
    outside.write_bytes((path / "__0_0.distcp").read_bytes())
    (path / "link.distcp").symlink_to(outside)
    assert problem_of(edited(path, edit)) is kind


def test_too_many_parts_are_over_the_limit(tmp_path: Path) -> None:
    path = saved(tmp_path / "step-1", {"w": torch.randn(4, 3)})

    def split(metadata: Metadata) -> None:
        (part,) = _parts_of(metadata)
        _parts_of(metadata).extend([part] * 20_000)

    with pytest.raises(ReadError) as caught:
        read_whole(edited(path, split))
    assert caught.value.kind is ProblemKind.LIMIT


class Payload:
    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return exec, ("raise SystemExit('run')",)


def test_a_payload_in_metadata_or_objects_is_never_run(tmp_path: Path) -> None:
    path = saved(tmp_path / "step-1", {"w": torch.randn(4, 3), "object": [Payload(), 5]})

    def plant(metadata: Metadata) -> None:
        metadata.planner_data = Payload()
        metadata.storage_meta = Payload()  # type: ignore[assignment]

    edited_path = edited(path, plant)
    read_whole(edited_path)  # what is imported late is imported now
    with audited() as events:
        whole = read_whole(edited_path)
    assert events == []
    assert set(whole.specs) == {"w"}
    (path / ".metadata").write_bytes(pickle.dumps(Payload()))
    assert problem_of(path) is ProblemKind.CORRUPT


@pytest.mark.parametrize("name", [".metadata", "__0_0.distcp"])
def test_a_flipped_byte_is_read_or_refused_but_never_breaks_the_reader(tmp_path: Path, name: str) -> None:
    path = saved(tmp_path / "step-1", {"w": torch.randn(4, 3), "n": 3, "o": {"lr": 1, "t": torch.ones(3)}})
    data = (path / name).read_bytes()
    chooser = random.Random(7)
    messages: list[str] = []
    for _ in range(250):
        changed = bytearray(data)
        for _ in range(chooser.choice((1, 1, 4))):
            changed[chooser.randrange(len(data))] = chooser.randrange(256)
        (path / name).write_bytes(changed)
        try:
            read_whole(path)
        except ReadError as error:
            messages.append(str(error))
    assert messages
    assert all(message.isprintable() and 0 < len(message) <= 500 for message in messages)


def test_writing_any_file_meanwhile_is_noticed(two_ranks: Path, tmp_path: Path) -> None:
    path = saved(tmp_path / "step-1", {"w": torch.randn(4, 3)})
    with open_path(str(path)) as opened:
        opened.file.verify_unchanged()
        (path / "__0_0.distcp").write_bytes((path / "__0_0.distcp").read_bytes())
        with pytest.raises(ChangedError):
            opened.file.verify_unchanged()


def test_reading_imports_runs_and_writes_nothing(two_ranks: Path, clean_reader: CleanReader) -> None:
    read_whole(two_ranks / "titan")
    with audited() as events:
        before = set(sys.modules)
        read_whole(two_ranks / "titan")
    assert events == []
    assert set(sys.modules) == before
    assert clean_reader.read(two_ranks / "titan") == ("torch_dcp", [])


def test_a_directory_is_claimed_from_its_first_slice_on_and_nothing_else_in_it() -> None:
    def claimed(*files: str) -> set[str] | None:
        listing = DirectoryListing(name="step-1", files=frozenset(files), directories=frozenset({"logs"}))
        claims = [claim for claim in claim_units(listing) if claim.reader == TorchDcpReader.name]
        assert all(claim.index == "" and not claim.directories for claim in claims)
        return set(claims[0].files) if claims else None

    assert claimed("__0_0.distcp", "notes.txt") == {"__0_0.distcp"}
    assert claimed(".metadata", "__0_0.distcp", "meta.pt", "other.pt") == {".metadata", "__0_0.distcp", "meta.pt"}
    assert claimed("__0.metadata", "__1_0.distcp") == {"__0.metadata", "__1_0.distcp"}
    assert claimed(".metadata", "pubspec.yaml") is None
    assert claimed("meta.pt", "metadata.json", "common.pt", "model.safetensors") is None


@pytest.mark.slow
def test_two_gibibytes_need_the_memory_of_a_chunk(tmp_path: Path) -> None:
    """32 slices along the second axis, each an archive of zeros that is a hole on disk."""
    rows, columns, n_slices = 4096, 4096, 32
    archive = io.BytesIO()
    torch.save(torch.zeros(rows, columns), archive)
    data = archive.getvalue()
    begin = data.index(bytes(2**20))
    end = data.rindex(bytes(2**20)) + 2**20
    parts = []
    places = {}
    with (tmp_path / "__0_0.distcp").open("wb") as file:
        for n in range(n_slices):
            offsets = torch.Size((0, n * columns))
            places[MetadataIndex("w", offsets)] = _StorageInfo("__0_0.distcp", n * len(data), len(data))
            parts.append(ChunkStorageMetadata(offsets, torch.Size((rows, columns))))
            file.write(data[:begin])
            file.seek(end - begin, 1)
            file.write(data[end:])
    size = torch.Size((rows, columns * n_slices))
    described = {"w": TensorStorageMetadata(TensorProperties(torch.float32), size, parts)}
    metadata = Metadata(dict(described), storage_data=places)
    (tmp_path / ".metadata").write_bytes(pickle.dumps(metadata))
    n_elements = rows * columns * n_slices
    assert n_elements * 4 == 2 * 2**30
    assert peak_bytes_of_reading(tmp_path, n_elements=n_elements) < 250 * 2**20
