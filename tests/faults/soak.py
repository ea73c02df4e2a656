"""Let one daemon work for long at many times the usual load, and see whether it grows."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np

from tests.faults.world import save
from tests.support.daemons import DaemonProcess

SAVES_A_MINUTE = 60  # ten times the six that a busy machine with several trainings writes
KEPT = 50  # older checkpoints are deleted, as trainers do
SAMPLE_SECONDS = 5.0
WARM_UP = 0.3  # this share of the time does not count
SLOPE_BYTES_AN_HOUR_MAX = 2**20
LOG_BYTES_MAX = 64 * 2**20


def soak(directory: Path, seconds: float) -> dict[str, Any]:
    """Return the figures of one soak; `wrong` says which promise was broken. The page and /metrics are asked too."""
    root = directory / "run"
    root.mkdir()
    samples: list[tuple[float, int, int]] = []
    step = 0
    with DaemonProcess(directory / "state", root, storage={"sketches_recent": 16}) as daemon:
        began = time.monotonic()
        next_save = next_sample = began
        while (now := time.monotonic()) - began < seconds:
            if now >= next_save:
                step += 1
                save(root, step)
                (root / f"step-{step - KEPT:06d}.npz").unlink(missing_ok=True)
                next_save += 60.0 / SAVES_A_MINUTE
            if now >= next_sample:
                for path in ("/", "/metrics", f"/api/v1/runs/{root.name}/history"):
                    daemon.get(path)
                samples.append((now - began, _resident_bytes(daemon.pid), len(list(_descriptors(daemon.pid)))))
                next_sample += SAMPLE_SECONDS
            time.sleep(0.02)
        n_waiting = int(daemon.metric("ckptwatch_oldest_unprocessed_seconds"))
        wal = Path(f"{daemon.database}-wal")
        figures = _figures(samples, step) | {
            "n_checkpoints": step,
            "oldest_unprocessed_seconds": n_waiting,
            "wal_bytes": wal.stat().st_size if wal.exists() else 0,
            "n_supervisor_errors": int(daemon.metric("ckptwatch_supervisor_errors_total")),
            "stop_status": daemon.terminate(),
        }
    if figures["wal_bytes"] > LOG_BYTES_MAX or figures["n_supervisor_errors"] or figures["stop_status"]:
        figures["wrong"].append("the write-ahead log grew, an error was caught, or it did not stop in order")
    return figures


def _figures(samples: list[tuple[float, int, int]], n_saves: int) -> dict[str, Any]:
    late = samples[int(len(samples) * WARM_UP) :]
    times = np.array([t for t, _, _ in late])
    resident = np.array([r for _, r, _ in late], dtype=np.float64)
    slope = float(np.polyfit(times, resident, 1)[0] * 3600.0)
    residue = resident - np.polyval(np.polyfit(times, resident, 1), times)
    spread = float(times.std() * len(times) ** 0.5)
    error = float(residue.std() / spread * 3600.0)
    descriptors = [d for _, _, d in late]
    wrong = []
    if slope - 2 * error > SLOPE_BYTES_AN_HOUR_MAX:
        wrong.append(f"memory grows by {slope / 2**20:.2f} MiB an hour")
    if max(descriptors) > max(d for _, _, d in samples[: len(samples) - len(late) + 1]) + 8:
        wrong.append(f"descriptors grew from {descriptors[0]} to {max(descriptors)}")
    return {
        "seconds": round(samples[-1][0]),
        "saves_a_minute": round(n_saves / max(samples[-1][0], 1.0) * 60.0, 1),
        "resident_bytes_first": int(late[0][1]),
        "resident_bytes_last": int(late[-1][1]),
        "resident_slope_bytes_an_hour": round(slope),
        "resident_slope_error_bytes_an_hour": round(error),
        "descriptors_min": min(descriptors),
        "descriptors_max": max(descriptors),
        "wrong": wrong,
    }


def _resident_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/status").read_text().partition("VmRSS:")[2].split()[0]) * 1024


def _descriptors(pid: int) -> list[str]:
    return [p.name for p in Path(f"/proc/{pid}/fd").iterdir()]
