"""Measure the peak memory of a process that does what a measuring worker does with one checkpoint, and nothing else."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from monitor.measure.workers import worker_environment
from storage.records import ProblemKind
from tests.support.frameworks import FRAMEWORKS

PEAK_BYTES_MAX = 250 * 2**20
_ROOT = Path(__file__).parents[2]
_SECONDS_MAX = 570  # two gibibytes at the speed of a slow disk beside other tests
_MEASURE = """
import sys
from monitor.measure.tasks import measure
from monitor.read.reader import ReadError
try:
    measured = measure({"path": sys.argv[1]})
    found = sum(tensor["n_elements"] for tensor in measured["tensors"] if tensor["problem"] is None)
except ReadError as error:
    found = error.kind.value
foreign = set(sys.modules) & set(sys.argv[2:])
assert not foreign, f"imported {foreign}"
status = open("/proc/self/status").read()  # ru_maxrss would tell of the process that started this one
print(found, int(status.partition("VmHWM:")[2].split()[0]) * 1024)
"""


def peak_bytes_of_reading(path: Path, *, n_elements: int) -> int:
    """Return the peak resident memory of measuring a checkpoint: all statistics, the histogram and the sketch.

    The reader must deliver `n_elements` values and import no framework.
    """
    delivered, peak_bytes = _measured(path)
    assert delivered == str(n_elements)
    return peak_bytes


def peak_bytes_of_refusing(path: Path, *, kind: ProblemKind) -> int:
    """Return the peak resident memory of finding out that a checkpoint cannot be measured."""
    found, peak_bytes = _measured(path)
    assert found == kind.value
    return peak_bytes


def _measured(path: Path) -> tuple[str, int]:
    done = subprocess.run(
        [sys.executable, "-c", _MEASURE, str(path), *sorted(FRAMEWORKS)],
        cwd=_ROOT,
        env=worker_environment(os.environ),
        capture_output=True,
        text=True,
        timeout=_SECONDS_MAX,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found, peak_bytes = done.stdout.split()
    return found, int(peak_bytes)
