import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from monitor.read.reader import ReadError
from monitor.read.registry import open_path
from storage.records import ProblemKind
from tests.conformance.reader import Arrays, ReaderConformance
from tests.hostile.pickles import STOP, mapping, payloads
from tests.support.audit import audited
from tests.support.memory import peak_bytes_of_reading
from tests.support.reading import read_whole


def save(value: object, path: Path) -> None:
    torch.save(value, path, _use_new_zipfile_serialization=False)


class TestTorchLegacy(ReaderConformance):
    format = "torch_legacy"

    def write(self, path: Path, arrays: Arrays) -> None:
        save({name: torch.from_numpy(np.array(array)) for name, array in arrays.items()}, path)


@pytest.fixture(scope="module")
def trained() -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.BatchNorm1d(8), torch.nn.Linear(8, 1))
    optimizer = torch.optim.Adam(model.parameters())
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.randn(16, 4)).square().mean().backward()
        optimizer.step()
    return model, optimizer


def test_a_training_checkpoint_has_its_names_kinds_step_and_values(
    tmp_path: Path, trained: tuple[torch.nn.Module, torch.optim.Optimizer]
) -> None:
    model, optimizer = trained
    path = tmp_path / "model.pt"
    save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": 3, "epoch": 1}, path)
    whole = read_whole(path)
    assert (whole.format, whole.step, whole.epoch) == ("torch_legacy", 3, 1.0)
    for name, tensor in model.state_dict().items():
        np.testing.assert_array_equal(whole.values[name], tensor.numpy())
    assert whole.specs["0.weight"].kind == "parameter"
    assert whole.specs["1.running_mean"].kind == "buffer"
    state = optimizer.state_dict()["state"][0]["exp_avg_sq"]
    np.testing.assert_array_equal(whole.values["optimizer.state.0.weight.exp_avg_sq"], state.numpy())


def test_a_whole_module_with_its_source_code_beside_it_is_walked(
    tmp_path: Path, trained: tuple[torch.nn.Module, torch.optim.Optimizer]
) -> None:
    model, _ = trained
    path = tmp_path / "module.pt"
    save(model, path)
    whole = read_whole(path)
    np.testing.assert_array_equal(whole.values["2.weight"], model[2].weight.detach().numpy())  # type: ignore[index]


def test_views_strides_and_ties_are_resolved(tmp_path: Path) -> None:
    base = torch.arange(24, dtype=torch.float32).reshape(4, 6)
    path = tmp_path / "views.pt"
    save({"base": base, "transposed": base.t(), "row": base[2], "same": base, "half": base.to(torch.bfloat16)}, path)
    whole = read_whole(path)
    np.testing.assert_array_equal(whole.values["transposed"], base.t().numpy())
    np.testing.assert_array_equal(whole.values["row"], base[2].numpy())
    assert whole.specs["same"].tied_to == "base"
    np.testing.assert_array_equal(whole.values["half"].astype(np.float32), base.numpy())


def test_any_protocol_is_known_by_its_content(tmp_path: Path) -> None:
    path = tmp_path / "protocol"
    for protocol in (2, 3, 4, 5):
        torch.save({"w": torch.ones(3)}, path, pickle_protocol=protocol, _use_new_zipfile_serialization=False)
        whole = read_whole(path)
        assert whole.format == "torch_legacy"
        assert whole.values["w"].tolist() == [1.0, 1.0, 1.0]


def test_a_storage_that_lies_about_its_size_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "lies.pt"
    save({"w": torch.ones(3)}, path)
    data = path.read_bytes()
    for claimed in (2**62, -1, 2, 4):
        path.write_bytes(data[:-20] + claimed.to_bytes(8, "little", signed=True) + data[-12:])
        with pytest.raises(ReadError) as caught, open_path(str(path)):
            pass
        assert caught.value.kind is ProblemKind.CORRUPT


@pytest.mark.parametrize("name", payloads("x"))
def test_no_payload_is_run(name: str, tmp_path: Path) -> None:
    canary, path = tmp_path / "canary", tmp_path / "evil.pt"
    save({"w": 1}, path)
    honest = path.read_bytes()
    place = honest.index(pickle.dumps({"w": 1}, protocol=2)[2:])
    root = mapping({"w": b"K\x01", "evil": payloads(str(canary))[name]})
    path.write_bytes(honest[:place] + root + STOP + pickle.dumps([], protocol=2))
    with audited() as events, open_path(str(path)) as opened:
        assert opened.checkpoint.scalars["w"] == 1.0
    assert events == []
    assert not canary.exists()


@pytest.mark.slow
def test_two_gibibytes_need_the_memory_of_a_chunk(tmp_path: Path) -> None:
    path = tmp_path / "large.pt"
    storage_bytes = 2**31
    save({"w": torch.ones(3)}, path)
    data = path.read_bytes()
    large = (storage_bytes // 4).to_bytes(4, "little")
    head = data[:-20]
    # both places where the pickle says 3: the storage's number of elements and the tensor's size
    head = head.replace(b"K\x03Nt", b"J" + large + b"Nt").replace(b"K\x00K\x03\x85", b"K\x00J" + large + b"\x85")
    with path.open("wb") as stream:
        stream.write(head + (storage_bytes // 4).to_bytes(8, "little"))
        stream.truncate(stream.tell() + storage_bytes)
    assert peak_bytes_of_reading(path, n_elements=storage_bytes // 4) < 250 * 2**20
