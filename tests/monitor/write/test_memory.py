"""Large tensors pass through an export and a comparison of two orders of axes in bounded memory."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.daemons import REPOSITORY

MEMORY_BYTES_MAX = 250 * 2**20

_RUN = """
import json, sys
from importlib import import_module
module, name, payload = sys.argv[1:]
result = getattr(import_module(module), name)(json.loads(payload))
foreign = {"torch", "tensorflow", "keras", "sklearn"} & set(sys.modules)
assert not foreign, foreign
status = open("/proc/self/status").read()
print(json.dumps([result, int(status.partition("VmHWM:")[2].split()[0]) * 1024]))
"""


def run(module: str, name: str, payload: object) -> tuple[dict[str, Any], int]:
    ended = subprocess.run(
        [sys.executable, "-c", _RUN, module, name, json.dumps(payload)],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=550,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    result, peak_bytes = json.loads(ended.stdout)
    return result, peak_bytes


def sparse(path: Path, name: str, rows: int, columns: int) -> Path:
    """Write one float32 tensor that is zero but for its last element, without filling the disk."""
    n_bytes = 4 * rows * columns
    header = json.dumps({name: {"dtype": "F32", "shape": [rows, columns], "data_offsets": [0, n_bytes]}}).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        file.truncate(8 + len(header) + n_bytes - 4)
        file.seek(0, 2)
        file.write(struct.pack("<f", 1.5))
    return path


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("suffix", ["safetensors", "npz"])
def test_an_export_of_2_gib_stays_within_250_mib(tmp_path: Path, suffix: str) -> None:
    source = sparse(tmp_path / "large.safetensors", "w", 2**14, 2**15)
    target = tmp_path / f"out.{suffix}"
    target.touch()
    choice = {"filters": [], "kinds": ["parameter"], "upcast": False, "skip_unreadable": False}
    payload = {"path": str(source), "format": suffix, "target": str(target), **choice}
    result, peak_bytes = run("monitor.write.tasks", "write", payload)
    assert (result["write_error"], result["n_tensors"]) == (None, 1)
    assert 2**31 < target.stat().st_size < 2**31 + 2**16
    target.unlink()
    assert peak_bytes < MEMORY_BYTES_MAX


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_two_large_tensors_in_two_orders_of_axes_are_compared_within_250_mib(tmp_path: Path) -> None:
    old = sparse(tmp_path / "old.safetensors", "d.kernel", 2**13, 2**14)
    new = sparse(tmp_path / "new.safetensors", "d.weight", 2**14, 2**13)
    payload = {"old_path": str(old), "new_path": str(new), "pairs": [["d.kernel", "d.weight"]]}
    result, peak_bytes = run("monitor.measure.tasks", "compare", payload)
    (pair,) = result["pairs"]
    assert (pair["layout"], pair["drift"]["n_changed"], pair["note"]) == ("(1,0)", 0, None)
    assert peak_bytes < MEMORY_BYTES_MAX
