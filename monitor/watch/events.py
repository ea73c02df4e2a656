"""Events of the operating system as hints that make the next scan come sooner; never the truth.

Events are lost on overflow, on network filesystems and when limits are reached; then this module says so and the
periodic scan finds everything, only later. A hint names a root and nothing more, and storms are gathered into one
hint per root and window. Nothing raises into the threads of the watching library.
"""

from __future__ import annotations

import ctypes
import errno
import logging
import os
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from watchdog.events import (
    DirCreatedEvent,
    DirDeletedEvent,
    DirMovedEvent,
    FileClosedEvent,
    FileCreatedEvent,
    FileDeletedEvent,
    FileMovedEvent,
    FileSystemEvent,
    FileSystemEventHandler,
)
from watchdog.observers import Observer
from watchdog.observers.api import BaseObserver

from monitor.read.unfinished import unfinished_of
from monitor.watch.filesystem import NETWORK, filesystem_kind
from monitor.watch.names import NameRules

log = logging.getLogger(__name__)

DEBOUNCE_SECONDS = 0.2

# Not "modified": a large file would give thousands of them while it is written, and its closing says the same once.
# Not "opened" and "closed without writing": our own reading would wake us.
_EVENT_TYPES: tuple[type[FileSystemEvent], ...] = (
    FileCreatedEvent,
    FileClosedEvent,
    FileMovedEvent,
    FileDeletedEvent,
    DirCreatedEvent,
    DirMovedEvent,
    DirDeletedEvent,
)
_OVERFLOW_LOGGERS = ("watchdog.observers.inotify_c", "watchdog.observers.inotify")
_STOP_SECONDS = 5.0
_IN_DELETE_SELF = 0x400


@dataclass(frozen=True, slots=True, kw_only=True)
class WatchState:
    """How a root is watched: with events, or by scans alone; `reason` says why when events are missing, else ""."""

    root: str
    has_events: bool
    reason: str = ""


@dataclass(slots=True)
class EventCounts:
    """What happened so far, for the daemon's own metrics."""

    n_events: int = 0
    n_hints: int = 0
    n_overflows: int = 0


@dataclass(slots=True)
class _Watched:
    rules: NameRules
    state: WatchState
    observer: BaseObserver | None = None
    identity: tuple[int, int] | None = None  # device and inode of the root when the observer was started
    is_retried: bool = False


class EventHints:
    """Turns filesystem events below roots into calls of `on_hint(root)`, at most one per root and window."""

    def __init__(
        self,
        on_hint: Callable[[str], None],
        *,
        debounce_seconds: float = DEBOUNCE_SECONDS,
        observer_factory: Callable[[], BaseObserver] = Observer,
        kind_of: Callable[[str], str] = filesystem_kind,
        watches_left: Callable[[], bool] | None = None,
    ) -> None:
        """Start the thread that gathers; no root is watched yet. `on_hint` is called from that thread."""
        self.counts = EventCounts()
        self._on_hint = on_hint
        self._debounce_seconds = debounce_seconds
        self._observer_factory = observer_factory
        self._kind_of = kind_of
        self._watches_left = watches_left or inotify_watches_left
        self._roots: dict[str, _Watched] = {}
        self._hinted: dict[str, None] = {}  # an ordered set
        self._changed = threading.Condition()
        self._is_stopped = False
        self._overflow_handler = _OverflowHandler(self._overflowed)
        for name in _OVERFLOW_LOGGERS:
            logging.getLogger(name).addHandler(self._overflow_handler)
        self._thread = threading.Thread(target=self._gather, name="event-hints", daemon=True)
        self._thread.start()

    def watch(self, root: str, rules: NameRules, *, use_events: bool | None = None) -> WatchState:
        """Begin to watch a root and say how that went; never raises for what the system refuses.

        `use_events` None decides by the filesystem: on a network filesystem other machines' writes give no events, so
        none are asked for. A root that is refused, or does not exist yet, is tried again by `refresh`.
        """
        watched = _Watched(rules=rules, state=WatchState(root=root, has_events=False))
        self._roots[root] = watched
        if use_events is None and self._kind_of(root) == NETWORK:
            watched.state = WatchState(root=root, has_events=False, reason="network filesystem: no events from others")
        elif use_events is False:
            watched.state = WatchState(root=root, has_events=False, reason="polling was asked for")
        else:
            self._arm(root, watched)
        return watched.state

    def refresh(self) -> list[WatchState]:
        """Try again what failed and replace what died; return the states that changed. Call it with every scan."""
        changed = []
        for root, watched in self._roots.items():
            before = watched.state
            if watched.observer is not None and not _is_working(watched.observer, root, watched.identity):
                self._disarm(watched)
                watched.is_retried = True
            if watched.observer is None and watched.is_retried:
                self._arm(root, watched)
            if watched.state != before:
                changed.append(watched.state)
        return changed

    def states(self) -> list[WatchState]:
        """Return how each root is watched."""
        return [watched.state for watched in self._roots.values()]

    def stop(self) -> None:
        """End all watching and all threads."""
        for name in _OVERFLOW_LOGGERS:
            logging.getLogger(name).removeHandler(self._overflow_handler)
        for watched in self._roots.values():
            self._disarm(watched)
        with self._changed:
            self._is_stopped = True
            self._changed.notify_all()
        self._thread.join(_STOP_SECONDS)

    def _arm(self, root: str, watched: _Watched) -> None:
        observer: BaseObserver | None = None
        watched.identity = _identity(root)
        try:
            observer = self._observer_factory()
            observer.schedule(
                _Handler(lambda event: self._happened(root, watched.rules, event)),
                root,
                recursive=True,
                event_filter=list(_EVENT_TYPES),
            )
            observer.start()
        except OSError as error:
            watched.is_retried = True
            watched.state = WatchState(root=root, has_events=False, reason=_reason(error))
            if observer is not None:
                _stop(observer)
            return
        watched.observer = observer
        watched.is_retried = False
        reason = "" if self._watches_left() else _LIMIT_REASON
        watched.state = WatchState(root=root, has_events=True, reason=reason)
        self._hint(root)  # what was written before the watch was there

    def _disarm(self, watched: _Watched) -> None:
        observer, watched.observer = watched.observer, None
        if observer is not None:
            _stop(observer)

    def _happened(self, root: str, rules: NameRules, event: FileSystemEvent) -> None:
        self.counts.n_events += 1
        for path in (event.src_path, event.dest_path):
            if path and _is_relevant(os.fsdecode(path), root, rules, is_directory=event.is_directory):
                self._hint(root)
                return

    def _overflowed(self) -> None:
        self.counts.n_overflows += 1
        for root in list(self._roots):
            self._hint(root)

    def _hint(self, root: str) -> None:
        with self._changed:
            self._hinted[root] = None
            self._changed.notify_all()

    def _gather(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._hinted or self._is_stopped)
                if self._is_stopped:
                    return
            time.sleep(self._debounce_seconds)
            with self._changed:
                hinted, self._hinted = self._hinted, {}
            for root in hinted:
                self.counts.n_hints += 1
                try:
                    self._on_hint(root)
                except Exception:  # supervisor of the hints: a failing receiver must not end them
                    log.exception("a hint for %s was not taken; the next scan will find what it was about", root)


class _Handler(FileSystemEventHandler):
    """Hands every event to one function."""

    def __init__(self, happened: Callable[[FileSystemEvent], None]) -> None:
        self._happened = happened

    def dispatch(self, event: FileSystemEvent) -> None:
        """Pass the event on."""
        self._happened(event)


class _OverflowHandler(logging.Handler):
    """Notices that the library logs a lost queue; there is no other sign of it."""

    def __init__(self, overflowed: Callable[[], None]) -> None:
        super().__init__(level=logging.WARNING)
        self._overflowed = overflowed

    def emit(self, record: logging.LogRecord) -> None:
        """Report records about an overflow."""
        if "events were lost" in record.getMessage():
            self._overflowed()


_LIMIT_REASON = (
    "the limit of inotify watches is reached: some directories give no events and are found by scans alone; "
    "raise fs.inotify.max_user_watches"
)


def inotify_watches_left() -> bool:
    """Say whether this user may add one more inotify watch; True where there is no inotify.

    The library reports a refused watch for the root, but leaves out refused directories below it without a word.
    """
    if sys.platform != "linux":
        return True
    libc = ctypes.CDLL(None, use_errno=True)
    descriptor = libc.inotify_init1(os.O_CLOEXEC)
    if descriptor < 0:
        return ctypes.get_errno() not in {errno.EMFILE, errno.ENOSPC}
    try:
        refused = libc.inotify_add_watch(descriptor, b"/", _IN_DELETE_SELF) < 0
        return not (refused and ctypes.get_errno() == errno.ENOSPC)
    finally:
        os.close(descriptor)


def _is_relevant(path: str, root: str, rules: NameRules, *, is_directory: bool) -> bool:
    if path == root:
        return True
    relative = os.path.relpath(path, root)
    if relative.startswith("../"):
        return False
    if is_directory:
        return rules.takes_directory(os.path.basename(path), relative)
    return rules.takes_path(relative) or unfinished_of(os.path.basename(path)) is not None


def _reason(error: OSError) -> str:
    if error.errno == errno.ENOSPC:
        return "the limit of inotify watches is reached; raise fs.inotify.max_user_watches"
    if error.errno == errno.EMFILE:
        return "the limit of inotify instances or open files is reached; raise fs.inotify.max_user_instances"
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return "the root does not exist or is not a directory"
    if isinstance(error, PermissionError):
        return "the root may not be read by this user"
    return f"events are refused: {error.strerror or error}"


def _is_working(observer: BaseObserver, root: str, identity: tuple[int, int] | None) -> bool:
    alive = observer.is_alive() and all(emitter.is_alive() for emitter in observer.emitters)
    return alive and _identity(root) == identity  # else the root was moved away, unmounted or made anew


def _identity(root: str) -> tuple[int, int] | None:
    try:
        status = os.stat(root)
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _stop(observer: BaseObserver) -> None:
    observer.stop()
    if observer.is_alive():
        observer.join(_STOP_SECONDS)
