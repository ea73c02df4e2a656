from __future__ import annotations

from pathlib import Path

import pytest

from monitor.read.directories import claim_units, locate, unit_files
from monitor.read.reader import LimitError, UnsupportedError
from monitor.read.registry import open_path
from monitor.read.unfinished import is_temporary_inside
from monitor.read.unit import Claim, DirectoryListing, claimed_files, list_directory, unit_path


def listing(name: str, *files: str, directories: tuple[str, ...] = ()) -> DirectoryListing:
    return DirectoryListing(name=name, files=frozenset(files), directories=frozenset(directories))


def made(directory: Path, *names: str) -> Path:
    for name in names:
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_bytes(b"x")
    return directory


@pytest.mark.parametrize(
    ("found", "reader"),
    [
        (listing("checkpoint-5", "model.safetensors", "config.json"), "hf_trainer"),
        (listing("checkpoint-5", "model.safetensors", "optimizer.pt", "trainer_state.json"), "hf_trainer"),
        (listing("checkpoint-5", "model-00001-of-00002.safetensors"), "hf_trainer"),
        (listing("checkpoint-5", "adapter_model.safetensors", "README.md"), "hf_trainer"),
        (listing("best", "pytorch_model.bin", "training_args.bin"), "hf_trainer"),
        (listing("checkpoint-5", "model.safetensors", "optimizer.bin"), "accelerate"),
        (listing("checkpoint_5", "model.safetensors"), "accelerate"),
        (listing("state", "pytorch_model.bin", "random_states_0.pkl"), "accelerate"),
        (listing("adapter", "adapter_model.safetensors"), "peft"),
        (listing("out", "model-00001-of-00002.safetensors", "config.json"), "sharded"),
        (listing("out", "model.safetensors.index.json", directories=("checkpoint-5",)), "sharded"),
    ],
)
def test_a_checkpoint_is_recognised_by_its_names_before_it_is_whole(found: DirectoryListing, reader: str) -> None:
    assert [claim.reader for claim in claim_units(found)] == [reader]


@pytest.mark.parametrize(
    "found",
    [
        listing("checkpoint-5"),
        listing("checkpoint-5", "config.json", "tokenizer.json"),
        listing("out", "model.safetensors", "config.json"),
        listing("out", "model.safetensors", "training_args.bin", directories=("checkpoint-5", "runs")),
        listing("out", "adapter_model.safetensors", directories=("checkpoint-5",)),
        listing("logs", "events.out.tfevents.1"),
        listing("out", "step_1.pt", "step_2.pt"),
    ],
)
def test_other_directories_are_no_checkpoints_themselves(found: DirectoryListing) -> None:
    assert claim_units(found) == ()


def test_a_directory_is_located_whatever_way_it_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unit = made(tmp_path / "checkpoint-5", "model.safetensors", "trainer_state.json")
    (tmp_path / "latest").symlink_to("checkpoint-5")
    monkeypatch.chdir(unit)
    for path in (str(unit), f"{unit}/", ".", str(tmp_path / "latest"), f"{unit}/../checkpoint-5"):
        located = locate(path)
        assert located is not None
        assert unit_path(located.directory, located.claim) == str(unit)


def test_a_directory_of_several_groups_stands_for_none_and_each_index_for_its_own(tmp_path: Path) -> None:
    made(tmp_path, "a-00001-of-00001.bin", "a.bin.index.json", "b-00001-of-00001.bin", "b.bin.index.json")
    assert locate(str(tmp_path)) is None
    files = unit_files(str(tmp_path / "b.bin.index.json"))
    assert files is not None
    assert [Path(file.path).name for file in files] == ["b-00001-of-00001.bin", "b.bin.index.json"]
    assert locate(str(tmp_path / "a-00001-of-00001.bin")) is None
    with pytest.raises(UnsupportedError, match="is a directory"), open_path(str(tmp_path)):
        pass


def test_what_is_gone_or_no_unit_has_no_files(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "missing", tmp_path / "x.index.json", made(tmp_path, "a.pt") / "a.pt"):
        assert unit_files(str(path)) is None


def test_temporary_and_unfinished_names_are_not_listed(tmp_path: Path) -> None:
    made(tmp_path, "a", ".tmpX", "b.tmp", ".metadata", "c-unfinished", "c.ckpt", "d/x", "e-tmp/x", ".hidden/x")
    found = list_directory(str(tmp_path))
    assert found.files == {"a", ".metadata"}
    assert found.directories == {"d"}


def test_directories_of_a_unit_are_taken_with_their_dot_files_but_without_leftovers(tmp_path: Path) -> None:
    made(tmp_path, "d/.zarray", "d/0.0", "d/e/.zattrs", "d/.nfs0001", "d/.tmpA", "d/x.tmp1")
    files = claimed_files(str(tmp_path), Claim(reader="r", files=frozenset(), directories=frozenset({"d", "gone"})))
    assert [Path(file.path).relative_to(tmp_path).as_posix() for file in files] == ["d/.zarray", "d/0.0", "d/e/.zattrs"]
    assert not is_temporary_inside(".zgroup")


def test_a_unit_of_too_many_files_or_too_deep_is_refused(tmp_path: Path) -> None:
    made(tmp_path, *(f"d/{n}" for n in range(20)))
    claim = Claim(reader="r", files=frozenset(), directories=frozenset({"d"}))
    with pytest.raises(LimitError, match="files"):
        claimed_files(str(tmp_path), claim, files_max=10)
    made(tmp_path, "d/" + "e/" * 40 + "f")
    with pytest.raises(LimitError, match="nested"):
        claimed_files(str(tmp_path), claim)
