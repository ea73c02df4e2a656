"""What a worker process does for an export: plan it, then write it. Plain functions from JSON to JSON.

The file is parsed where every checkpoint is parsed, in a confined process, and that process writes: the values never
cross a pipe. It is started with a limit on file size of what the plan announced, and writes to one file that its
parent has made; giving the file its name is the parent's business.
"""

from __future__ import annotations

import os
from typing import Any

from monitor.read.reader import OpenCheckpoint, ReadLimits
from monitor.read.registry import open_path
from monitor.write.files import WRITERS, size_bytes_max
from monitor.write.selection import Selected, Selection, select
from storage.records import TensorKind

_LIMITS = ReadLimits(chunk_bytes_max=2**20)

TASKS = {"plan": "monitor.write.tasks:plan", "write": "monitor.write.tasks:write"}


def plan(payload: dict[str, Any]) -> dict[str, Any]:
    """Say what an export will write.

    `payload`: {"path": str, "format": "safetensors" | "npz", "filters": [str], "kinds": [str], "upcast": bool,
    "skip_unreadable": bool}. Returns {"n_tensors", "size_bytes_max", "left_out": [str]}. Raises ReadError when the
    checkpoint cannot be read, or not be written in that format.
    """
    with open_path(payload["path"], _LIMITS) as opened:
        selected, left_out = _selected(opened.checkpoint, payload)
        return {
            "n_tensors": len(selected),
            "size_bytes_max": size_bytes_max(payload["format"], opened.checkpoint, selected),
            "left_out": list(left_out),
        }


def write(payload: dict[str, Any]) -> dict[str, Any]:
    """Write the selected tensors to a file that is there already and empty.

    `payload`: as for `plan`, and "target": str. Returns {"n_tensors", "size_bytes", "write_error": str | null}: trouble
    with the target is no trouble with the checkpoint.
    """
    with open_path(payload["path"], _LIMITS) as opened:
        selected, _ = _selected(opened.checkpoint, payload)
        try:
            descriptor = os.open(payload["target"], os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            with os.fdopen(descriptor, "wb", buffering=2**20) as file:
                WRITERS[payload["format"]](file, opened.checkpoint, selected)
                file.flush()
                os.fsync(file.fileno())
                size_bytes = file.tell()
        except OSError as error:
            return {"n_tensors": 0, "size_bytes": 0, "write_error": error.strerror or str(error)}
        opened.file.verify_unchanged()
        return {"n_tensors": len(selected), "size_bytes": size_bytes, "write_error": None}


def _selected(checkpoint: OpenCheckpoint, payload: dict[str, Any]) -> tuple[tuple[Selected, ...], tuple[str, ...]]:
    selection = Selection(
        filters=tuple(payload["filters"]),
        kinds=frozenset(TensorKind(kind) for kind in payload["kinds"]),
        upcast=bool(payload["upcast"]),
        skip_unreadable=bool(payload["skip_unreadable"]),
    )
    return select(checkpoint.tensors, selection, payload["format"])
