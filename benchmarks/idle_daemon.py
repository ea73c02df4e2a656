"""What a real daemon takes while it only waits beside 10 000 known checkpoints, and how soon it tells of a new one.

Figures to reach: at most 120 MiB and 0.5 % of a core while idle; within the settle time, the time to read the file, and
one second, a complete file has its row, its metric, and its alert in the outbox.

    python -m benchmarks.idle_daemon [--files 10000] [--seconds 90] [--new-files 7]
"""

from __future__ import annotations

import argparse
import os
import sqlite3
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.figures import Figure, median, publish
from monitor.assembly import watch_parts
from monitor.config import load
from monitor.watch.settle import as_checkpoint
from storage import writer
from storage.database import open_database
from storage.records import Checkpoint, Snapshot, SnapshotStatus, TensorKind, TensorSummary
from tests.support.daemons import DaemonProcess, wait_for

SETTLE_SECONDS = 0.5
N_TENSORS = 10
RUN = "root/new"
OUTBOX = "SELECT count(*) FROM outbox WHERE json_extract(alert, '$.run') = ?"


def main() -> None:
    """Build the directory and a database that knows it, wait beside it, then write new files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=10_000)
    parser.add_argument("--seconds", type=float, default=90.0)
    parser.add_argument("--new-files", type=int, default=7)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        root, state = Path(name) / "root", Path(name) / "state"
        state.mkdir()
        write_known(root, arguments.files)
        remember(root, state / "ckptwatch.db")
        settings: dict[str, dict[str, Any]] = {
            "watch": {"settle_seconds": SETTLE_SECONDS, "scan_interval_seconds": 30},
            "notify": {"notifiers": [{"kind": "log"}]},
        }
        with DaemonProcess(state, root, **settings) as daemon:
            wait_for("nothing left to do", lambda: daemon.metric("ckptwatch_oldest_unprocessed_seconds") == 0, 600)
            time.sleep(5)
            begun, used = time.monotonic(), cpu_seconds(daemon.pid)
            time.sleep(arguments.seconds)
            share = (cpu_seconds(daemon.pid) - used) / (time.monotonic() - begun)
            known = f"idle, {arguments.files} known"
            figures = [
                Figure(what=f"{known}: share of one core", measured=100 * share, unit="%", target=0.5),
                Figure(what=f"{known}: resident memory", measured=resident_mib(daemon.pid), unit="MiB", target=120),
            ]
            first, *later = (latency_seconds(daemon, root, step) for step in range(1, arguments.new_files + 1))
            for what in first:
                seconds = median(found[what] for found in later) - SETTLE_SECONDS
                figures.append(
                    Figure(what=f"new file, 4 MB: {what} after settling", measured=seconds, unit="s", target=1)
                )
            figures.append(
                Figure(
                    what="the first one, which starts a worker: row", measured=first["row"] - SETTLE_SECONDS, unit="s"
                )
            )
    publish(figures, arguments.json)


def write_known(root: Path, n_files: int) -> None:
    """Write small files of 200 steps a run."""
    values = np.zeros(64, np.float32)
    for number in range(n_files):
        directory = root / f"run-{number // 200:03d}"
        directory.mkdir(parents=True, exist_ok=True)
        path = directory / f"step-{number % 200:06d}.npz"
        np.savez(path, weight=values)
        os.utime(path, (1_700_000_000 + number, 1_700_000_000 + number))


def remember(root: Path, database_path: Path) -> None:
    """Store every file as measured, with a few tensors each."""
    database = open_database(str(database_path))
    config = load(None, {"watch": {"roots": [str(root)]}})
    parts = watch_parts(config, database)
    parts.tracker.observe(parts.scanners[0].scan(time.time()), time.time())
    pending = [as_checkpoint(candidate) for candidate in parts.tracker.pending()]
    tensors = tuple(_tensor(i) for i in range(N_TENSORS))
    for start in range(0, len(pending), 200):
        with database.write() as session:
            for number, checkpoint in enumerate(pending[start : start + 200], start):
                writer.add_snapshot(session, _measured(checkpoint, number, tensors))
    database.close()


def _tensor(position: int) -> TensorSummary:
    return TensorSummary(
        name=f"layers.{position}.weight",
        kind=TensorKind.PARAMETER,
        dtype="float32",
        shape=(1024, 1024),
        position=position,
        n_elements=2**20,
        n_nan=0,
        n_posinf=0,
        n_neginf=0,
        n_zero=0,
        min=-1.0,
        max=1.0,
        mean=0.0,
        std=0.1,
        norm_l1=80_000.0,
        norm_l2=102.4,
        abs_max=1.0,
    )


def _measured(checkpoint: Checkpoint, number: int, tensors: tuple[TensorSummary, ...]) -> Snapshot:
    return Snapshot(
        checkpoint=checkpoint,
        status=SnapshotStatus.COMPLETE,
        problem=None,
        tensors=tensors,
        drifts=(),
        scalars={},
        attempt=1,
        n_tensors=len(tensors),
        n_parameters=sum(tensor.n_elements for tensor in tensors),
        n_nonfinite=0,
        weight_norm=300.0,
        update_ratio=None,
        gradient=None,
        first_bad_tensor=None,
        reference_step=None,
        bytes_read=256,
        duration_seconds=0.01,
        measured_at=1_700_000_000.0 + number,
    )


def latency_seconds(daemon: DaemonProcess, root: Path, step: int) -> dict[str, float]:
    """Write one checkpoint of 4 MB with a NaN in a run of its own; return the times until row, metric and alert."""
    run = f"{RUN}-{step}"
    directory = root / f"new-{step}"
    directory.mkdir()
    values = np.random.default_rng(step).standard_normal(2**20).astype(np.float32)
    values[7] = np.nan
    temporary = directory / ".tmp-new.npz"
    np.savez(temporary, weight=values)
    os.replace(temporary, directory / f"step-{step}.npz")
    begun = time.monotonic()
    probes: dict[str, Callable[[], bool]] = {
        "row": lambda: bool(daemon.snapshots(run)),
        "alert in the outbox": lambda: outbox_length(daemon.database, run) > 0,
        "metric": lambda: f'run="{run}"' in daemon.get("/metrics")[1],
    }
    found: dict[str, float] = {}
    while len(found) < len(probes):
        assert time.monotonic() - begun < 120, f"only {sorted(found)} of {run}:\n{daemon.log[-2000:]}"
        for what, probe in probes.items():
            if what not in found and probe():
                found[what] = time.monotonic() - begun
        time.sleep(0.02)
    return found


def outbox_length(database: Path, run: str) -> int:
    """Count the notifications about a run that were ever put into the outbox."""
    with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True, timeout=10)) as connection:
        return int(connection.execute(OUTBOX, (run,)).fetchone()[0])


def cpu_seconds(pid: int) -> float:
    """Return the CPU time that a process has used, without its children."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def resident_mib(pid: int) -> float:
    """Return the resident memory of a process."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    raise AssertionError


if __name__ == "__main__":
    main()
