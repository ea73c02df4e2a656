"""Make the pictures of the pages for the documents: `python -m tests.browser.screenshots DIRECTORY`; then look."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from tests.support.browser import chromium
from tests.support.daemons import DaemonProcess, wait_for
from tests.support.faulty_runs import POISONED, train

N_SAVES = 24
POISONED_SAVE = 20
WIDTH, HEIGHT = 1180, 900
VIEWS = {
    "page-runs": "/",
    "page-run": "/runs/runs%2Fbroken",
    "page-tensor": f"/tensor?run=runs%2Fbroken&name={POISONED}",
    "page-map": "/map?run=runs%2Fsteady",
    "page-compare": "/compare?old=1&new=2",
    "page-alerts": "/alerts",
}


def main(target: Path) -> None:
    """Train, watch, and photograph every view."""
    with tempfile.TemporaryDirectory() as name:
        root = Path(name) / "runs"
        list(train(root / "steady", n_saves=N_SAVES, seed=1))
        list(train(root / "broken", n_saves=N_SAVES, seed=2, poisoned_save=POISONED_SAVE))
        with DaemonProcess(Path(name) / "state", root) as daemon, chromium() as browser:
            counted = "ckptwatch_snapshots_total"
            wait_for("all to be measured", lambda: daemon.metric(counted) == 2 * N_SAVES, 600)
            page = browser.new_context(color_scheme="light", viewport={"width": WIDTH, "height": HEIGHT}).new_page()
            for view, address in VIEWS.items():
                page.goto(f"http://127.0.0.1:{daemon.port}{address}")
                page.screenshot(
                    path=target / f"{view}.png", clip={"x": 0, "y": 0, "width": WIDTH, "height": HEIGHT}, full_page=True
                )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
