"""What the daemon's process is made of: small, without any framework, and scraped without complaint."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.daemons import DaemonProcess, clean_environment, wait_for

pytestmark = pytest.mark.timeout(300)  # waits have their own, shorter limits

RESIDENT_BYTES_MAX = 120 * 2**20
FORBIDDEN = ("torch", "tensorflow", "keras", "jax", "sklearn", "scipy", "pandas", "numba", "llvmlite", "alembic")

LIST_MODULES = """
import json, sys
from monitor.config import load
from monitor.daemon import Daemon
overrides = {"watch": {"roots": [sys.argv[1]], "settle_seconds": 0.1}, "storage": {"url": sys.argv[2]}}
daemon = Daemon(load(None, {**overrides, "serve": {"listen": "127.0.0.1:0"}}))
daemon.start()
daemon.run(until_done=True)
views = [view.run.n_snapshots for view in daemon.views.views()]
daemon.close()
print(json.dumps({"modules": sorted({name.partition(".")[0] for name in sys.modules}), "n_snapshots": views}))
"""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "run"
    root.mkdir()
    for step in range(1, 4):
        np.savez(root / f"step-{step}.npz", weight=np.full((4, 5), step, np.float32), bias=np.zeros(3, np.float32))
    return root


def test_a_daemon_that_measured_and_served_has_imported_no_framework_no_compiler_and_no_migration_tool(
    root: Path, tmp_path: Path
) -> None:
    arguments = [sys.executable, "-c", LIST_MODULES, str(root), f"sqlite:///{tmp_path / 'x.db'}"]

    def run_once() -> dict[str, Any]:
        ended = subprocess.run(
            arguments, env=clean_environment(), capture_output=True, text=True, timeout=100, check=False
        )
        assert ended.returncode == 0, ended.stderr
        found: dict[str, Any] = json.loads(ended.stdout)
        return found

    first, second = run_once(), run_once()
    assert first["n_snapshots"] == second["n_snapshots"] == [3]
    # The schema may be created by the migration tool at the very first start, and by nothing but that.
    assert set(first["modules"]).isdisjoint(set(FORBIDDEN) - {"alembic"})
    assert set(second["modules"]).isdisjoint(FORBIDDEN)
    assert {"monitor", "storage", "alerts", "watchdog", "uvicorn"} <= set(second["modules"])


def test_a_daemon_that_is_ready_takes_at_most_120_mib_and_maps_no_framework(root: Path, tmp_path: Path) -> None:
    with DaemonProcess(tmp_path / "state", root) as daemon:
        wait_for("all files", lambda: len(daemon.snapshots()) == 3)
        daemon.get("/")
        daemon.get("/metrics")
        assert daemon.terminate() == 0
        daemon.start()
        status = Path(f"/proc/{daemon.pid}/status")
        if not status.exists():
            pytest.skip("this system has no /proc")
        resident = int(status.read_text().split("VmRSS:")[1].split()[0]) * 1024
        assert resident <= RESIDENT_BYTES_MAX
        maps = Path(f"/proc/{daemon.pid}/maps").read_text()
        for library in ("libtorch", "llvmlite", "libtensorflow", "libcuda"):
            assert library not in maps


def test_promtool_has_nothing_to_say_about_a_live_scrape(root: Path, tmp_path: Path) -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed (Debian package prometheus)")
    np.savez(root / "step-4.npz", weight=np.full((4, 5), np.nan, np.float32), bias=np.ones(3, np.float32))
    (root / "step-5.npz").write_bytes(b"PK\x03\x04 nothing of use")
    with DaemonProcess(
        tmp_path / "state", root, serve={"metrics_detail": "tensors"}, watch={"incomplete_timeout_seconds": 1}
    ) as daemon:
        wait_for("all files", lambda: len(daemon.snapshots()) == 5)
        wait_for("the newest step", lambda: "ckptwatch_alert_firing{" in daemon.get("/metrics")[1])
        scrape = daemon.get("/metrics")[1]
        assert daemon.terminate() == 0
    checked = subprocess.run(
        [promtool, "check", "metrics"], input=scrape, capture_output=True, text=True, timeout=60, check=False
    )
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, "", "")
    for name in ("ckptwatch_checkpoint_step", "ckptwatch_run_healthy", "ckptwatch_tensor_weight_norm"):
        assert f"\n{name}{{" in scrape
