"""A daemon that has watched two real trainings, one of which went bad, and a browser to look at it with."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from playwright.sync_api import Browser

from tests.support.browser import CHROMIUM, Watched, chromium
from tests.support.daemons import DaemonProcess, wait_for
from tests.support.faulty_runs import train

N_SAVES = 12
POISONED_SAVE = 10


@dataclass(frozen=True, slots=True)
class Site:
    """The address of the daemon's page."""

    url: str


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    directory = tmp_path_factory.mktemp("site")
    root = directory / "runs"
    list(train(root / "steady", n_saves=N_SAVES, seed=1))
    list(train(root / "broken", n_saves=N_SAVES, seed=2, poisoned_save=POISONED_SAVE))
    with DaemonProcess(directory / "state", root) as daemon:
        wait_for("all checkpoints to be measured", lambda: daemon.metric("ckptwatch_snapshots_total") == 2 * N_SAVES)
        yield Site(url=f"http://127.0.0.1:{daemon.port}")


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("needs Chromium; on Debian: apt-get install chromium")
    with chromium() as started:
        yield started


@pytest.fixture(params=["light", "dark"])
def visitor(browser: Browser, request: pytest.FixtureRequest) -> Iterator[Watched]:
    context = browser.new_context(color_scheme=request.param)
    watched = Watched(context.new_page())
    yield watched
    context.close()
    assert watched.complaints == []
