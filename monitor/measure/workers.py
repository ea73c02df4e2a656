"""The pool of disposable worker processes, with the interface of concurrent.futures.Executor.

The parent's side: it starts confined children, sends tasks and takes results as JSON frames, and ends a child that
crashes, takes too long or sends nonsense. It imports nothing that a child needs for its work, and trusts nothing that
a child sends beyond its being JSON: what a result means is checked by whoever asked for it.
"""

from __future__ import annotations

import json
import logging
import os
import queue
import sys
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Executor, Future
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar, overload

from monitor.measure import frames
from monitor.measure.child import Child, ChildError, ChildTimeoutError
from monitor.measure.confinement import WorkerLimits
from monitor.measure.tasks import TASKS
from storage.records import Problem, ProblemKind

log = logging.getLogger(__name__)
T = TypeVar("T")

_STOP_SECONDS = 2.0
_SPOILING = frozenset({ProblemKind.LIMIT, ProblemKind.WORKER_CRASHED})


class WorkerError(Exception):
    """A task has no result; `problem` says why in the words of the database.

    WorkerError
    ├── TaskFailedError     the task itself said why: the file's fault
    ├── TaskTimeoutError    it took longer than it may
    ├── WorkerCrashedError  the process died or sent nonsense; a second try in a fresh one may succeed
    └── PoolClosedError     the pool was shut down first
    """

    kind = ProblemKind.WORKER_CRASHED

    def __init__(self, message: str, *, kind: ProblemKind | None = None) -> None:
        super().__init__(message)
        self.problem = Problem(kind=kind or self.kind, message=message[:500])


class TaskFailedError(WorkerError):
    """The task ended with a problem of its own."""


class TaskTimeoutError(WorkerError):
    """The task was ended because it took too long."""

    kind = ProblemKind.TIMEOUT


class WorkerCrashedError(WorkerError):
    """The worker process died, or sent something that is no result."""


class PoolClosedError(WorkerError):
    """The pool was shut down before the task had a result."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolOptions:
    """How many workers there are, how long they live and what crosses their pipes."""

    n_workers: int = 1
    task_timeout_seconds: float = 1800.0
    start_timeout_seconds: float = 120.0
    idle_seconds: float = 60.0
    tasks_max: int = 100  # then a worker is replaced
    result_bytes_max: int = frames.RESULT_BYTES_MAX
    limits: WorkerLimits = field(default_factory=WorkerLimits)


@dataclass(slots=True)
class PoolCounts:
    """What the pool did so far, for the daemon's own metrics."""

    n_started: int = 0
    n_results: int = 0
    n_problems: int = 0
    n_crashes: int = 0
    n_timeouts: int = 0


@dataclass(slots=True)
class _Task:
    future: Future[Any]
    request: bytes
    timeout_seconds: float


class WorkerPool(Executor):
    """Runs named tasks in at most `n_workers` child processes, each started when first needed.

    Every worker has one thread here, which owns its process: the kernel ends a child with the thread that started it.
    """

    def __init__(self, options: PoolOptions | None = None, *, tasks: Mapping[str, str] = TASKS) -> None:
        """Prepare a pool without starting anything; `tasks` is the allow-list: name -> "module:function"."""
        self.options = options or PoolOptions()
        if self.options.n_workers < 1:
            raise ValueError("a pool needs at least one worker")
        self.counts = PoolCounts()
        self._tasks = dict(tasks)
        self._names = {target: name for name, target in self._tasks.items()}
        self._queue: queue.SimpleQueue[_Task | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._threads: list[threading.Thread] = []
        self._children: dict[int, Child] = {}  # by thread
        self._n_open = 0  # tasks queued or running
        self._is_closed = False
        self._is_killed = False

    @overload  # type: ignore[override]
    def submit(self, fn: str, /, *args: object, timeout_seconds: float | None = None) -> Future[Any]: ...
    @overload
    def submit(self, fn: Callable[..., T], /, *args: object, timeout_seconds: float | None = None) -> Future[T]: ...
    def submit(
        self, fn: Callable[..., Any] | str, /, *args: object, timeout_seconds: float | None = None
    ) -> Future[Any]:
        """Queue a task: a name from the allow-list, or the function that the list names.

        Arguments and result are JSON. `timeout_seconds` replaces the pool's own limit for this task. The future's
        result is what the task returned; its exception is a WorkerError. Raises ValueError for a task that is not
        allowed, FrameError for arguments that are no JSON and RuntimeError after shutdown.
        """
        name = self._name_of(fn)
        request = frames.encode({"task": name, "args": list(args)}, bytes_max=frames.REQUEST_BYTES_MAX)
        timeout = self.options.task_timeout_seconds if timeout_seconds is None else timeout_seconds
        future: Future[Any] = Future()
        with self._lock:
            if self._is_closed:
                raise RuntimeError("the worker pool was shut down")
            self._n_open += 1
            self._queue.put(_Task(future=future, request=request, timeout_seconds=timeout))
            if len(self._threads) < min(self.options.n_workers, self._n_open):
                thread = threading.Thread(target=self._serve, name=f"worker-{len(self._threads)}", daemon=True)
                self._threads.append(thread)
                thread.start()
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more tasks, and end the workers after what is queued.

        With `cancel_futures` what is queued is cancelled, what is running is killed (its future has a
        PoolClosedError), and no process is left after a moment. With `wait` return only when all threads have ended.
        """
        with self._lock:
            first = not self._is_closed
            self._is_closed = True
            if cancel_futures:
                self._is_killed = True
                self._cancel_queued()
                for child in self._children.values():
                    child.kill()
            if first or cancel_futures:
                for _ in self._threads:
                    self._queue.put(None)
        if wait:
            for thread in self._threads:
                thread.join()

    def __exit__(
        self, exc_type: type[BaseException] | None, exc_val: BaseException | None, exc_tb: TracebackType | None
    ) -> None:
        """Finish what is queued; after an exception, kill instead."""
        self.shutdown(wait=True, cancel_futures=exc_type is not None)

    def worker_pids(self) -> tuple[int, ...]:
        """Return the numbers of the child processes that live now."""
        with self._lock:
            return tuple(child.pid for child in self._children.values())

    def _name_of(self, fn: Callable[..., Any] | str) -> str:
        if isinstance(fn, str):
            if fn in self._tasks:
                return fn
            if fn in self._names:
                return self._names[fn]
            raise ValueError(f"{fn!r} is not a task of this pool; it has {', '.join(sorted(self._tasks))}")
        return self._name_of(f"{fn.__module__}:{fn.__qualname__}")

    def _cancel_queued(self) -> None:
        while True:
            try:
                task = self._queue.get_nowait()
            except queue.Empty:
                return
            if task is not None:
                self._n_open -= 1
                task.future.cancel()
                task.future.set_running_or_notify_cancel()

    def _serve(self) -> None:
        """Own one worker: the body of its thread."""
        child: Child | None = None
        n_tasks = 0
        while True:
            try:
                task = self._queue.get(timeout=self.options.idle_seconds if child else None)
            except queue.Empty:
                self._let_go(child)
                child = None
                continue
            if task is None:
                self._let_go(child)
                return
            if not task.future.set_running_or_notify_cancel():
                self._close_task()
                continue
            if child is not None and (n_tasks >= self.options.tasks_max or not child.is_alive()):
                self._let_go(child)
                child = None
            if child is None:
                n_tasks = 0
            n_tasks += 1
            child = self._run(child, task)

    def _run(self, child: Child | None, task: _Task) -> Child | None:
        """Run one task; return the child when it is fit for another one, else None."""
        try:
            if child is None:
                child = self._start()
            result = _result_of(child.ask(task.request, timeout_seconds=task.timeout_seconds))
        except Exception as error:  # noqa: BLE001 - supervisor of one task: the future carries whatever it was
            outcome = self._account(error)
            # A worker ends by itself after an error that may have left it in a bad state.
            is_fit = isinstance(error, TaskFailedError) and error.problem.kind not in _SPOILING
            if not is_fit:
                self._let_go(child, kill=not isinstance(error, TaskFailedError))
                child = None
            self._close_task()
            task.future.set_exception(outcome)
        else:
            self.counts.n_results += 1
            self._close_task()
            task.future.set_result(result)
        return child

    def _account(self, error: Exception) -> Exception:
        """Count what went wrong, and return what the future is to carry."""
        if isinstance(error, TaskFailedError):
            self.counts.n_problems += 1
            return error
        if self._is_killed:
            return PoolClosedError("the daemon is stopping")
        if isinstance(error, ChildTimeoutError):
            self.counts.n_timeouts += 1
            return TaskTimeoutError(str(error))
        self.counts.n_crashes += 1
        return WorkerCrashedError(str(error)) if isinstance(error, ChildError | frames.FrameError) else error

    def _close_task(self) -> None:
        with self._lock:
            self._n_open -= 1

    def _start(self) -> Child:
        settings = {
            "limits": asdict(self.options.limits),
            "parent_pid": os.getpid(),
            "result_bytes_max": self.options.result_bytes_max,
            "tasks": self._tasks,
            "import_paths": import_paths(),
        }
        with self._lock:
            if self._is_killed:
                raise ChildError("the pool is shut down")
            child = Child(
                [sys.executable, "-I", "-B", "-c", _BOOT, json.dumps(settings)],
                environment=worker_environment(os.environ),
                result_bytes_max=self.options.result_bytes_max,
            )
            self._children[threading.get_ident()] = child
            self.counts.n_started += 1
        try:
            child.wait_ready(timeout_seconds=self.options.start_timeout_seconds)
        except BaseException:
            self._let_go(child, kill=True)
            raise
        return child

    def _let_go(self, child: Child | None, *, kill: bool = False) -> None:
        if child is None:
            return
        with self._lock:
            self._children.pop(threading.get_ident(), None)
        child.close(timeout_seconds=0.0 if kill else _STOP_SECONDS)


# -B: under a limit on file size the interpreter could leave a bytecode file that is cut off, and spoil later starts.
# -I leaves out the current directory, PYTHONPATH and the user's own packages; what the parent itself imports from is
# handed over by name instead, behind the installation's own paths.
_BOOT = """\
import json, sys
settings = json.loads(sys.argv[1])
sys.path += [p for p in settings["import_paths"] if p not in sys.path]
from monitor.measure.worker_main import main
sys.exit(main(settings))
"""

_PASSED_ON = frozenset(
    {
        "CKPTWATCH_COMPILE_CACHE",
        "HOME",
        "LD_LIBRARY_PATH",
        "NUMBA_CACHE_DIR",
        "NUMBA_CPU_NAME",
        "PATH",
        "TMPDIR",
        "TZ",
        "XDG_CACHE_HOME",
    }
)


def worker_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of a worker: a few names of the parent's, one thread, no GPU, no HDF5 locks."""
    kept = {name: value for name, value in environment.items() if name in _PASSED_ON}
    return kept | {
        "CUDA_VISIBLE_DEVICES": "",
        "HDF5_USE_FILE_LOCKING": "FALSE",
        "LANG": "C.UTF-8",
        # Else glibc keeps what it frees below 32 MiB: an unpacked chunk for every thread of the library that unpacks.
        "MALLOC_MMAP_THRESHOLD_": str(4 * 2**20),
        "MKL_NUM_THREADS": "1",
        "NUMBA_NUM_THREADS": "1",
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
    }


def import_paths() -> list[str]:
    """Return the absolute directories that this process imports from, ckptwatch's own first."""
    own = str(Path(__file__).resolve().parents[2])
    return list(dict.fromkeys([own, *(p for p in sys.path if os.path.isabs(p))]))


def _result_of(reply: dict[str, Any]) -> Any:
    if set(reply) == {"result"}:
        return reply["result"]
    problem = reply.get("problem")
    if set(reply) != {"problem"} or not isinstance(problem, dict):
        raise frames.FrameError("a reply that is neither a result nor a problem")
    kind, message = problem.get("kind"), problem.get("message")
    if not isinstance(kind, str) or kind not in set(ProblemKind) or not isinstance(message, str):
        raise frames.FrameError("a problem without a known kind")
    printable = "".join(c if c.isprintable() else " " for c in message[:500])
    raise TaskFailedError(printable, kind=ProblemKind(kind))
