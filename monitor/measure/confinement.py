"""What a worker process may use: applied by the worker to itself, before it reads its first task.

Linux first; what another system does not offer is left out. Nothing here is undone: a confined process stays so.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import resource
import signal
import sys
from dataclasses import dataclass
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_PR_SET_NO_NEW_PRIVS = 38
_IOPRIO_WHO_PROCESS = 1
_IOPRIO_CLASS_IDLE = 3 << 13
_IOPRIO_SET = {"x86_64": 251, "aarch64": 30, "riscv64": 30, "ppc64le": 273, "s390x": 282}
_NICE_MAX = 19


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerLimits:
    """What the kernel lets a worker have.

    Address space, not memory in use: a compiler maps far more than it touches. Files may be written up to
    `file_bytes_max` because compiled kernels are kept in the user's cache.
    """

    memory_bytes_max: int = 4 * 2**30
    file_bytes_max: int = 16 * 2**20
    open_files_max: int = 64
    cpu_seconds_max: int = 1800  # for one task


def confine(limits: WorkerLimits, *, parent_pid: int) -> None:
    """Confine this process; end it at once when the parent is already gone."""
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        number = _IOPRIO_SET.get(platform.machine())
        if number is not None:
            libc.syscall(number, _IOPRIO_WHO_PROCESS, 0, _IOPRIO_CLASS_IDLE)
        with contextlib.suppress(OSError):
            Path("/proc/self/oom_score_adj").write_text("1000")
    if os.getppid() != parent_pid:  # it died before the kernel knew that we want to die with it
        os._exit(1)
    with contextlib.suppress(OSError):
        os.nice(_NICE_MAX)
    _lower(resource.RLIMIT_CORE, 0)
    _lower(resource.RLIMIT_NOFILE, limits.open_files_max)
    _lower(resource.RLIMIT_FSIZE, limits.file_bytes_max)
    if sys.platform == "linux":  # elsewhere the limit counts shared libraries that every process maps
        _lower(resource.RLIMIT_AS, limits.memory_bytes_max)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the daemon's to handle


def allow_cpu_seconds(seconds: int) -> None:
    """Let this process use `seconds` more of CPU time; beyond, the kernel ends it with SIGXCPU."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    soft = int(usage.ru_utime + usage.ru_stime) + seconds + 1
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    if hard != resource.RLIM_INFINITY:
        soft = min(soft, hard)
    resource.setrlimit(resource.RLIMIT_CPU, (soft, hard))


def _lower(which: int, value: int) -> None:
    _, hard = resource.getrlimit(which)
    if hard != resource.RLIM_INFINITY:
        value = min(value, hard)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(which, (value, value))
