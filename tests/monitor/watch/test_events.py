from __future__ import annotations

import errno
import logging
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from watchdog.observers import Observer
from watchdog.observers.api import BaseObserver

from monitor.watch.events import EventHints, inotify_watches_left
from monitor.watch.names import NameRules

RULES = NameRules.compile()


class Hints:
    """Collects hints and waits for them."""

    def __init__(self) -> None:
        self.roots: list[str] = []
        self._changed = threading.Condition()

    def __call__(self, root: str) -> None:
        with self._changed:
            self.roots.append(root)
            self._changed.notify_all()

    def take(self, n: int = 1) -> list[str]:
        """Wait for `n` hints, and return and forget all that came."""
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.roots) >= n, timeout=30)
            taken, self.roots = self.roots, []
        return taken


@pytest.fixture
def hints() -> Hints:
    return Hints()


@pytest.fixture
def made(hints: Hints) -> Iterator[EventHints]:
    events = EventHints(hints, debounce_seconds=0.01)
    yield events
    events.stop()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path.resolve()


def start(made: EventHints, hints: Hints, root: Path) -> None:
    assert made.watch(str(root), RULES, use_events=True).has_events
    assert hints.take() == [str(root)]  # for what was there before the watch


def write_new(root: Path) -> None:
    (root / "new.pt").write_bytes(b"x")


def overwrite(root: Path) -> None:
    with (root / "old.pt").open("r+b") as stream:
        stream.write(b"y")


def rename_into_place(root: Path) -> None:
    os.replace(root / "w.tmp", root / "w.safetensors")


def move_in_from_outside(root: Path) -> None:
    shutil.move(root.parent / "outside.pt", root / "moved.pt")


def hard_link(root: Path) -> None:
    os.link(root / "old.pt", root / "linked.pt")


def new_directory_filled_at_once(root: Path) -> None:
    (root / "a" / "b").mkdir(parents=True)
    (root / "a" / "b" / "m.pt").write_bytes(b"x")


def delete(root: Path) -> None:
    (root / "old.pt").unlink()


def remove_a_marker(root: Path) -> None:
    (root / "old-unfinished.txt").unlink()


@pytest.mark.parametrize(
    "change",
    [
        write_new, overwrite, rename_into_place, move_in_from_outside, hard_link, new_directory_filled_at_once, delete,
        remove_a_marker,
    ],
)  # fmt: skip
def test_what_happens_to_a_checkpoint_gives_a_hint(
    tmp_path: Path, made: EventHints, hints: Hints, change: Callable[[Path], None]
) -> None:
    root = tmp_path.resolve() / "root"
    root.mkdir()
    for name in ("old.pt", "w.tmp", "old-unfinished.txt"):
        (root / name).write_bytes(b"x")
    (root.parent / "outside.pt").write_bytes(b"x")
    start(made, hints, root)
    change(root)
    assert set(hints.take()) == {str(root)}


def test_files_in_a_directory_made_later_give_hints_too(root: Path, made: EventHints, hints: Hints) -> None:
    start(made, hints, root)
    (root / "run").mkdir()
    hints.take()
    time.sleep(0.1)
    hints.roots.clear()
    (root / "run" / "m.pt").write_bytes(b"x")
    hints.take()


def test_logs_temporary_files_and_our_own_reading_give_none(root: Path, made: EventHints, hints: Hints) -> None:
    (root / "m.pt").write_bytes(b"x")
    start(made, hints, root)
    (root / "log.txt").write_text("step 1")
    (root / "m.pt.tmp").write_bytes(b"x")
    (root / ".tmpX").write_bytes(b"x")
    (root / "m.pt").read_bytes()
    list(root.iterdir())
    (root / "last.pt").write_bytes(b"x")  # comes after all others in the queue
    assert hints.take() == [str(root)]
    time.sleep(0.1)
    assert hints.roots == []


def test_a_storm_becomes_few_hints(root: Path, hints: Hints) -> None:
    events = EventHints(hints, debounce_seconds=0.3)
    try:
        start(events, hints, root)
        for i in range(500):
            (root / f"{i}.pt").write_bytes(b"x")
        hints.take()
        time.sleep(1.0)
        assert events.counts.n_events >= 500
        assert len(hints.roots) < 10
    finally:
        events.stop()


def test_a_network_filesystem_is_left_to_the_scan_unless_events_are_asked_for(root: Path, hints: Hints) -> None:
    events = EventHints(hints, debounce_seconds=0.01, kind_of=lambda path: "network")
    try:
        state = events.watch(str(root), RULES)
        assert not state.has_events
        assert "network" in state.reason
        assert events.refresh() == []
        assert events.watch(str(root), RULES, use_events=True).has_events
    finally:
        events.stop()


def test_polling_can_be_asked_for(root: Path, made: EventHints) -> None:
    state = made.watch(str(root), RULES, use_events=False)
    assert not state.has_events
    assert state.reason
    assert made.refresh() == []


def test_a_root_that_is_missing_is_watched_once_it_exists(root: Path, made: EventHints, hints: Hints) -> None:
    late = root / "late"
    state = made.watch(str(late), RULES, use_events=True)
    assert not state.has_events
    assert "does not exist" in state.reason
    assert made.refresh() == []
    late.mkdir()
    (after,) = made.refresh()
    assert after.has_events
    hints.take()
    (late / "m.pt").write_bytes(b"x")
    hints.take()


def test_a_root_that_was_replaced_is_watched_anew(root: Path, made: EventHints, hints: Hints) -> None:
    inner = root / "inner"
    inner.mkdir()
    start(made, hints, inner)
    inner.rename(root / "moved away")
    inner.mkdir()
    made.refresh()
    time.sleep(0.1)
    hints.roots.clear()
    (inner / "m.pt").write_bytes(b"x")
    assert str(inner) in hints.take()


def test_a_root_that_was_deleted_says_so_and_comes_back(root: Path, made: EventHints, hints: Hints) -> None:
    inner = root / "inner"
    inner.mkdir()
    start(made, hints, inner)
    inner.rmdir()
    (state,) = made.refresh()
    assert not state.has_events
    inner.mkdir()
    (state,) = made.refresh()
    assert state.has_events


@pytest.mark.parametrize(
    ("number", "advice"), [(errno.ENOSPC, "max_user_watches"), (errno.EMFILE, "max_user_instances"), (errno.EIO, "")]
)
def test_a_refusal_falls_back_to_polling_and_says_what_to_raise(
    root: Path, hints: Hints, number: int, advice: str
) -> None:
    refusals = [True]

    def factory() -> BaseObserver:
        if refusals:
            raise OSError(number, os.strerror(number))
        return Observer()

    events = EventHints(hints, debounce_seconds=0.01, observer_factory=factory)
    try:
        state = events.watch(str(root), RULES, use_events=True)
        assert not state.has_events
        assert advice in state.reason
        refusals.clear()
        (state,) = events.refresh()
        assert state.has_events
    finally:
        events.stop()


def test_directories_left_out_for_want_of_watches_are_said_to_be(root: Path, hints: Hints) -> None:
    events = EventHints(hints, watches_left=lambda: False)
    try:
        state = events.watch(str(root), RULES, use_events=True)
        assert state.has_events
        assert "scans alone" in state.reason
    finally:
        events.stop()


def test_this_machine_has_watches_left_and_asking_costs_no_descriptor() -> None:
    before = len(os.listdir("/proc/self/fd"))
    assert inotify_watches_left()
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_lost_queue_hints_at_every_root(root: Path, made: EventHints, hints: Hints) -> None:
    roots = [root / "a", root / "b"]
    for one in roots:
        one.mkdir()
        start(made, hints, one)
    logging.getLogger("watchdog.observers.inotify_c").warning("Inotify queue overflowed; filesystem events were lost")
    assert set(hints.take(2)) == {str(one) for one in roots}
    assert made.counts.n_overflows == 1


def test_a_receiver_that_fails_is_asked_again(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    asked = threading.Semaphore(0)

    def receive(_: str) -> None:
        asked.release()
        raise RuntimeError("no")

    events = EventHints(receive, debounce_seconds=0.01)
    try:
        with caplog.at_level(logging.CRITICAL, logger="monitor.watch.events"):
            events.watch(str(root), RULES, use_events=True)
            assert asked.acquire(timeout=30)
            (root / "m.pt").write_bytes(b"x")
            assert asked.acquire(timeout=30)
    finally:
        events.stop()


def test_stopping_leaves_no_thread_and_no_descriptor(root: Path) -> None:
    script = """
import os, sys, threading, time
from monitor.watch.events import EventHints
from monitor.watch.names import NameRules
before = len(os.listdir("/proc/self/fd"))
for _ in range(3):
    events = EventHints(lambda root: None)
    events.watch(sys.argv[1], NameRules.compile(), use_events=True)
    events.watch(sys.argv[1] + "/missing", NameRules.compile(), use_events=True)
    events.refresh()
    events.stop()
print(threading.active_count(), len(os.listdir("/proc/self/fd")) - before)
"""
    checkout = Path(__file__).resolve().parents[3]
    done = subprocess.run(
        [sys.executable, "-c", script, str(root)], cwd=checkout, capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.split() == ["1", "0"]
