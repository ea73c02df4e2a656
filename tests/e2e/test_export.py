"""A live daemon exports what it measured, by file, and takes the file away when it ends."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.support.daemons import DaemonProcess, wait_for

pytestmark = pytest.mark.timeout(300)  # waits have their own, shorter limits


def test_the_textfile_follows_the_run_and_goes_away_with_the_daemon(tmp_path: Path) -> None:
    root = tmp_path / "gpt"
    root.mkdir()
    textfile = tmp_path / "ckptwatch.prom"
    export = {"textfile": str(textfile), "interval_seconds": 1}
    with DaemonProcess(tmp_path / "state", root, export=export) as daemon:
        np.savez(root / "step-7.npz", weight=np.ones((4, 5), np.float32))
        line = 'ckptwatch_checkpoint_step{run="gpt"} 7.0'
        wait_for("the step in the file", lambda: textfile.exists() and line in textfile.read_text())
        assert daemon.metric("ckptwatch_exports_total", exporter="textfile") >= 1
        assert daemon.terminate() == 0
    assert not textfile.exists()
