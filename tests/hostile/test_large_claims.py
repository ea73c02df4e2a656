"""Files of some megabytes that ask for as much time and memory as their format allows: a bounded amount of both."""

from __future__ import annotations

import bz2
import json
import lzma
import struct
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import h5py
import pytest

from storage.records import ProblemKind
from tests.hostile.fuzz_reader import RESIDENT_BYTES_MAX
from tests.hostile.pickles import STOP, archive, integer, mapping, tensor, text
from tests.support.daemons import REPOSITORY, clean_environment

SECONDS_MAX = 60  # a hang is meant, not a slow machine
_JUDGE = """
import sys
from pathlib import Path
import tests.hostile.fuzz_reader as f
f.import_readers()
f.confine()
f.resident_bytes_peak()
kind, reason = f.try_one(Path(sys.argv[1]))
print(kind, f.resident_bytes_peak(), reason or "")
"""
OK, LIMIT = "ok", ProblemKind.LIMIT.value
CORRUPT, UNSUPPORTED = ProblemKind.CORRUPT.value, ProblemKind.UNSUPPORTED.value
INCOMPLETE = ProblemKind.INCOMPLETE.value
N = 1_000_000
OPERATORS = b"\x42\x02\x10\x11"  # the operator sets that end a model of ONNX


def safetensors(header: bytes) -> bytes:
    return struct.pack("<Q", len(header)) + header


def entries(n: int) -> bytes:
    one = b'"%d":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}'
    return b"{" + b",".join(one % i for i in range(n)) + b"}"


def memo(n: int) -> bytes:
    """A pickle that fills the memo."""
    return b"N" + b"".join(b"r" + struct.pack("<I", i) for i in range(n)) + STOP


def state_dict(pairs: list[tuple[bytes, bytes]]) -> bytes:
    return archive(b"\x80\x02" + mapping([(text("w"), tensor()), *pairs]) + STOP, {"0": bytes(16)})


def field(number: int, data: bytes) -> bytes:
    """A length-delimited field of a protobuf."""
    size, encoded = len(data), bytearray()
    while size > 0x7F:
        encoded.append(size & 0x7F | 0x80)
        size >>= 7
    return bytes([number << 3 | 2]) + bytes(encoded) + bytes([size]) + data


def nested_graphs(n: int) -> bytes:
    """Graphs in attributes of nodes of graphs."""
    graph = b""
    for _ in range(n):
        graph = field(1, field(5, field(6, graph)))
    return b"\x08\x08" + field(7, graph)


def gguf(*, n_tensors: int = 0, keys: bytes = b"", n_keys: int = 0, tensors: bytes = b"") -> bytes:
    made = b"GGUF" + struct.pack("<IQQ", 3, n_tensors, n_keys) + keys + tensors
    return made + bytes(-len(made) % 32)


def gguf_key(i: int) -> bytes:
    name = b"k%d" % i
    return struct.pack("<Q", len(name)) + name + struct.pack("<II", 4, i)


def gguf_tensor(i: int) -> bytes:
    name = b"t%d" % i
    return struct.pack("<Q", len(name)) + name + struct.pack("<IQIQ", 1, 0, 0, 0)


Made = tuple[str, Callable[[], bytes], set[str]]
FILES: dict[str, Made] = {
    "memo of a torch file": ("a.pt", lambda: archive(b"\x80\x02" + memo(2 * N)), {OK}),
    "memo over the limit": ("a.pt", lambda: archive(b"\x80\x02" + memo(2 * N + 1)), {LIMIT}),
    "memo of a plain pickle": ("a.pkl", lambda: b"\x80\x04" + memo(2 * N), {UNSUPPORTED}),
    "dicts of a pickle": ("a.pt", lambda: archive(b"\x80\x02" + b"}" * 4 * N + STOP), {LIMIT}),
    "sets of a pickle": ("a.pt", lambda: archive(b"\x80\x04" + b"\x8f" * 4 * N + STOP), {LIMIT}),
    "lists of a pickle": ("a.pt", lambda: archive(b"\x80\x02" + b"]" * 4 * N + STOP), {OK, LIMIT}),
    "distinct keys": ("a.pt", lambda: state_dict([(integer(i), b"N") for i in range(N)]), {OK, LIMIT}),
    "colliding keys": (
        "a.pt",
        lambda: state_dict([(integer(i * (2**61 - 1) + 1), b"K\1") for i in range(200_000)]),
        {OK, LIMIT},
    ),
    "views of one storage": (
        "a.pt",
        lambda: archive(
            b"\x80\x02" + mapping([(text(f"t{i}"), tensor(offset=i % 4, shape=(1,))) for i in range(30_000)]) + STOP,
            {"0": bytes(16)},
        ),
        {OK},
    ),
    "entries of a safetensors header": ("a.safetensors", lambda: safetensors(entries(N)), {OK, LIMIT}),
    "entries over the limit": ("a.safetensors", lambda: safetensors(entries(N + 1)), {LIMIT}),
    "a header of empty lists": (
        "a.safetensors",
        lambda: safetensors(b'{"a":[' + b"[]," * (10 * N) + b"[]]}"),
        {CORRUPT, LIMIT},
    ),
    "metadata": (
        "a.safetensors",
        lambda: safetensors(b'{"__metadata__":{"a":"' + b"x" * 90_000_000 + b'"}}'),
        {OK, LIMIT},
    ),
    "metadata of many entries": (
        "a.safetensors",
        lambda: safetensors(
            b'{"__metadata__":{' + b",".join(b'"%d":"1"' % i for i in range(3 * N)) + b"}}",
        ),
        {OK, LIMIT},
    ),
    "nested graphs": ("a.onnx", lambda: nested_graphs(20_000) + OPERATORS, {OK, LIMIT, CORRUPT}),
    "initializers": (
        "a.onnx",
        lambda: (
            b"\x08\x08" + field(7, b"".join(field(5, b"\x10\1" + field(8, b"%d" % i)) for i in range(N))) + OPERATORS
        ),
        {OK, LIMIT, CORRUPT},
    ),
    "empty nodes": ("a.onnx", lambda: b"\x08\x08" + field(7, b"\x0a\0" * (5 * N)) + OPERATORS, {OK}),
    "keys of gguf": (
        "a.gguf",
        lambda: gguf(n_keys=N // 2, keys=b"".join(map(gguf_key, range(N // 2)))),
        {OK, LIMIT},
    ),
    "tensors of gguf": (
        "a.gguf",
        lambda: gguf(n_tensors=N, tensors=b"".join(map(gguf_tensor, range(N)))),
        {OK, LIMIT, CORRUPT},
    ),
    "items of msgpack": (
        "a.msgpack",
        lambda: b"\x81\xa1a\xdd" + struct.pack(">I", 30 * N) + b"\xc0" * (30 * N),
        {OK, LIMIT, UNSUPPORTED},
    ),
    "nested maps of msgpack": ("a.msgpack", lambda: b"\x81\xa1a" * N + b"\xc0", {LIMIT}),
    "keys of msgpack": (
        "a.msgpack",
        lambda: b"\xdf" + struct.pack(">I", N) + b"".join(b"\xa7%07d\1" % i for i in range(N)),
        {OK, LIMIT, UNSUPPORTED},
    ),
    "nested lists of ubjson": (
        "a.ubj",
        lambda: b"{L\0\0\0\0\0\0\0\7learner" + b"[" * (5 * N),
        {LIMIT, CORRUPT, INCOMPLETE},
    ),
    "nested lists of json": (
        "a.json",
        lambda: b'{"learner":' + b"[" * (5 * N) + b"]" * (5 * N) + b"}",
        {LIMIT, CORRUPT},
    ),
    "empty lists of json": (
        "a.json",
        lambda: b'{"learner":{"a":[' + b"[]," * (10 * N) + b'[]]},"version":[2,0,0]}',
        {LIMIT, CORRUPT, UNSUPPORTED},
    ),
    "trees of lightgbm": (
        "a.txt",
        lambda: b"tree\nversion=v4\n" + b"Tree=0\nnum_leaves=1\n\n" * N,
        {OK, LIMIT, CORRUPT, INCOMPLETE},
    ),
    "bomb of zlib": ("a.joblib", lambda: zlib.compress(b"\x80\x04" + b"N0" * (60 * N)), {LIMIT, CORRUPT}),
    "bomb of xz": ("a.joblib", lambda: lzma.compress(b"\x80\x04" + b"N0" * (60 * N), preset=0), {LIMIT, CORRUPT}),
    "bomb of bzip2": ("a.joblib", lambda: bz2.compress(b"\x80\x04" + b"N0" * (20 * N)), {LIMIT, CORRUPT}),
    "index of shards": (
        "model.safetensors.index.json",
        lambda: json.dumps({"weight_map": {str(i): "model-00001-of-00001.safetensors" for i in range(N)}}).encode(),
        {LIMIT, CORRUPT, INCOMPLETE},
    ),
}


def judged(path: Path) -> tuple[str, int, str]:
    """Read a file in a confined process; return the kind of the outcome, its peak of memory, and what was wrong."""
    done = subprocess.run(
        [sys.executable, "-c", _JUDGE, str(path)],
        cwd=REPOSITORY,
        env=clean_environment(OPENBLAS_NUM_THREADS="1"),
        capture_output=True,
        text=True,
        timeout=SECONDS_MAX,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    kind, peak, reason = done.stdout.rstrip("\n").split(" ", 2)
    return kind, int(peak), reason


@pytest.mark.parametrize("case", FILES)
def test_a_large_claim_costs_bounded_time_and_memory(case: str, tmp_path: Path) -> None:
    name, make, kinds = FILES[case]
    path = tmp_path / name
    path.write_bytes(make())
    if name.endswith("index.json"):
        (tmp_path / "model-00001-of-00001.safetensors").write_bytes(safetensors(b"{}"))
    kind, peak, reason = judged(path)
    assert reason == ""
    assert kind in kinds
    assert peak <= RESIDENT_BYTES_MAX, f"{peak >> 20} MiB"


def test_many_datasets_of_hdf5_cost_bounded_time_and_memory(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    with h5py.File(path, "w", libver="latest") as file:
        for i in range(20_000):
            file.create_group(f"g{i}")
    kind, peak, reason = judged(path)
    assert kind in (OK, LIMIT)
    assert reason == ""
    assert peak <= RESIDENT_BYTES_MAX


def test_a_bomb_within_an_archive_of_keras_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.keras"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as made:
        made.writestr("config.json", "{}")
        made.writestr("metadata.json", "{}")
        with made.open("model.weights.h5", "w", force_zip64=True) as member:
            member.write(b"\x89HDF\r\n\x1a\n")
            for _ in range(300):
                member.write(bytes(2**20))
    kind, peak, reason = judged(path)
    assert kind in (LIMIT, UNSUPPORTED)
    assert reason == ""
    assert peak <= RESIDENT_BYTES_MAX
