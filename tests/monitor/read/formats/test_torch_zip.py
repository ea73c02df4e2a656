from __future__ import annotations

import argparse
import zipfile
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest
import torch

from monitor.read.reader import (
    AmbiguousError,
    CorruptError,
    IncompleteError,
    LimitError,
    ReadError,
    ReadLimits,
    UnsupportedError,
)
from monitor.read.registry import open_path
from storage.records import TensorKind
from tests.hostile.pickles import STOP, archive, call, group, integer, mapping, payloads, persistent, ref, tensor, text
from tests.hostile.zips import Member, build
from tests.support.audit import audited
from tests.support.reading import Whole, bits, read_whole

PARAMETER, BUFFER, OPTIMIZER, OTHER = TensorKind


def numpy_of(value: torch.Tensor) -> npt.NDArray[np.generic]:
    """Return the values of a torch tensor, also of dtypes that torch does not hand to NumPy."""
    value = value.detach().resolve_conj().resolve_neg().contiguous()
    name = str(value.dtype).removeprefix("torch.")
    if hasattr(ml_dtypes, name):
        raw: npt.NDArray[np.generic] = value.reshape(-1).view(torch.uint8).numpy()
        shaped: npt.NDArray[np.generic] = raw.view(np.dtype(getattr(ml_dtypes, name))).reshape(tuple(value.shape))
        return shaped
    array: npt.NDArray[np.generic] = value.numpy()
    return array


def saved(tmp_path: Path, value: object, **options: Any) -> Path:
    path = tmp_path / "saved.pt"
    torch.save(value, path, **options)
    return path


def read(tmp_path: Path, value: object, limits: ReadLimits | None = None, **options: Any) -> Whole:
    return read_whole(saved(tmp_path, value, **options), limits)


def read_bytes(tmp_path: Path, data: bytes, limits: ReadLimits | None = None) -> Whole:
    path = tmp_path / "made.pt"
    path.write_bytes(data)
    return read_whole(path, limits)


def kinds(whole: Whole) -> dict[str, TensorKind]:
    return {name: spec.kind for name, spec in whole.specs.items()}


def small_model() -> torch.nn.Module:
    torch.manual_seed(3)
    return torch.nn.Sequential(
        OrderedDict(
            conv=torch.nn.Conv2d(1, 4, 3),
            norm=torch.nn.BatchNorm2d(4),
            flat=torch.nn.Flatten(),
            head=torch.nn.Linear(4, 2),
        )
    )


def trained(model: torch.nn.Module) -> torch.optim.AdamW:
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.125, betas=(0.75, 0.96875))
    for _ in range(2):
        optimizer.zero_grad()
        model(torch.randn(3, 1, 3, 3)).square().sum().backward()
        optimizer.step()
    return optimizer


def assert_same(whole: Whole, expected: dict[str, torch.Tensor]) -> None:
    for name, value in expected.items():
        assert whole.specs[name].shape == tuple(value.shape)
        got = whole.values[name]
        if value.numel():
            assert bits(got) == bits(numpy_of(value)), name


@pytest.mark.parametrize(
    "dtype",
    [
        *(torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.complex64, torch.complex128, torch.bool),
        *(torch.int8, torch.int16, torch.int32, torch.int64, torch.uint8, torch.uint16, torch.uint32, torch.uint64),
        *(torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz, torch.float8_e8m0fnu),
    ],
    ids=str,
)
def test_values_of_every_dtype_are_those_of_torch(tmp_path: Path, dtype: torch.dtype) -> None:
    raw = torch.randint(0, 2 if dtype is torch.bool else 256, (48 * dtype.itemsize,), dtype=torch.uint8)
    value = raw.view(dtype).reshape(6, 8)
    whole = read(tmp_path, {"w": value})
    assert whole.specs["w"].dtype == str(dtype).removeprefix("torch.")
    assert whole.values["w"].dtype.name == str(dtype).removeprefix("torch.")
    assert_same(whole, {"w": value})


def test_a_checkpoint_of_model_and_optimizer_is_read_as_torch_reads_it(tmp_path: Path) -> None:
    model = small_model()
    optimizer = trained(model)
    path = saved(tmp_path, {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": 7, "epoch": 1.5})
    whole = read_whole(path)
    loaded = torch.load(path)
    assert_same(whole, loaded["model"])
    names = [name for name, _ in model.named_parameters()]
    assert_same(
        whole,
        {
            f"optimizer.state.{names[index]}.{key}": value
            for index, state in loaded["optimizer"]["state"].items()
            for key, value in state.items()
        },
    )
    assert whole.step == 7
    assert whole.epoch == 1.5
    assert len(whole.specs) == len(loaded["model"]) + 3 * len(loaded["optimizer"]["state"])
    assert kinds(whole)["conv.weight"] is PARAMETER
    assert kinds(whole)["norm.running_mean"] is BUFFER
    assert kinds(whole)["norm.num_batches_tracked"] is BUFFER
    assert kinds(whole)["optimizer.state.conv.weight.exp_avg_sq"] is OPTIMIZER
    assert whole.scalars["optimizer.param_groups.0.lr"] == 0.125
    assert whole.scalars["optimizer.param_groups.0.betas.1"] == 0.96875
    assert whole.scalars["optimizer.param_groups.0.params.length"] == 6
    assert whole.scalars["optimizer.param_groups.0.amsgrad"] == 0


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_every_pickle_protocol_gives_the_same(tmp_path: Path, protocol: int) -> None:
    state = small_model().state_dict()
    assert_same(read(tmp_path, {"state_dict": state, "step": 1}, pickle_protocol=protocol), state)


def test_the_parameters_are_called_the_same_however_they_are_wrapped(tmp_path: Path) -> None:
    model = small_model()
    state = model.state_dict()
    bare = list(read(tmp_path, state).specs)
    assert bare == list(state)
    for value in (
        *({key: state, "epoch": 1} for key in ("model", "state_dict", "model_state_dict", "net", "module")),
        {"model": {"state_dict": state}},
        {"state": {"model": state, "optimizer": trained(model).state_dict()}, "config": {}},
        {"model": model},
        model,
        {"model": None, "ema": model},
        OrderedDict(state),
        [state],
    ):
        whole = read(tmp_path, value)
        names = [name.removeprefix("0.") for name, kind in kinds(whole).items() if kind in (PARAMETER, BUFFER)]
        assert names == bare


def test_a_whole_module_is_walked_by_its_tables(tmp_path: Path) -> None:
    model = small_model()
    conv = model.get_submodule("conv")
    conv.register_buffer("offset", torch.ones(3))
    conv.register_parameter("missing", None)
    model.stride = torch.tensor([8.0])
    whole = read(tmp_path, model)
    assert_same(whole, model.state_dict())
    assert kinds(whole)["conv.offset"] is BUFFER
    assert kinds(whole)["stride"] is OTHER
    assert "conv.missing" not in whole.specs
    assert whole.scalars == {}


def test_a_module_that_is_used_twice_is_named_twice_and_read_once(tmp_path: Path) -> None:
    layer = torch.nn.Linear(2, 2)
    whole = read(tmp_path, torch.nn.ModuleDict({"a": layer, "b": layer}))
    assert list(whole.specs) == ["a.weight", "a.bias", "b.weight", "b.bias"]
    assert whole.specs["b.weight"].tied_to == "a.weight"


def test_a_lightning_checkpoint_is_read_with_everything_around_the_weights(tmp_path: Path) -> None:
    model = small_model()
    value = {
        "epoch": 3,
        "global_step": 400,
        "pytorch-lightning_version": "2.6.6",
        "state_dict": model.state_dict(),
        "loops": {"fit_loop": {"state_dict": {}, "epoch_progress": {"current": {"ready": 4}}}},
        "callbacks": {
            "ModelCheckpoint{'monitor': 'loss'}": {"best_model_score": torch.tensor(0.5), "path": Path("/x")},
            "ModelCheckpoint{'monitor': None}": {"kth_value": torch.tensor(torch.inf), "best_model_score": None},
        },
        "optimizer_states": [trained(model).state_dict(), torch.optim.SGD(model.parameters(), lr=0.5).state_dict()],
        "lr_schedulers": [{"last_epoch": 3}],
        "hyper_parameters": argparse.Namespace(lr=0.1, layers=[1, 2, 3]),
    }
    whole = read(tmp_path, value)
    assert_same(whole, model.state_dict())
    assert whole.step == 400
    assert whole.epoch == 3
    assert kinds(whole)["optimizer.state.conv.weight.exp_avg"] is OPTIMIZER
    assert whole.scalars["optimizer.1.param_groups.0.lr"] == 0.5
    assert whole.scalars["hyper_parameters.lr"] == 0.1
    assert whole.scalars["hyper_parameters.layers.length"] == 3
    assert whole.scalars["callbacks.ModelCheckpoint{'monitor': 'loss'}.best_model_score"] == 0.5
    assert OTHER not in kinds(whole).values()  # a score that is infinite before the first one is no bad weight


def test_an_optimizer_file_alone_is_an_optimizer(tmp_path: Path) -> None:
    whole = read(tmp_path, trained(small_model()).state_dict())
    assert set(kinds(whole).values()) == {OPTIMIZER}
    assert "optimizer.state.0.exp_avg" in whole.specs
    assert whole.scalars["optimizer.param_groups.0.betas.0"] == 0.75


def test_several_optimizers_are_numbered_in_their_order(tmp_path: Path) -> None:
    state = trained(small_model()).state_dict()
    for value, first in (
        ({"model": small_model().state_dict(), "optimizers": [state, state]}, "conv.weight"),
        ({"model": small_model().state_dict(), "optimizer": {"generator": state, "critic": state}}, "conv.weight"),
        ({"model": small_model().state_dict(), "optimizer_g": state, "optimizer_d": state}, "conv.weight"),
        ({"generator": small_model().state_dict(), "optim": state, "adam": state}, "generator.conv.weight"),
    ):
        whole = read(tmp_path, value)
        assert f"optimizer.state.{first}.exp_avg" in whole.specs
        tied = whole.specs[f"optimizer.1.state.{first}.exp_avg"].tied_to
        assert tied == f"optimizer.state.{first}.exp_avg"


def test_two_models_without_a_known_container_keep_their_names(tmp_path: Path) -> None:
    whole = read(
        tmp_path,
        {"generator": {"w": torch.ones(2)}, "critic": {"w": torch.zeros(2)}, "scheduler": {"t": torch.ones(1)}},
    )
    assert kinds(whole) == {"generator.w": PARAMETER, "critic.w": PARAMETER, "scheduler.t": OTHER}


def test_what_lies_beside_the_model_is_other(tmp_path: Path) -> None:
    whole = read(
        tmp_path, {"model": {"w": torch.ones(2)}, "ema": {"w": torch.ones(2)}, "rng_state": torch.get_rng_state()}
    )
    assert kinds(whole) == {"w": PARAMETER, "ema.w": OTHER, "rng_state": OTHER}


def test_a_name_that_clashes_with_one_of_the_model_keeps_its_container(tmp_path: Path) -> None:
    whole = read(tmp_path, {"w": torch.zeros(1), "model": {"w": torch.ones(2)}})
    assert {name: spec.shape for name, spec in whole.specs.items()} == {"w": (1,), "model.w": (2,)}


def test_equal_flattened_names_are_both_kept(tmp_path: Path) -> None:
    whole = read(tmp_path, {"a.b": torch.zeros(1), "a": {"b": torch.ones(2)}})
    assert {name: spec.shape for name, spec in whole.specs.items()} == {"a.b": (1,), "a.b#2": (2,)}


def test_keys_of_every_type_give_stable_printable_names(tmp_path: Path) -> None:
    keys: list[object] = [
        "",
        "x" * 3000,
        "a\nb",
        '"',
        "{{7*7}}",
        "\u202e",
        "\0",
        5,
        2.5,
        None,
        True,
        b"raw",
        ("a", 1),
        frozenset({1}),
    ]
    value = {key: torch.full((2,), float(index)) for index, key in enumerate(keys)}
    whole = read(tmp_path, value, ReadLimits(name_characters_max=64))
    assert len(whole.specs) == len(keys)
    assert all(name.isprintable() and 0 < len(name) <= 64 for name in whole.specs)
    assert [array.tolist()[0] for array in whole.values.values()] == list(range(len(keys)))
    assert {"(empty)", "a\\x0ab", "5", "2.5", "None", "raw", "a_1", "(key)"} <= set(whole.specs)


def test_tied_tensors_are_known_and_views_are_not_tied(tmp_path: Path) -> None:
    weight = torch.arange(12.0).reshape(3, 4)
    value = {"embed": weight, "head": weight, "detached": weight.detach(), "row": weight[1], "flat": weight.view(-1)}
    whole = read(tmp_path, value)
    assert {name: spec.tied_to for name, spec in whole.specs.items()} == {
        "embed": None,
        "head": "embed",
        "detached": "embed",
        "row": None,
        "flat": None,
    }
    assert_same(whole, value)


def test_views_and_strides_are_delivered_in_the_order_of_their_shape(tmp_path: Path) -> None:
    base = torch.randn(6, 8, 10)
    value = {
        "transposed": base.permute(2, 0, 1),
        "step": base[::2, 1:, ::3],
        "column": base[:, :, 4],
        "expanded": base[0, 0].expand(7, 10),
        "channels_last": torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
        "half": base.to(torch.bfloat16).t() if base.ndim == 2 else base.to(torch.bfloat16).transpose(0, 2),
        "scalar": base[3, 3, 3],
        "empty": base[:0],
        "conjugate": torch.randn(3, dtype=torch.complex64).conj(),
        "imaginary": torch.randn(3, dtype=torch.complex64).conj().imag,
    }
    for chunk_bytes_max in (16, 100, 2**20):
        assert_same(read(tmp_path, value, ReadLimits(chunk_bytes_max=chunk_bytes_max)), value)


def test_parameters_subclasses_and_bare_storages_are_tensors(tmp_path: Path) -> None:
    class Marked(torch.Tensor):
        pass

    globals()["Marked"] = Marked
    Marked.__qualname__ = "Marked"
    special = torch.nn.Parameter(torch.ones(2))
    special.note = "kept"  # type: ignore[attr-defined]
    value = {
        "parameter": torch.nn.Parameter(torch.arange(3.0)),
        "with_state": special,
        "subclass": torch.arange(4.0).as_subclass(Marked),
    }
    whole = read(tmp_path, value)
    assert_same(whole, value)
    assert read(tmp_path, torch.arange(5.0)).values["tensor"].tolist() == [0, 1, 2, 3, 4]
    assert read(tmp_path, [torch.arange(3.0).untyped_storage()]).specs["0"].dtype == "uint8"


@pytest.mark.filterwarnings("ignore")
def test_tensors_that_cannot_be_read_say_why_and_the_others_are_read(tmp_path: Path) -> None:
    value = {
        "good": torch.ones(3),
        "sparse": torch.eye(3).to_sparse(),
        "csr": torch.eye(3).to_sparse_csr(),
        "meta": torch.empty(4, 5, device="meta"),
        "quantised": torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8),
        "nested": torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
    }
    whole = read(tmp_path, value)
    assert set(whole.values) == {"good"}
    for name in value.keys() - {"good"}:
        problem = whole.specs[name].problem
        assert problem is not None
        assert problem.isprintable()
    assert whole.specs["meta"].shape == (4, 5)
    assert whole.specs["meta"].dtype == "float32"


def test_a_distributed_tensor_says_why_it_is_not_read(tmp_path: Path) -> None:
    made = call(
        "torch._utils",
        "_rebuild_wrapper_subclass",
        *(ref("torch.distributed.tensor", "DTensor"), ref("torch", "bfloat16"), group(integer(4), integer(5))),
        *(group(integer(5), integer(1)), integer(0), ref("torch", "strided"), text("cpu"), b"\x89"),
    )
    wrapped = call(
        "torch._tensor", "_rebuild_from_type_v2", ref("m", "f"), ref("m", "DTensor"), group(integer(1)), b"}"
    )
    whole = read_bytes(tmp_path, archive(mapping({"d": made, "good": tensor()}) + STOP, {"0": bytes(16)}))
    assert whole.specs["d"].problem is not None
    assert (whole.specs["d"].dtype, whole.specs["d"].shape) == ("bfloat16", (4, 5))
    assert list(whole.values) == ["good"]
    read_bytes(tmp_path, archive(mapping({"d": wrapped, "good": tensor()}) + STOP, {"0": bytes(16)}))


@pytest.mark.parametrize("protocol", [2, 4])
def test_arrays_and_numbers_of_numpy_inside_the_pickle_are_read(tmp_path: Path, protocol: int) -> None:
    arrays: dict[str, npt.NDArray[np.generic]] = {
        "c": np.arange(12.0).reshape(3, 4),
        "fortran": np.asfortranarray(np.arange(12, dtype=np.float32).reshape(3, 4)),
        "big_endian": np.arange(5, dtype=">i4"),
        "complex": np.array([1 + 2j]),
        "bool": np.array([True, False]),
        "empty": np.zeros((0, 3)),
    }
    value = {"model": arrays, "step": np.int64(12), "epoch": np.float32(2.5), "objects": np.array([{}], object)}
    whole = read(tmp_path, value, pickle_protocol=protocol)
    for name, array in arrays.items():
        assert np.array_equal(whole.values[name], array)
        assert whole.specs[name].dtype == array.dtype.newbyteorder("=").name
    assert whole.step == 12
    assert whole.epoch == 2.5
    assert whole.specs["objects"].problem is not None


@pytest.mark.parametrize(
    ("value", "step", "epoch"),
    [
        ({"step": 3, "epoch": 1}, 3, 1.0),
        ({"global_step": 4}, 4, None),
        ({"iter_num": 5, "model": {}}, 5, None),
        ({"iteration": 6}, 6, None),
        ({"num_steps": 7}, 7, None),
        ({"current_step": 8}, 8, None),
        ({"trainer_state": {"global_step": 9, "epoch": 0.5}}, 9, 0.5),
        ({"step": torch.tensor(10), "epoch": torch.tensor(2.0)}, 10, 2.0),
        ({"step": -1, "epoch": float("nan")}, None, None),
        ({"step": True}, None, None),
        ({"step": 2.0}, 2, None),
        ({"step": "11"}, None, None),
        ({"step": torch.ones(5)}, None, None),
        ({"step": 12, "global_step": 13}, 12, None),
    ],
)
def test_step_and_epoch_are_found_where_training_code_puts_them(
    tmp_path: Path, value: object, step: int | None, epoch: float | None
) -> None:
    whole = read(tmp_path, value)
    assert (whole.step, whole.epoch) == (step, epoch)


def test_long_lists_of_numbers_give_their_length_only(tmp_path: Path) -> None:
    whole = read(tmp_path, {"a": list(range(16)), "b": list(range(17)), "c": [], "d": [1.0, float("inf"), 2]})
    assert whole.scalars["a.length"] == 16
    assert whole.scalars["a.15"] == 15
    assert {name: value for name, value in whole.scalars.items() if not name.startswith("a")} == {
        "b.length": 17,
        "d.length": 3,
        "d.0": 1,
        "d.2": 2,
    }


def test_the_numbers_of_the_optimizer_survive_the_limit(tmp_path: Path) -> None:
    value = {
        "log": {str(i): i for i in range(100)},
        "model": {"w": torch.ones(1)},
        "optimizer": trained(small_model()).state_dict(),
    }
    whole = read(tmp_path, value, ReadLimits(scalars_max=30))
    assert len(whole.scalars) == 30
    assert whole.scalars["optimizer.param_groups.0.betas.1"] == 0.96875


@dataclass
class TrainState:
    weights: dict[str, torch.Tensor]
    step: int


def test_objects_of_any_class_are_walked_by_their_attributes(tmp_path: Path) -> None:
    whole = read(tmp_path, {"state": TrainState({"w": torch.ones(2)}, 5)})
    assert whole.values["state.weights.w"].tolist() == [1, 1]
    assert whole.scalars["state.step"] == 5


def test_a_torchscript_archive_gives_its_tensors_and_no_code_is_run(tmp_path: Path) -> None:
    path = tmp_path / "script.pt"
    model = small_model().eval()
    with pytest.warns(DeprecationWarning, match="deprecated"):
        torch.jit.save(torch.jit.trace(model, torch.zeros(1, 1, 3, 3)), path)  # type: ignore[no-untyped-call]
    with audited() as events:
        whole = read_whole(path)
    assert events == []
    assert {bits(value) for value in whole.values.values()} >= {bits(numpy_of(p)) for p in model.parameters()}


def test_checksums_are_not_needed(tmp_path: Path) -> None:
    torch.serialization.set_crc32_options(False)
    try:
        path = saved(tmp_path, {"w": torch.arange(9.0)})
    finally:
        torch.serialization.set_crc32_options(True)
    assert read_whole(path).values["w"].tolist() == list(range(9))


def test_an_archive_packed_anew_with_compression_is_read(tmp_path: Path) -> None:
    path = saved(tmp_path, {"w": torch.arange(3000.0).reshape(50, 60).t()})
    packed = tmp_path / "packed.pt"
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    assert np.array_equal(read_whole(packed).values["w"], np.arange(3000.0).reshape(50, 60).T)


# What a hostile or broken file may hold.


@pytest.mark.parametrize("name", payloads("x"))
def test_a_payload_beside_the_tensors_runs_nothing_and_hides_nothing(tmp_path: Path, name: str) -> None:
    canary = tmp_path / "canary"
    pickle = b"\x80\x04" + mapping({"evil": payloads(str(canary))[name], "w": tensor()}) + STOP
    values = np.array([1, 2, 3, 4], np.float32)
    path = tmp_path / "made.pt"
    path.write_bytes(archive(pickle, {"0": values.tobytes()}))
    with audited() as events:
        whole = read_whole(path)
    assert events == []
    assert not canary.exists()
    assert whole.values["w"].tolist() == [1, 2, 3, 4]


class Evil:
    def __init__(self, canary: str) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        import os

        return (os.system, (f"touch {self.canary}",))


def test_what_torch_itself_would_run_is_not_run_and_is_named(tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    path = saved(tmp_path, {"model": {"w": torch.ones(2)}, "note": Evil(str(canary))})
    with audited() as events, open_path(str(path)) as opened:
        assert any(name.endswith(".system") for name in opened.checkpoint.globals_seen)  # type: ignore[attr-defined]
        assert [spec.name for spec in opened.checkpoint.tensors] == ["w"]
    assert events == []
    assert not canary.exists()
    torch.load(path, weights_only=False)
    assert canary.exists()


GEOMETRY: dict[str, bytes] = {
    "more elements than the storage": tensor(shape=(5,)),
    "an offset beyond the storage": tensor(offset=4, shape=(1,)),
    "a negative offset": tensor(offset=-1),
    "a stride beyond the storage": tensor(shape=(2,), stride=(4,)),
    "a huge stride": tensor(shape=(2,), stride=(2**62,)),
    "a negative stride": tensor(shape=(2,), stride=(-1,)),
    "a negative size": tensor(shape=(-1,)),
    "a huge size": tensor(shape=(2**63 - 1,)),
    "a product beyond 64 bits": tensor(shape=(2**40, 2**40), stride=(1, 1)),
    "more strides than sizes": tensor(shape=(4,), stride=(1, 1)),
    "a text for a shape": tensor(shape=text("4")),
    "a truth value for a size": tensor(shape=group(b"\x88")),
    "a float for a stride": tensor(stride=group(b"G?\xf0\0\0\0\0\0\0")),
    "a text for an offset": tensor(offset=text("0")),
    "200 dimensions": tensor(shape=(1,) * 200, stride=(1,) * 200),
    "a storage larger than its member": tensor(n_elements=5, shape=(2,)),
    "too few arguments": call("torch._utils", "_rebuild_tensor_v2", persistent(text("0"))),
    "too many arguments": call("torch._utils", "_rebuild_tensor_v2", persistent(text("0")), *[integer(1)] * 9),
    "no storage": call("torch._utils", "_rebuild_tensor_v2", *[integer(1)] * 6),
    "a dtype of another module": call(
        "torch._utils",
        "_rebuild_tensor_v3",
        *(persistent(text("0")), integer(0), group(integer(1)), group(integer(1)), b"\x89", b"N", ref("os", "system")),
    ),
    "an unknown dtype": call(
        "torch._utils",
        "_rebuild_tensor_v3",
        *(persistent(text("0")), integer(0), group(integer(1)), group(integer(1)), b"\x89", b"N", ref("torch", "int3")),
    ),
    "a parameter of nothing": call("torch._utils", "_rebuild_parameter", b"N", b"\x88", b"N"),
    "a parameter of a parameter of a parameter": b"".join([ref("torch._utils", "_rebuild_parameter") + b"("] * 20)
    + tensor()
    + b"tR" * 20,
    "a conjugate of real numbers": call(
        "torch._utils",
        "_rebuild_tensor_v2",
        *(persistent(text("0")), integer(0), group(integer(4)), group(integer(1)), b"\x89", b"N"),
        mapping({"conj": b"\x88"}),
    ),
}


@pytest.mark.parametrize("case", GEOMETRY)
def test_a_tensor_that_does_not_fit_has_a_problem_and_the_others_are_read(tmp_path: Path, case: str) -> None:
    values = np.array([1, 2, 3, 4], np.float32)
    pickle = mapping({"bad": GEOMETRY[case], "w": tensor()}) + STOP
    whole = read_bytes(tmp_path, archive(pickle, {"0": values.tobytes()}))
    assert whole.values["w"].tolist() == [1, 2, 3, 4]
    problem = whole.specs["bad"].problem
    assert problem
    assert problem.isprintable()


PERSISTENT: dict[str, bytes] = {
    "a dict": mapping({"storage": integer(1)}) + b"Q",
    "a text": text("storage") + b"Q",
    "a nested tuple": group(group(text("storage"))) + b"Q",
    "four parts": group(text("storage"), ref("torch", "FloatStorage"), text("0"), text("cpu")) + b"Q",
    "a key that is a number": persistent(integer(0)),
    "a location that is none": persistent(text("0"), location=b"N"),
    "a negative size": persistent(text("0"), -1),
    "an unknown type": persistent(text("0"), kind="EvilStorage"),
    "a type of another module": group(text("storage"), ref("os", "FloatStorage"), text("0"), text("cpu"), integer(1))
    + b"Q",
    "itself": b"](" + b"e" + b"Q",
}


@pytest.mark.parametrize("case", PERSISTENT)
def test_a_storage_reference_of_any_other_shape_is_corrupt(tmp_path: Path, case: str) -> None:
    with pytest.raises(CorruptError):
        read_bytes(tmp_path, archive(mapping({"x": PERSISTENT[case]}) + STOP, {"0": bytes(16)}))


@pytest.mark.parametrize("key", ["../../etc/passwd", "/etc/passwd", "9", ""])
def test_a_storage_that_is_not_there_is_corrupt_and_never_a_path(tmp_path: Path, key: str) -> None:
    with pytest.raises(CorruptError, match="no storage"):
        read_bytes(tmp_path, archive(mapping({"w": tensor(key)}) + STOP, {"0": bytes(16)}))


@pytest.mark.parametrize(("byteorder", "expected"), [(b"little", "<f4"), (b"big", ">f4"), (None, "<f4")])
def test_the_byte_order_is_honoured(tmp_path: Path, byteorder: bytes | None, expected: str) -> None:
    values = np.array([1, -2, 3.5, 4], expected)
    whole = read_bytes(tmp_path, archive(mapping({"w": tensor()}) + STOP, {"0": values.tobytes()}, byteorder=byteorder))
    assert whole.values["w"].tolist() == [1, -2, 3.5, 4]


@pytest.mark.parametrize("byteorder", [b"xxx", b"", b"little\n", b"x" * 1000])
def test_an_unknown_byte_order_is_refused(tmp_path: Path, byteorder: bytes) -> None:
    with pytest.raises((CorruptError, LimitError)):
        read_bytes(tmp_path, archive(mapping({"w": tensor()}) + STOP, {"0": bytes(16)}, byteorder=byteorder))


def test_an_expansion_of_one_element_to_a_trillion_costs_nothing(tmp_path: Path) -> None:
    pickle = (
        mapping({"wide": tensor(shape=(10**12,), stride=(0,)), "fine": tensor(shape=(100, 4), stride=(0, 1))}) + STOP
    )
    whole = read_bytes(tmp_path, archive(pickle, {"0": bytes(16)}))
    assert whole.specs["wide"].problem is not None
    assert whole.values["fine"].shape == (100, 4)


def test_many_views_of_one_storage_are_not_read_without_end(tmp_path: Path) -> None:
    views = {f"v{i}": tensor(offset=i, n_elements=1000, shape=(900,)) for i in range(100)}
    data = archive(mapping(views) + STOP, {"0": bytes(4000)})
    limits = ReadLimits(expanded_bytes_min=0)
    whole = read_bytes(tmp_path, data, limits)
    assert 0 < sum(value.nbytes for value in whole.values.values()) <= 4 * len(data)
    assert len(read_bytes(tmp_path, data).values) == 100


@pytest.mark.parametrize("value", [b"]" * 5000 + b"a" * 4999, b")" + b"\x85" * 5000], ids=["list", "tuple"])
def test_nesting_without_end_is_over_the_limit(tmp_path: Path, value: bytes) -> None:
    with pytest.raises(LimitError):
        read_bytes(tmp_path, archive(mapping({"deep": value, "w": tensor()}) + STOP, {"0": bytes(16)}))


def test_nesting_at_the_limit_is_read_and_one_more_is_not(tmp_path: Path) -> None:
    def nested(depth: int) -> bytes:
        return b"](" * depth + tensor() + b"e" * depth + STOP

    assert (
        len(read_bytes(tmp_path, archive(nested(50), {"0": bytes(16)}), ReadLimits(nesting_depth_max=50)).values) == 1
    )
    with pytest.raises(LimitError):
        read_bytes(tmp_path, archive(nested(52), {"0": bytes(16)}), ReadLimits(nesting_depth_max=50))


@pytest.mark.parametrize("as_key", [False, True])
def test_billion_laughs_end_and_the_tensors_are_read(tmp_path: Path, as_key: bool) -> None:
    laughs = b"]q\x00" + b"0" + b"(" + b"h\x00" * 9 + b"tq\x00" + (b"0(" + b"h\x00" * 9 + b"tq\x00") * 9
    pairs = [(laughs, b"N")] if as_key else [(text("lol"), laughs)]
    whole = read_bytes(tmp_path, archive(mapping([*pairs, (text("w"), tensor())]) + STOP, {"0": bytes(16)}))
    assert list(whole.values) == ["w"]


def test_parts_that_contain_themselves_are_cut(tmp_path: Path) -> None:
    loop = b"]q\x00h\x00a"
    own_dict = b"}q\x01" + text("me") + b"h\x01s" + text("w") + tensor() + b"s"
    whole = read_bytes(tmp_path, archive(mapping({"loop": loop, "own": own_dict}) + STOP, {"0": bytes(16)}))
    assert list(whole.values) == ["own.w"]


def test_two_pickles_in_one_archive_are_ambiguous(tmp_path: Path) -> None:
    data = mapping({"w": tensor()}) + STOP
    for extra in ("other/data.pkl", "archive/DATA.PKL", "archive/inner/data.pkl"):
        with pytest.raises(AmbiguousError):
            read_bytes(tmp_path, archive(data, {"0": bytes(16)}, extra={extra: data}))


def test_an_archive_whose_saving_failed_is_incomplete(tmp_path: Path) -> None:
    path = tmp_path / "failed.pt"
    with pytest.raises(Exception, match=r"pickle|local"):
        torch.save({"w": torch.ones(3), "bad": lambda: None}, path)
    with pytest.raises(IncompleteError):
        read_whole(path)


def test_a_zip_of_something_else_is_unsupported(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError):
        read_bytes(tmp_path, build([Member(name=b"docs/readme.txt", data=b"hello")]))


def test_a_bomb_in_the_archive_is_over_the_limit(tmp_path: Path) -> None:
    packed = b"\x03\x00"
    members = [
        Member(name=b"a/data.pkl", data=mapping({"w": tensor(n_elements=10**10, shape=(10**10,))}) + STOP),
        Member(name=b"a/data/0", data=packed, method=8, n_bytes=4 * 10**9, packed_bytes=2),
    ]
    with pytest.raises(LimitError):
        read_bytes(tmp_path, build(members))


def test_too_many_tensors_are_over_the_limit(tmp_path: Path) -> None:
    value = {str(i): torch.ones(1) for i in range(11)}
    assert len(read(tmp_path, value, ReadLimits(tensors_max=11)).specs) == 11
    with pytest.raises(LimitError):
        read(tmp_path, value, ReadLimits(tensors_max=10))


@pytest.mark.parametrize("root", [b"N", text("x"), integer(5), b"]", b")", b"}", b"\x8f", ref("os", "system")])
def test_a_checkpoint_without_tensors_is_empty_not_an_error(tmp_path: Path, root: bytes) -> None:
    assert read_bytes(tmp_path, archive(root + STOP)).specs == {}


@pytest.mark.parametrize("pickle", [b"", b"N", b"\xff.", b"NN", b"N.N."])
def test_a_broken_pickle_in_a_whole_archive_is_corrupt(tmp_path: Path, pickle: bytes) -> None:
    with pytest.raises(ReadError) as caught:
        read_bytes(tmp_path, archive(pickle))
    assert isinstance(caught.value, CorruptError)
