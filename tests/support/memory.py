"""Measure the peak memory of a process that reads every value of a checkpoint and does nothing else."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

_ROOT = Path(__file__).parents[2]
_READ = """
import sys
from monitor.read.registry import open_path
n = 0
with open_path(sys.argv[1]) as opened:
    for spec in opened.checkpoint.tensors:
        for chunk in opened.checkpoint.chunks(spec):
            n += chunk.values.size
foreign = {"torch", "tensorflow", "keras", "sklearn", "joblib", "skops", "onnx", "gguf", "flax", "jax", "xgboost"}
assert not foreign & set(sys.modules), foreign & set(sys.modules)
status = open("/proc/self/status").read()  # ru_maxrss would tell of the process that started this one
print(n, int(status.partition("VmHWM:")[2].split()[0]) * 1024)
"""


def peak_bytes_of_reading(path: Path, *, n_elements: int) -> int:
    """Return the peak resident memory; the reader must deliver `n_elements` values and import no framework."""
    done = subprocess.run(
        [sys.executable, "-c", _READ, str(path)], cwd=_ROOT, capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 0, done.stderr
    delivered, peak_bytes = map(int, done.stdout.split())
    assert delivered == n_elements
    return peak_bytes
