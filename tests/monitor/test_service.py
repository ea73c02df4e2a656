"""One daemon is kept going: restarts when asked, keeps what worked, and tells the service manager."""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from monitor import service as services
from monitor import systemd
from monitor.config import Config, ConfigError, ConfigProblem, load
from monitor.daemon import Ending
from monitor.service import Service
from storage.errors import DatabaseUnreachableError


class FakeDaemon:
    """Ends as it is told to, one ending after the other; notes what was done with it."""

    url = None

    def __init__(self, config: Config, endings: list[Callable[[], Ending]], notes: list[str]) -> None:
        self.config = config
        self.endings = endings
        self.notes = notes

    def start(self) -> None:
        self.notes.append(f"start {self.config.watch.scan_interval_seconds:.0f}")

    def run(self) -> Ending:
        return self.endings.pop(0)()

    def stop(self) -> None:
        self.notes.append("stop")

    def interrupt(self) -> None:
        self.notes.append("interrupt")

    def close(self) -> None:
        self.notes.append("close")


def configured(seconds: int) -> Config:
    return load(None, {"watch": {"scan_interval_seconds": seconds}})


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(services, "RETRY_SECONDS", (0.001, 0.002))


def test_a_reload_goes_on_with_the_new_configuration_and_a_wrong_one_changes_nothing() -> None:
    notes: list[str] = []
    answers: list[Config | ConfigError] = [
        configured(10),
        ConfigError([ConfigProblem(path="watch", message="wrong")]),
        configured(20),
    ]

    def load_next() -> Config:
        answer = answers.pop(0)
        if isinstance(answer, ConfigError):
            raise answer
        return answer

    def reload() -> Ending:
        service.reload()
        return Ending.INTERRUPTED

    endings = [reload, reload, lambda: Ending.STOPPED]
    said: list[str] = []
    service = Service(load_next, lambda config, _: FakeDaemon(config, endings, notes), announce=said.append)
    service.run()
    assert notes == ["start 10", "interrupt", "interrupt", "close", "start 20", "close"]
    assert [line.partition("\n")[0] for line in said] == ["READY=1", "RELOADING=1", "READY=1", "STOPPING=1"]


def test_a_configuration_that_cannot_be_built_gives_way_to_the_one_before() -> None:
    notes: list[str] = []
    answers = [configured(10), configured(20)]

    def build(config: Config, _: Ending | None) -> FakeDaemon:
        if config.watch.scan_interval_seconds == 20:
            raise ConfigError([ConfigProblem(path="rules", message="do not fit together")])
        return FakeDaemon(config, endings, notes)

    def reload() -> Ending:
        service.reload()
        return Ending.INTERRUPTED

    endings = [reload, lambda: Ending.STOPPED]
    service = Service(lambda: answers.pop(0), build, announce=lambda _: None)
    service.run()
    assert notes == ["start 10", "interrupt", "close", "start 10", "close"]


@pytest.mark.parametrize("ending", [Ending.DAMAGED, Ending.REPLACED])
def test_a_database_that_is_lost_is_opened_anew_however_often_that_fails(ending: Ending) -> None:
    notes: list[str] = []
    endings: list[Callable[[], Ending]] = [lambda: ending, lambda: Ending.STOPPED]
    told: list[Ending | None] = []

    def build(config: Config, why: Ending | None) -> FakeDaemon:
        told.append(why)
        if 1 < len(told) < 5:
            raise DatabaseUnreachableError("the disk is not there")
        return FakeDaemon(config, endings, notes)

    Service(lambda: configured(10), build, announce=lambda _: None).run()
    assert told == [None, *[ending] * 4]
    assert notes == ["start 10", "close", "start 10", "close"]


def test_the_first_start_may_fail_and_leaves_nothing_behind() -> None:
    def build(config: Config, _: Ending | None) -> FakeDaemon:
        raise DatabaseUnreachableError("the disk is not there")

    with pytest.raises(DatabaseUnreachableError):
        Service(lambda: configured(10), build, announce=lambda _: None).run()


def test_a_stop_while_it_starts_again_ends_it() -> None:
    notes: list[str] = []
    n_built = 0

    def build(config: Config, _: Ending | None) -> FakeDaemon:
        nonlocal n_built
        n_built += 1
        if n_built > 1:
            service.stop()
            raise DatabaseUnreachableError("the disk is not there")
        return FakeDaemon(config, [lambda: Ending.REPLACED], notes)

    service = Service(lambda: configured(10), build, announce=lambda _: None)
    service.run()
    assert (n_built, notes) == (2, ["start 10", "close"])


@pytest.mark.parametrize("kind", ["path", "abstract"])
def test_the_service_manager_hears_what_it_is_told(tmp_path: Path, kind: str) -> None:
    address = str(tmp_path / "notify") if kind == "path" else f"\0ckptwatch-test-{tmp_path}"[:100]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(address)
        assert systemd.notify("READY=1", {"NOTIFY_SOCKET": address.replace("\0", "@")})
        assert manager.recv(100) == b"READY=1"


@pytest.mark.parametrize("address", ["", "relative", "/nowhere/at/all"])
def test_where_nobody_listens_nothing_happens(address: str) -> None:
    assert not systemd.notify("READY=1", {"NOTIFY_SOCKET": address})


def test_the_watchdog_is_told_of_progress_now_and_then_and_never_without() -> None:
    now = 0.0
    sent: list[str] = []
    watchdog = systemd.Watchdog(sent.append, ping_seconds=5.0, monotonic=lambda: now)
    assert sent == []
    for second in range(21):
        now = float(second)
        watchdog.progress()
    assert sent == ["WATCHDOG=1"] * 5
