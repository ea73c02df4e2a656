"""Bad inputs that belong to no single reader's tests, each before the whole of reading: one error, nothing done.

Geometry at its edges, what pretends to be the old formats of PyTorch and joblib, links inside archives, names that lie.
"""

from __future__ import annotations

import io
import os
import pickle
import random
import stat
import struct
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from monitor.measure.workers import worker_environment
from monitor.read.reader import ReadError, ReadLimits
from monitor.read.registry import open_path
from storage.records import ProblemKind
from tests.hostile.pickles import EMPTY_TUPLE, STOP, archive, call, group, integer, mapping, payloads, ref, tensor, text
from tests.support.audit import audited

K = ProblemKind
REFUSALS = {K.CORRUPT, K.UNSUPPORTED, K.INCOMPLETE, K.TRUNCATED, K.LIMIT, K.AMBIGUOUS, K.UNSAFE_REFERENCE}
PROTOCOL_2 = b"\x80\x02"
MAGIC = 0x1950A86A20F9469CFC6C


def outcome(path: Path) -> tuple[ProblemKind | None, dict[str, tuple[tuple[int, ...], str | None]]]:
    """Return the kind of the error, None without one, and {name: (shape, problem)}; nothing else may have happened."""
    os.utime(path, (1_600_000_000, 1_600_000_000))
    found: dict[str, tuple[tuple[int, ...], str | None]] = {}
    with audited() as events:
        try:
            with open_path(str(path), ReadLimits()) as opened:
                for spec in opened.checkpoint.tensors:
                    if spec.problem is None:
                        for _ in opened.checkpoint.chunks(spec):
                            pass
                    found[spec.name] = (tuple(spec.shape), spec.problem)
        except ReadError as error:
            kind: ProblemKind | None = error.kind
            message = str(error)
        else:
            kind, message = None, ""
    assert events == []
    assert message.isprintable()
    return kind, found


# A tensor's shape at its edges: nothing, one element, as many dimensions as there may be, more than there are bytes.


@pytest.mark.parametrize(
    ("shape", "stride", "n_bytes"),
    [((0,), (1,), 16), ((3, 0, 2), (0, 2, 1), 16), ((), (), 16), ((1,) * 64, (1,) * 64, 16)],
)
def test_shapes_at_the_edge_are_read(
    tmp_path: Path, shape: tuple[int, ...], stride: tuple[int, ...], n_bytes: int
) -> None:
    path = tmp_path / "x.pt"
    path.write_bytes(
        archive(PROTOCOL_2 + mapping({"w": tensor(shape=shape, stride=stride)}) + STOP, {"0": b"\0" * n_bytes})
    )
    assert outcome(path) == (None, {"w": (shape, None)})


@pytest.mark.parametrize("shape", [(2**63,), (2**32, 2**31), (2**62, 2, 2), (2**21, 2**21, 2**21)])
def test_a_shape_whose_product_overflows_is_refused_and_the_tensor_beside_it_is_read(
    tmp_path: Path, shape: tuple[int, ...]
) -> None:
    path = tmp_path / "x.pt"
    pairs = {"bad": tensor(shape=shape, stride=(1,) * len(shape)), "good": tensor()}
    path.write_bytes(archive(PROTOCOL_2 + mapping(pairs) + STOP, {"0": b"\0" * 16}))
    kind, found = outcome(path)
    assert kind in {None, K.CORRUPT, K.LIMIT}
    if kind is None:
        assert found["good"] == ((4,), None)
        assert found["bad"][1] is not None


# The old format of PyTorch: five pickles and raw storages, or a tar archive.


def legacy(magic: bytes) -> bytes:
    system = pickle.dumps({"protocol_version": 1001, "little_endian": True, "type_sizes": {}}, 2)
    keys = pickle.dumps(["0"], 2)
    body = PROTOCOL_2 + mapping({"w": tensor()}) + STOP
    storage = struct.pack("<Q", 4) + b"\0" * 16
    return magic + pickle.dumps(1001, 2) + system + body + keys + storage


def test_the_magic_number_of_the_old_format_is_a_number_and_never_the_answer_of_a_call(tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    path = tmp_path / "x.pt"
    path.write_bytes(legacy(pickle.dumps(MAGIC, 2)))
    assert outcome(path) == (None, {"w": ((4,), None)})
    for magic in (
        call("builtins", "eval", text(f"open({str(canary)!r}, 'w') and {MAGIC}")),
        call("builtins", "int", text(str(MAGIC))),
        *payloads(str(canary)).values(),
    ):
        path.write_bytes(legacy(PROTOCOL_2 + magic + STOP))
        kind, found = outcome(path)
        assert kind in REFUSALS
        assert found == {}
    assert not canary.exists()


def tar(members: list[tuple[tarfile.TarInfo, bytes]]) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT) as made:
        for info, data in members:
            made.addfile(info, io.BytesIO(data))
    return stream.getvalue()


def member(name: str, kind: bytes = tarfile.REGTYPE, size: int = 0, **facts: Any) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.size = kind, size
    for key, value in facts.items():
        setattr(info, key, value)
    return info


def test_a_tar_archive_with_links_devices_and_other_places_is_refused_and_writes_nothing(tmp_path: Path) -> None:
    inside = tmp_path / "run"
    inside.mkdir()
    secret = tmp_path / "secret"
    secret.write_text("not for you")
    data = b"x" * 64
    for members in (
        [(member("../escaped", size=64), data)],
        [(member(str(tmp_path / "escaped"), size=64), data)],
        [(member("storages", tarfile.SYMTYPE, linkname=str(secret)), b"")],
        [(member("storages", tarfile.LNKTYPE, linkname=str(secret)), b"")],
        [(member("storages", tarfile.CHRTYPE, devmajor=1, devminor=5), b"")],
        [(member("storages", tarfile.FIFOTYPE), b"")],
        [(member("pickle", size=64), data), (member("storages", size=64), data), (member("tensors", size=64), data)],
    ):
        path = inside / "x.pt"
        path.write_bytes(tar(members))
        kind, found = outcome(path)
        assert kind in REFUSALS
        assert found == {}
        assert sorted(p.name for p in tmp_path.rglob("*")) == ["run", "secret", "x.pt"]


def test_a_tar_archive_that_claims_ten_gigabytes_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    header = member("storages", size=10 * 2**30).tobuf(tarfile.PAX_FORMAT)
    with path.open("wb") as stream:
        stream.write(header)
        stream.truncate(10 * 2**30)  # sparse: it takes no room
    kind, found = outcome(path)
    assert kind in REFUSALS
    assert found == {}


# Links inside zip archives.


@pytest.mark.parametrize("name", ["x.pt", "x.npz", "x.keras"])
def test_a_link_inside_an_archive_is_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    whole = archive(PROTOCOL_2 + mapping({"w": tensor()}) + STOP, {"0": b"\0" * 16})
    with zipfile.ZipFile(io.BytesIO(whole)) as source, zipfile.ZipFile(path, "w") as made:
        for info in source.infolist():
            made.writestr(info.filename, source.read(info))
        link = zipfile.ZipInfo("archive/data/1")
        link.create_system = 3
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        made.writestr(link, "/etc/passwd")
    kind, found = outcome(path)
    assert kind is K.UNSUPPORTED
    assert found == {}


# joblib and skops.


def test_a_joblib_file_that_names_another_file_does_not_open_it(tmp_path: Path) -> None:
    np.save(tmp_path / "outside.npy", np.arange(4))
    inside = tmp_path / "run"
    inside.mkdir()
    wrapper = (
        ref("joblib.numpy_pickle_compat", "NDArrayWrapper")
        + EMPTY_TUPLE
        + b"\x81"
        + mapping({"filename": text("../outside.npy"), "subclass": ref("numpy", "ndarray"), "allow_mmap": b"\x88"})
        + b"b"
    )
    path = inside / "model.joblib"
    path.write_bytes(PROTOCOL_2 + mapping({"coef_": wrapper}) + STOP)
    seen: list[str] = []
    kind, found = outcome(path)
    assert kind in {None, K.UNSUPPORTED, K.CORRUPT, K.UNSAFE_REFERENCE}
    assert all(problem is not None for _, problem in found.values())
    assert seen == []


def test_an_array_of_objects_in_a_joblib_file_runs_nothing(tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    for name, payload in payloads(str(canary)).items():
        wrapper = (
            ref("joblib.numpy_pickle", "NumpyArrayWrapper")
            + EMPTY_TUPLE
            + b"\x81"
            + mapping(
                {
                    "subclass": ref("numpy", "ndarray"),
                    "shape": group(integer(1)),
                    "order": text("C"),
                    "dtype": call("numpy", "dtype", text("O8"), b"\x89", b"\x88"),
                    "allow_mmap": b"\x89",
                }
            )
            + b"b"
            + PROTOCOL_2
            + payload
            + STOP
        )
        path = tmp_path / "model.joblib"
        path.write_bytes(PROTOCOL_2 + mapping({"coef_": wrapper}) + STOP)
        kind, found = outcome(path)
        assert kind in REFUSALS or all(problem is not None for _, problem in found.values()), name
        assert not canary.exists(), name


def test_a_skops_file_that_is_a_bare_pickle_is_data_and_nothing_is_run(tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    path = tmp_path / "model.skops"
    for payload in payloads(str(canary)).values():
        path.write_bytes(PROTOCOL_2 + payload + STOP)
        kind, found = outcome(path)
        assert kind in REFUSALS
        assert found == {}
    assert not canary.exists()


def test_a_skops_schema_that_names_what_to_call_is_walked_and_nothing_is_called(tmp_path: Path) -> None:
    path = tmp_path / "model.skops"
    schema = (
        '{"__class__": "system", "__module__": "os", "__loader__": "ReduceNode", "__reduce__": {"args": '
        '{"__class__": "str", "__module__": "builtins", "__loader__": "JsonNode", "content": "\\"touch canary\\"", '
        '"is_json": true, "type": "str"}}, "protocol": 2, "_skops_version": "0.13"}'
    )
    with zipfile.ZipFile(path, "w") as made:
        made.writestr("schema.json", schema)
    kind, found = outcome(path)
    assert kind is None or kind in REFUSALS
    assert found == {}


# HDF5: plugins are programs.


def test_a_worker_never_looks_for_plugins_of_hdf5_where_the_environment_says(monkeypatch: pytest.MonkeyPatch) -> None:
    given = {"HDF5_PLUGIN_PATH": "/tmp/evil", "HDF5_PLUGIN_PRELOAD": "x", "LD_PRELOAD": "/tmp/evil.so", "PATH": "/bin"}
    kept = worker_environment(given)
    assert kept["PATH"] == "/bin"
    assert not {"HDF5_PLUGIN_PATH", "LD_PRELOAD"} & set(kept)
    assert kept.get("HDF5_PLUGIN_PRELOAD") in {None, "::"}


# Names that lie, and no structure at all.

NAMES = (
    "x.pt", "x.pth", "x.ckpt", "x.bin", "x.safetensors", "x.npy", "x.npz", "x.h5", "x.keras", "x.onnx", "x.gguf",
    "x.joblib", "x.pkl", "x.skops", "x.msgpack", "x.pb", "x.ubj", "x.index", "x.distcp", "x.model",
)  # fmt: skip


def field(number: int, kind: int, value: bytes) -> bytes:
    return bytes([number << 3 | kind]) + value


def test_a_protobuf_that_is_no_model_is_refused(tmp_path: Path) -> None:
    chooser = random.Random(5)
    path = tmp_path / "x.onnx"
    node = field(1, 2, b"\x05const") + field(2, 2, b"\x05Const")
    graph = field(1, 2, bytes([len(node)]) + node)
    messages = [
        graph * 20,  # a TensorFlow graph: field 1 is a message, where a model has the version of its format
        b"".join(field(chooser.randint(1, 15), 0, bytes([chooser.randint(0, 127)])) for _ in range(200)),
        b"".join(field(chooser.randint(1, 15), 2, b"\x04" + chooser.randbytes(4)) for _ in range(50)),
    ]
    for message in messages:
        path.write_bytes(message)
        kind, found = outcome(path)
        assert kind in {K.UNSUPPORTED, K.CORRUPT, K.INCOMPLETE}  # random fields may promise more than there is
        assert found == {}


@pytest.mark.parametrize("name", NAMES)
def test_bytes_without_any_structure_are_refused_under_every_name(tmp_path: Path, name: str) -> None:
    chooser = random.Random(name)
    path = tmp_path / name
    for n_bytes in (0, 1, 7, 8, 512, 100_000):
        for content in (b"\0" * n_bytes, b"\xff" * n_bytes, b"\x80" * n_bytes, chooser.randbytes(n_bytes)):
            path.write_bytes(content)
            kind, found = outcome(path)
            assert kind in REFUSALS, (n_bytes, content[:8], found)
            assert found == {}
