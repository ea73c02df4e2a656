"""A worker process: confines itself, then turns tasks from standard input into results on standard output.

Started by monitor.measure.workers with its settings; never imported by the daemon. It runs only the functions that
the settings name. After an error that may have left it in a bad state it ends, and the pool
starts a fresh one.
"""

from __future__ import annotations

import importlib
import os
import traceback
from collections.abc import Callable
from typing import Any, BinaryIO

from monitor.measure import frames
from monitor.measure.confinement import WorkerLimits, allow_cpu_seconds, confine
from monitor.read.reader import ReadError
from storage.records import ProblemKind

_MESSAGE_CHARACTERS_MAX = 500


def main(settings: dict[str, Any]) -> int:
    """Serve tasks until standard input ends; return the exit status.

    `settings`: {"limits": {WorkerLimits' fields}, "parent_pid": int, "result_bytes_max": int, "tasks": {name:
    "module:function"}}. Raises FrameError when the parent sends something else than tasks.
    """
    requests, replies = _take_standard_streams()
    limits = WorkerLimits(**settings["limits"])
    confine(limits, parent_pid=settings["parent_pid"])
    _send(replies, {"ready": os.getpid()}, settings["result_bytes_max"])
    while True:
        header = requests.read(frames.HEADER.size)
        if len(header) < frames.HEADER.size:
            return 0
        body = requests.read(frames.length(header, bytes_max=frames.REQUEST_BYTES_MAX))
        reply, may_go_on = run_task(frames.decode(body), settings["tasks"], limits)
        try:
            _send(replies, reply, settings["result_bytes_max"])
        except frames.FrameError as error:
            _send(
                replies,
                _problem(ProblemKind.LIMIT, f"the result cannot be sent: {error}"),
                settings["result_bytes_max"],
            )
        if not may_go_on:
            return 0


def run_task(request: dict[str, Any], tasks: dict[str, str], limits: WorkerLimits) -> tuple[dict[str, Any], bool]:
    """Run one task; return the reply and whether this process is still fit for another one."""
    allow_cpu_seconds(limits.cpu_seconds_max)
    try:
        return {"result": _resolve(tasks[request["task"]])(*request["args"])}, True
    except ReadError as error:
        return _problem(error.kind, str(error)), True
    except MemoryError:
        message = f"more than {limits.memory_bytes_max} bytes of memory were needed; raise measure.memory_bytes_max"
        return _problem(ProblemKind.LIMIT, message), False
    except Exception as error:  # noqa: BLE001 - supervisor of one task: whatever went wrong costs this task only
        traceback.print_exc()
        return _problem(ProblemKind.WORKER_CRASHED, f"{type(error).__name__}: {error}"), False


def _resolve(target: str) -> Callable[..., Any]:
    module, _, name = target.partition(":")
    function: Callable[..., Any] = getattr(importlib.import_module(module), name)
    return function


def _problem(kind: ProblemKind, message: str) -> dict[str, Any]:
    line = " ".join("".join(c if c.isprintable() else " " for c in message).split())
    return {"problem": {"kind": kind.value, "message": line[:_MESSAGE_CHARACTERS_MAX]}}


def _send(replies: BinaryIO, document: dict[str, Any], bytes_max: int) -> None:
    replies.write(frames.encode(document, bytes_max=bytes_max))
    replies.flush()


def _take_standard_streams() -> tuple[BinaryIO, BinaryIO]:
    """Keep the pipes for frames alone: whatever a library prints goes to standard error, what it asks for is empty."""
    requests = os.fdopen(os.dup(0), "rb")
    replies = os.fdopen(os.dup(1), "wb")
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.dup2(2, 1)
    return requests, replies
