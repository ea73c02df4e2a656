"""What a real daemon takes while it only waits beside 10 000 known checkpoints, and how soon it stores a new one.

Figures to reach: at most 120 MiB and 0.5 % of a core while idle; a complete file is stored within the settle time, the
time to read it, and one second.

    python -m benchmarks.idle_daemon [--files 10000] [--seconds 90] [--new-files 7]
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np

from monitor.assembly import watch_parts
from monitor.config import load
from monitor.watch.settle import as_checkpoint
from storage import writer
from storage.database import open_database
from storage.records import Problem, ProblemKind, Snapshot, SnapshotStatus
from tests.support.daemons import DaemonProcess, wait_for

SETTLE_SECONDS = 0.5


def main() -> None:
    """Build the directory and a database that knows it, wait beside it, then write new files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=10_000)
    parser.add_argument("--seconds", type=float, default=90.0)
    parser.add_argument("--new-files", type=int, default=7)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        root, state = Path(name) / "root", Path(name) / "state"
        state.mkdir()
        _write_known(root, arguments.files)
        _remember(root, state / "ckptwatch.db")
        settings = {"watch": {"settle_seconds": SETTLE_SECONDS, "scan_interval_seconds": 30}}
        with DaemonProcess(state, root, **settings) as daemon:
            wait_for("nothing left to do", lambda: daemon.metric("ckptwatch_oldest_unprocessed_seconds") == 0)
            time.sleep(5)
            begun, used = time.monotonic(), _cpu_seconds(daemon.pid)
            time.sleep(arguments.seconds)
            share = (_cpu_seconds(daemon.pid) - used) / (time.monotonic() - begun)
            print(f"{'idle: share of one core':44} {100 * share:8.2f} %    target 0.5 %")
            print(f"{'idle: resident memory':44} {_resident_mib(daemon.pid):8.0f} MiB  target 120 MiB")
            latencies = [_latency_seconds(daemon, root, step) for step in range(1, arguments.new_files + 1)]
            after = statistics.median(latencies[1:]) - SETTLE_SECONDS
            print(f"{'stored after settling, median':44} {after:8.2f} s    target 1 s and the reading")
            print(f"{'the first one, which starts a worker':44} {latencies[0] - SETTLE_SECONDS:8.2f} s")


def _write_known(root: Path, n_files: int) -> None:
    values = np.zeros(64, np.float32)
    for number in range(n_files):
        directory = root / f"run-{number // 200:03d}"
        directory.mkdir(parents=True, exist_ok=True)
        path = directory / f"step-{number % 200:06d}.npz"
        np.savez(path, weight=values)
        os.utime(path, (1_700_000_000 + number, 1_700_000_000 + number))


def _remember(root: Path, database_path: Path) -> None:
    """Store every file as known: what was measured does not matter to a daemon that only waits."""
    database = open_database(str(database_path))
    config = load(None, {"watch": {"roots": [str(root)]}})
    parts = watch_parts(config, database)
    parts.tracker.observe(parts.scanners[0].scan(time.time()), time.time())
    pending = [as_checkpoint(candidate) for candidate in parts.tracker.pending()]
    for start in range(0, len(pending), 500):
        with database.write() as session:
            for checkpoint in pending[start : start + 500]:
                snapshot = Snapshot(
                    checkpoint=checkpoint,
                    status=SnapshotStatus.FAILED,
                    problem=Problem(kind=ProblemKind.UNSUPPORTED, message="known to the benchmark"),
                    tensors=(),
                    drifts=(),
                    scalars={},
                    attempt=1,
                    n_tensors=0,
                    n_parameters=0,
                    n_nonfinite=0,
                    weight_norm=None,
                    update_ratio=None,
                    gradient=None,
                    first_bad_tensor=None,
                    reference_step=None,
                    bytes_read=0,
                    duration_seconds=0.0,
                    measured_at=time.time(),
                )
                writer.add_snapshot(session, snapshot)
    database.close()


def _latency_seconds(daemon: DaemonProcess, root: Path, step: int) -> float:
    """Write one checkpoint of 4 MB and return the time until its row is there."""
    directory = root / "new"
    directory.mkdir(exist_ok=True)
    temporary = directory / ".tmp-new.npz"
    np.savez(temporary, weight=np.random.default_rng(step).standard_normal(2**20).astype(np.float32))
    os.replace(temporary, directory / f"step-{step}.npz")
    begun = time.monotonic()
    wait_for("the new checkpoint", lambda: len(_steps(daemon)) >= step)
    return time.monotonic() - begun


def _steps(daemon: DaemonProcess) -> list[int]:
    try:
        return [snapshot["step"] for snapshot in daemon.snapshots("root/new")]
    except (AssertionError, KeyError, OSError):
        return []  # the run is not known yet


def _cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _resident_mib(pid: int) -> float:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    raise AssertionError


if __name__ == "__main__":
    main()
