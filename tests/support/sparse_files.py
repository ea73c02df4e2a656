"""Checkpoint files of gigabytes that take no room on disk: true headers, and values that are holes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import h5py


def sparse_safetensors(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Write a safetensors file of float32 zeros."""
    header: dict[str, object] = {}
    place = 0
    for name, shape in shapes.items():
        n_bytes = 4
        for size in shape:
            n_bytes *= size
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [place, place + n_bytes]}
        place += n_bytes
    raw = json.dumps(header).encode()
    raw += b" " * (-len(raw) % 8)
    with path.open("wb") as stream:
        stream.write(len(raw).to_bytes(8, "little") + raw)
        stream.truncate(8 + len(raw) + place)


def sparse_shards(directory: Path, n_bytes: int, n_shards: int, stem: str = "model") -> None:
    """Write a model of `n_bytes` in shards of two tensors each, and its index."""
    weight_map: dict[str, str] = {}
    rows = n_bytes // n_shards // 2 // 4096
    for number in range(n_shards):
        name = f"{stem}-{number + 1:05d}-of-{n_shards:05d}.safetensors"
        shapes = {f"layers.{number}.{part}.weight": (rows, 1024) for part in ("a", "b")}
        sparse_safetensors(directory / name, shapes)
        weight_map |= dict.fromkeys(shapes, name)
    (directory / f"{stem}.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def sparse_hdf5(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Write an HDF5 file of float32 datasets that lie in one piece and were never filled."""
    with h5py.File(path, "w") as file:
        created = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        created.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
        created.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
        linked = h5py.h5p.create(h5py.h5p.LINK_CREATE)
        linked.set_create_intermediate_group(True)
        for name, shape in shapes.items():
            space = h5py.h5s.create_simple(shape)
            h5py.h5d.create(file.id, name.encode(), h5py.h5t.NATIVE_FLOAT, space, dcpl=created, lcpl=linked)
