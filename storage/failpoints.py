"""Named places at which a test lets the process die, fail or stall; inert unless the environment names them.

`CKPTWATCH_FAILPOINTS="write.commit=kill@3,scan.done=stall"` is read once, when this module is imported. The places mark
the moments between which a crash makes a difference: tests end a real daemon at each of them and compare what is stored
with a run in which nothing happened. Nothing here may be used to decide anything.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
import threading
import time
from dataclasses import dataclass
from typing import Final

ENVIRONMENT_NAME: Final = "CKPTWATCH_FAILPOINTS"
STALL_SECONDS: Final = 3600.0

NAMES: Final[tuple[str, ...]] = (
    "create.begin",  # the write lock of a new database is held, no table is there
    "create.commit",  # all tables are there, not yet committed
    "migrate.begin",  # the schema is behind and locked, no backup is there
    "migrate.backed_up",
    "migrate.commit",  # all revisions ran, not yet committed
    "migrate.committed",
    "aside.begin",  # a damaged database is about to be renamed
    "aside.companions",  # its log has its new name, it itself has not
    "aside.done",
    "start.opened",  # the database is open, nothing else is
    "start.started",  # page, delivery and events run; nothing was scanned
    "scan.begin",
    "scan.done",
    "backlog.settled",  # a checkpoint was handed out, no worker has it
    "backlog.submitted",
    "pipeline.measured",  # a worker's answer is there
    "pipeline.assembled",  # the snapshot is complete in memory
    "record.snapshot",  # inside the transaction: the snapshot's rows
    "record.findings",  # inside: its findings too
    "record.alerts",  # inside: alerts and messages too
    "record.done",  # committed, not yet known to the loop
    "failure.store",  # a checkpoint is about to be stored as unreadable
    "write.begin",  # any transaction that writes: begun
    "write.commit",  # about to be committed
    "write.committed",
    "deliver.send",  # a message is about to be sent
    "deliver.sent",  # the receiver has it, the database does not know
    "deliver.marked",
    "tick.begin",
    "tick.done",
    "retention.begin",
    "retention.done",
    "close.begin",
    "close.database",  # everything else was taken down
)

ACTIONS: Final[tuple[str, ...]] = ("kill", "full", "stall")


@dataclass(slots=True)
class _Armed:
    action: str
    n_passes: int  # how often the place is passed unharmed


def parse(text: str) -> dict[str, tuple[str, int]]:
    """Return {name: (action, number of harmless passes)} for "NAME=ACTION[@N],..."; raise ValueError.

    `kill` ends the process with SIGKILL, `full` raises the OSError of a full disk, `stall` sleeps for an hour. Without
    `@N` it happens the first time, with it the N-th time.
    """
    armed: dict[str, tuple[str, int]] = {}
    for part in filter(None, (piece.strip() for piece in text.split(","))):
        name, _, rest = part.partition("=")
        action, _, count = rest.partition("@")
        if name not in NAMES or action not in ACTIONS or not (count or "1").isdecimal() or int(count or 1) < 1:
            raise ValueError(f"{ENVIRONMENT_NAME}: {part!r} is not NAME=ACTION[@N]")
        armed[name] = (action, int(count or 1) - 1)
    return armed


def reach(name: str) -> None:
    """Pass a place; nothing happens unless the environment armed it. Raises OSError for the action `full`."""
    if not _armed:
        return
    with _lock:
        armed = _armed.get(name)
        if armed is None:
            return
        armed.n_passes -= 1
        if armed.n_passes >= 0:
            return
        del _armed[name]
    if armed.action == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif armed.action == "stall":
        time.sleep(STALL_SECONDS)
    else:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _from_environment() -> dict[str, _Armed]:
    text = os.environ.get(ENVIRONMENT_NAME, "")
    try:
        found = parse(text)
    except ValueError as error:
        raise SystemExit(f"ckptwatch: {error}") from None
    if found:
        sys.stderr.write(f"ckptwatch: failpoints are armed: {text}\n")
    return {name: _Armed(action=action, n_passes=n) for name, (action, n) in found.items()}


_lock = threading.Lock()
_armed = _from_environment()
