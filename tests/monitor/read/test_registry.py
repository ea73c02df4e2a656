from __future__ import annotations

import os
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest

from monitor.read import plugins, registry
from monitor.read.reader import (
    CorruptError,
    IncompleteError,
    LimitError,
    NotRegularError,
    ReadError,
    ReadLimits,
    UnsupportedError,
    VanishedError,
)
from monitor.read.registry import READERS, detect, open_path, reader_class
from tests.support.reading import read_whole


def opened(tmp_path: Path, data: bytes, name: str = "model.pt") -> None:
    path = tmp_path / name
    path.write_bytes(data)
    read_whole(path)


def test_the_table_is_sorted_and_every_reader_can_be_imported() -> None:
    assert list(READERS) == sorted(READERS)
    for name in READERS:
        assert reader_class(name).name == name


@pytest.mark.parametrize("suffix", [".pt", ".safetensors", ".npz", ".npy", ".unknown"])
def test_an_empty_file_is_incomplete(tmp_path: Path, suffix: str) -> None:
    with pytest.raises(IncompleteError, match="empty"):
        opened(tmp_path, b"", f"x{suffix}")


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git-lfs"),
        (b"\n  <!DOCTYPE html><html>404", "HTML"),
        (b"<html><body>", "HTML"),
        (b"7z\xbc\xaf\x27\x1c" + bytes(50), "7z"),
        (b"Rar!\x1a\x07" + bytes(50), "RAR"),
        (b"\x7fELF" + bytes(50), "program"),
        (b"%PDF-1.7", "PDF"),
    ],
)
@pytest.mark.parametrize("name", ["model.pt", "model.npz", "model.unknown"])
def test_what_a_file_looks_like_is_said(tmp_path: Path, data: bytes, says: str, name: str) -> None:
    with pytest.raises(UnsupportedError, match=says):
        opened(tmp_path, data, name)


def test_an_unknown_file_names_the_formats_that_are_read(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match=r"safetensors, .*torch_zip"):
        opened(tmp_path, b"something else entirely", "notes.txt")


@pytest.mark.parametrize("name", ["x.pt", "x.ckpt", "x.safetensors", "x.npz", "x.npy", "x.PT"])
def test_a_file_that_only_has_the_name_of_a_format_is_corrupt_or_over_a_limit(tmp_path: Path, name: str) -> None:
    with pytest.raises((CorruptError, LimitError)):
        opened(tmp_path, b"this is not a model, whatever its name says", name)


@pytest.mark.parametrize("name", ["x.pt", "x.safetensors", "x.npz", "x.npy", "x.unknown"])
def test_a_file_of_zeros_may_still_be_filled(tmp_path: Path, name: str) -> None:
    with pytest.raises(IncompleteError):
        opened(tmp_path, bytes(10_000), name)


def test_content_goes_before_name(tmp_path: Path) -> None:
    path = tmp_path / "really.npz"
    np.savez(path, w=np.ones(2))
    lying = path.rename(tmp_path / "lying.safetensors")
    with open_path(str(lying)) as found:
        assert found.format == "npz"


def test_a_directory_is_unsupported_and_a_missing_path_vanished(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="directory"), open_path(str(tmp_path)):
        pass
    with pytest.raises(VanishedError), open_path(str(tmp_path / "none.pt")):
        pass


def test_a_pipe_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "model.pt")
    with pytest.raises(NotRegularError), open_path(str(tmp_path / "model.pt")):
        pass


def test_a_link_to_a_checkpoint_is_followed(tmp_path: Path) -> None:
    np.save(tmp_path / "blob", np.ones(2))
    (tmp_path / "model.npy").symlink_to("blob.npy")
    assert read_whole(tmp_path / "model.npy").values["tensor"].tolist() == [1, 1]


class OwnReader:
    name: ClassVar[str] = "own"
    suffixes: ClassVar[tuple[str, ...]] = (".own",)
    error: ClassVar[Exception | None] = None

    @classmethod
    def sniff(cls, head: bytes, path: str) -> bool:
        return head.startswith(b"OWN")

    def open(self, file: object, limits: ReadLimits) -> object:
        if self.error is not None:
            raise self.error
        return self


@pytest.fixture
def own_reader(monkeypatch: pytest.MonkeyPatch) -> type[OwnReader]:
    entry_points = [
        EntryPoint("own", f"{__name__}:OwnReader", registry.ENTRY_POINT_GROUP),
        EntryPoint("broken", "no.such.module:Reader", registry.ENTRY_POINT_GROUP),
        EntryPoint("npz", f"{__name__}:OwnReader", registry.ENTRY_POINT_GROUP),
    ]
    monkeypatch.setattr(EntryPoint, "load", lambda self: OwnReader if self.name == "own" else missing())
    monkeypatch.setattr(plugins, "entry_points", lambda group: entry_points)
    monkeypatch.setattr(OwnReader, "error", None)
    registry.plugin_readers.cache_clear()
    monkeypatch.setattr(registry, "plugin_readers", registry.plugin_readers.__wrapped__)
    return OwnReader


def missing() -> None:
    raise ImportError("no such module")


def test_readers_of_other_distributions_are_asked_after_our_own(
    own_reader: type[OwnReader], caplog: pytest.LogCaptureFixture
) -> None:
    assert detect(b"OWN FORMAT", "x").name == "own"
    assert detect(b"??? FORMAT", "x.own").name == "own"
    assert detect(b"\x93NUMPY", "x.own").name == "npy"
    assert "'broken'" in caplog.text
    assert "'npz'" in caplog.text


@pytest.mark.parametrize(
    ("raised", "expected"),
    [
        (RecursionError(), LimitError),
        (MemoryError(), LimitError),
        (KeyError("x"), CorruptError),
        (ValueError("\n"), CorruptError),
        (OverflowError(), CorruptError),
        (ZeroDivisionError(), CorruptError),
        (TypeError(), CorruptError),
        (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad"), CorruptError),
        (IncompleteError("not yet"), IncompleteError),
    ],
)
def test_what_a_parser_did_not_foresee_gets_a_place_in_the_tree(
    tmp_path: Path,
    own_reader: type[OwnReader],
    monkeypatch: pytest.MonkeyPatch,
    raised: Exception,
    expected: type[ReadError],
) -> None:
    monkeypatch.setattr(OwnReader, "error", raised)
    with pytest.raises(expected) as caught:
        opened(tmp_path, b"OWN FORMAT", "x")
    assert str(caught.value).isprintable()


def test_an_error_of_the_caller_is_not_taken_for_one_of_the_file(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.ones(1))
    with pytest.raises(KeyError), open_path(str(tmp_path / "x.npy")):
        raise KeyError("mine")


def test_reading_needs_no_framework(tmp_path: Path) -> None:
    import subprocess
    import sys

    program = (
        "import sys; from monitor.read.registry import READERS, reader_class\n"
        "for name in READERS: reader_class(name)\n"
        "print({'torch', 'numba', 'safetensors', 'pickle', 'mmap', 'tensorflow', 'h5py'} & set(sys.modules))"
    )
    root = Path(__file__).parents[3]
    done = subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() in ("set()", "{'pickle'}")  # NumPy imports pickle, we do not use it


@pytest.mark.parametrize("n_header", [*range(0x0280, 0x0581, 0x100), 0x950280, 0x630480])
def test_a_safetensors_header_of_any_length_is_not_taken_for_a_pickle(n_header: int) -> None:
    assert detect(n_header.to_bytes(8, "little") + b'{"a": ', "x.bin").name == "safetensors"
