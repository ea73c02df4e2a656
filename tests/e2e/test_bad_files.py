"""Files that are not what they should be, before a running daemon: nothing runs, one failure each, and on it goes."""

from __future__ import annotations

import io
import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.support.daemons import DaemonProcess, wait_for

pytestmark = pytest.mark.timeout(300)  # waits have their own, shorter limits


class Bomb:
    """Unpickled by anything that executes pickles, it runs a shell command."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> Any:
        return (os.system, (f"touch '{self.canary}'",))


def _torch_bytes(document: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(document, buffer)
    return buffer.getvalue()


def _stored(daemon: DaemonProcess, name: str) -> list[dict[str, Any]]:
    return [s for s in daemon.snapshots() if os.path.basename(s["path"]) == name]


def test_a_pickle_that_would_run_a_command_runs_nothing_and_its_tensors_are_measured(tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    root = tmp_path / "run"
    root.mkdir()
    weights = torch.arange(6, dtype=torch.float32).reshape(2, 3)
    payload = _torch_bytes({"state_dict": {"layer.weight": weights}, "hook": Bomb(canary), "global_step": 40})
    with DaemonProcess(tmp_path / "state", root) as daemon:
        (root / "step-40.ckpt").write_bytes(payload)
        wait_for("the file to be measured", lambda: _stored(daemon, "step-40.ckpt"))
        stored = _stored(daemon, "step-40.ckpt")[0]
        assert stored["status"] == "complete"
        assert (stored["step"], stored["n_parameters"]) == (40, 6)
        assert stored["weight_norm"] == pytest.approx(float(np.linalg.norm(np.arange(6))))
        assert daemon.terminate() == 0
    assert not canary.exists()
    torch.load(root / "step-40.ckpt", weights_only=False)
    assert canary.exists(), "the file was no threat, so this test has shown nothing"


def test_truncated_foreign_and_empty_files_give_one_failure_each_and_the_daemon_goes_on(tmp_path: Path) -> None:
    root = tmp_path / "run"
    root.mkdir()
    good = _torch_bytes({"w": torch.ones(1000)})
    bad = {
        "step-1.pt": (good[: len(good) // 2], "truncated"),
        "step-2.safetensors": (b"", "truncated"),
        "step-3.pt": (b"<!DOCTYPE html><html>404 not found</html>", "unsupported"),
        "step-4.pt": (pickle.dumps({"not": "a checkpoint"}), "unsupported"),
        "step-5.pt": (good.replace(b"PK\x01\x02", b"PK\x01\xff"), "corrupt"),
    }
    watch = {"incomplete_timeout_seconds": 1}
    with DaemonProcess(tmp_path / "state", root, watch=watch) as daemon:
        for name, (content, _) in bad.items():
            (root / name).write_bytes(content)
        wait_for("a failure for each file", lambda: len(daemon.snapshots()) >= len(bad))
        (root / "step-9.pt").write_bytes(good)
        wait_for("the good one", lambda: _stored(daemon, "step-9.pt"))
        assert _stored(daemon, "step-9.pt")[0]["status"] == "complete"
        assert len(daemon.snapshots()) == len(bad) + 1
        for name, (_, kind) in bad.items():
            failures = _stored(daemon, name)
            assert [(f["status"], f["problem"]["kind"]) for f in failures] == [("failed", kind)], name
            message = failures[0]["problem"]["message"]
            assert message.strip() == message
            assert 0 < len(message) <= 500
            assert message.isprintable()
            assert name not in daemon.log or "Traceback" not in daemon.log
        assert daemon.metric("ckptwatch_supervisor_errors_total") == 0
        assert daemon.terminate() == 0
        daemon.start()
        assert daemon.metric("ckptwatch_snapshots_total") == 0, "a restart judged a bad file again"
        assert len(daemon.snapshots()) == len(bad) + 1


def test_a_file_that_becomes_whole_in_time_is_measured_and_never_called_broken(tmp_path: Path) -> None:
    root = tmp_path / "run"
    root.mkdir()
    whole = _torch_bytes({"w": torch.ones(5000)})
    with DaemonProcess(tmp_path / "state", root) as daemon:
        (root / "step-1.pt").write_bytes(whole[:9000])
        wait_for("a first try", lambda: "is tried again: incomplete" in daemon.log)
        assert daemon.snapshots() == []
        with (root / "step-1.pt").open("ab") as stream:
            stream.write(whole[9000:])
        wait_for("the file to be measured", daemon.snapshots)
        assert [(s["status"], s["n_parameters"]) for s in daemon.snapshots()] == [("complete", 5000)]


def test_a_watched_directory_that_goes_away_and_comes_back_is_watched_again(tmp_path: Path) -> None:
    root = tmp_path / "run"
    root.mkdir()
    np.save(root / "step-1.npy", np.ones(3))
    with DaemonProcess(tmp_path / "state", root) as daemon:
        wait_for("the first file", lambda: _stored(daemon, "step-1.npy"))
        shutil.rmtree(root)
        wait_for("the scan to miss it", lambda: daemon.metric("ckptwatch_scan_failures_total") > 0)
        root.mkdir()
        np.save(root / "step-2.npy", np.ones(4))
        wait_for("the file in the new directory", lambda: _stored(daemon, "step-2.npy"))
        assert len(daemon.snapshots()) == 2
