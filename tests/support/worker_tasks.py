"""Tasks that misbehave, for the allow-list of a pool under test; run in a worker process."""

from __future__ import annotations

import ctypes
import os
import resource
import stat
import sys
import time
from pathlib import Path
from typing import Any

from monitor.read.reader import IncompleteError

_PREFIX = "tests.support.worker_tasks:"
TASKS = {
    name: _PREFIX + name
    for name in (
        "abort", "allocate", "big", "crash_by_null", "exit_quietly", "facts", "incomplete", "noise", "not_a_number",
        "raise_error", "sleep", "spin", "write_file", "write_raw",
    )
} | {"ping": "monitor.measure.tasks:ping"}  # fmt: skip


def abort() -> None:
    os.abort()


def crash_by_null() -> None:
    ctypes.string_at(0)


def exit_quietly() -> None:
    os._exit(0)


def sleep(seconds: float) -> str:
    time.sleep(seconds)
    return "slept"


def spin() -> None:
    while True:
        pass


def allocate(n_bytes: int) -> int:
    return len(bytearray(n_bytes))


def big(n_characters: int) -> str:
    return "x" * n_characters


def raise_error(message: str) -> None:
    raise RuntimeError(message)


def incomplete() -> None:
    raise IncompleteError("no end\nof the directory \x1b[31m yet")


def not_a_number() -> float:
    return float("nan")


def noise() -> str:
    print("to standard output")
    sys.stdout.flush()
    os.write(1, b"straight to descriptor 1\n" * 10_000)
    os.write(2, b"to standard error\n" * 10_000)
    return sys.stdin.read()


def write_file(path: str, n_bytes: int) -> int:
    return Path(path).write_bytes(bytes(n_bytes))


def write_raw(hexadecimal: str) -> str:
    """Write bytes of our own into every pipe that can be written to, as code that took the process over could."""
    data = bytes.fromhex(hexadecimal)
    for descriptor in range(3, 64):
        try:
            if stat.S_ISFIFO(os.fstat(descriptor).st_mode):
                os.write(descriptor, data)
        except OSError:
            continue
    time.sleep(60)
    return "never reached"


def facts() -> dict[str, Any]:
    libc = ctypes.CDLL(None)
    death_signal = ctypes.c_int()
    libc.prctl(2, ctypes.byref(death_signal), 0, 0, 0)
    return {
        "nice": os.getpriority(os.PRIO_PROCESS, 0),
        "oom_score_adj": int(Path("/proc/self/oom_score_adj").read_text()),
        "death_signal": death_signal.value,
        "no_new_privs": libc.prctl(39, 0, 0, 0, 0),
        "cwd": os.getcwd(),
        "environment": dict(os.environ),
        "limits": {
            name: resource.getrlimit(getattr(resource, name))[0]
            for name in ("RLIMIT_AS", "RLIMIT_CORE", "RLIMIT_FSIZE", "RLIMIT_NOFILE")
        },
        "io_class": libc.syscall(252, 1, 0) >> 13 if os.uname().machine == "x86_64" else 3,
        "isolated": sys.flags.isolated,
    }
