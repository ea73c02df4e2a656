from __future__ import annotations

import os
import signal
import struct
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Future
from pathlib import Path
from typing import Any

import pytest

from monitor.measure import frames
from monitor.measure.confinement import WorkerLimits
from monitor.measure.tasks import TASKS as REAL_TASKS
from monitor.measure.tasks import ping
from monitor.measure.workers import (
    PoolClosedError,
    PoolOptions,
    TaskFailedError,
    TaskTimeoutError,
    WorkerCrashedError,
    WorkerError,
    WorkerPool,
    worker_environment,
)
from storage.records import ProblemKind
from tests.support.worker_tasks import TASKS

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def pool() -> Iterator[WorkerPool]:
    with WorkerPool(PoolOptions(result_bytes_max=100_000), tasks=TASKS) as made:
        yield made


def failure(future: Future[Any]) -> WorkerError:
    error = future.exception(timeout=60)
    assert isinstance(error, WorkerError)
    return error


def eventually(condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.02)
    return False


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in {"Z", "X"}
    except OSError:
        return False


def test_a_task_is_answered_by_a_process_of_its_own_that_is_used_again(pool: WorkerPool) -> None:
    first = pool.submit("ping", {"n": 1}).result(timeout=60)
    second = pool.submit(ping, {"n": 2}).result(timeout=60)
    assert first["echo"] == {"n": 1}
    assert second["echo"] == {"n": 2}
    assert first["pid"] == second["pid"] != os.getpid()
    assert pool.worker_pids() == (first["pid"],)


def test_no_process_is_started_before_the_first_task() -> None:
    with WorkerPool(tasks=TASKS) as pool:
        assert pool.worker_pids() == ()
        assert pool.counts.n_started == 0


def test_two_workers_run_two_tasks_at_once() -> None:
    with WorkerPool(PoolOptions(n_workers=2), tasks=TASKS) as pool:
        slow = pool.submit("sleep", 60)
        assert pool.submit("ping", {}).result(timeout=60)["pid"]
        assert not slow.done()
        pool.shutdown(cancel_futures=True)


def test_many_tasks_all_come_back_in_their_own_futures() -> None:
    with WorkerPool(PoolOptions(n_workers=2, tasks_max=7), tasks=TASKS) as pool:
        futures = [pool.submit("ping", n) for n in range(40)]
        assert [f.result(timeout=60)["echo"] for f in futures] == list(range(40))


def test_a_task_that_is_not_on_the_list_is_refused(pool: WorkerPool) -> None:
    for name in ("os:system", "measure", "tests.support.worker_tasks:facts_of"):
        with pytest.raises(ValueError, match="not a task"):
            pool.submit(name, "true")
    with pytest.raises(ValueError, match="not a task"):
        pool.submit(os.getcwd)
    assert pool.counts.n_started == 0


def test_arguments_that_are_no_json_are_refused_at_once(pool: WorkerPool) -> None:
    for argument in (float("nan"), object(), b"bytes", {1: object()}):
        with pytest.raises(frames.FrameError):
            pool.submit("ping", argument)


def test_a_worker_is_confined(pool: WorkerPool) -> None:
    facts = pool.submit("facts").result(timeout=60)
    assert facts["nice"] == 19
    assert facts["oom_score_adj"] == 1000
    assert facts["death_signal"] == signal.SIGKILL
    assert facts["no_new_privs"] == 1
    assert facts["io_class"] == 3
    assert facts["cwd"] == "/"
    assert facts["isolated"] == 1
    limits = WorkerLimits()
    assert facts["limits"] == {
        "RLIMIT_AS": limits.memory_bytes_max,
        "RLIMIT_CORE": 0,
        "RLIMIT_FSIZE": limits.file_bytes_max,
        "RLIMIT_NOFILE": limits.open_files_max,
    }


def test_a_worker_sees_no_secret_of_the_environment_and_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLACK_WEBHOOK", "https://hooks.example/secret")
    monkeypatch.setenv("PYTHONPATH", "/somewhere")
    with WorkerPool(tasks=TASKS) as pool:
        environment = pool.submit("facts").result(timeout=60)["environment"]
    assert "secret" not in str(environment)
    assert "PYTHONPATH" not in environment
    assert environment["CUDA_VISIBLE_DEVICES"] == ""
    assert environment["OMP_NUM_THREADS"] == "1"
    assert environment["HDF5_USE_FILE_LOCKING"] == "FALSE"


def test_the_compile_cache_of_the_user_is_passed_on() -> None:
    places = {"HOME": "/home/u", "XDG_CACHE_HOME": "/c", "NUMBA_CACHE_DIR": "/n", "CKPTWATCH_COMPILE_CACHE": "/k"}
    kept = worker_environment(places | {"TOKEN": "t"})
    assert places.items() < kept.items()
    assert "TOKEN" not in kept


@pytest.mark.parametrize(
    ("task", "expected"), [("abort", "SIGABRT"), ("crash_by_null", "SIGSEGV"), ("exit_quietly", "status 0")]
)
def test_a_crash_costs_one_task_and_the_next_one_gets_a_fresh_process(
    pool: WorkerPool, task: str, expected: str
) -> None:
    before = pool.submit("ping", {}).result(timeout=60)["pid"]
    error = failure(pool.submit(task))
    assert isinstance(error, WorkerCrashedError)
    assert error.problem.kind is ProblemKind.WORKER_CRASHED
    assert expected in error.problem.message
    assert pool.submit("ping", {}).result(timeout=60)["pid"] != before
    assert pool.counts.n_crashes == 1
    assert not is_running(before)


def test_a_task_that_takes_too_long_is_stopped(pool: WorkerPool) -> None:
    pid = pool.submit("ping", {}).result(timeout=60)["pid"]
    error = failure(pool.submit("sleep", 600, timeout_seconds=0.2))
    assert isinstance(error, TaskTimeoutError)
    assert error.problem.kind is ProblemKind.TIMEOUT
    assert "0.2 s" in error.problem.message
    assert not is_running(pid)
    assert pool.submit("ping", {}).result(timeout=60)["pid"] != pid


def test_a_task_that_uses_up_its_cpu_time_is_stopped_by_the_kernel() -> None:
    with WorkerPool(PoolOptions(limits=WorkerLimits(cpu_seconds_max=0)), tasks=TASKS) as pool:
        error = failure(pool.submit("spin"))
    assert error.problem.kind is ProblemKind.TIMEOUT
    assert "CPU" in error.problem.message


def test_memory_over_the_limit_is_a_limit_problem_and_the_worker_is_replaced() -> None:
    limits = WorkerLimits(memory_bytes_max=2**31)
    with WorkerPool(PoolOptions(limits=limits), tasks=TASKS) as pool:
        pid = pool.submit("ping", {}).result(timeout=60)["pid"]
        error = failure(pool.submit("allocate", 2**31))
        assert isinstance(error, TaskFailedError)
        assert error.problem.kind is ProblemKind.LIMIT
        assert pool.submit("ping", {}).result(timeout=60)["pid"] != pid


def test_a_file_over_the_limit_cannot_be_written(tmp_path: Path) -> None:
    with WorkerPool(PoolOptions(limits=WorkerLimits(file_bytes_max=1000)), tasks=TASKS) as pool:
        assert pool.submit("write_file", str(tmp_path / "small"), 1000).result(timeout=60) == 1000
        failure(pool.submit("write_file", str(tmp_path / "large"), 100_000))
    assert (tmp_path / "large").stat().st_size <= 1000


def test_a_read_error_keeps_its_kind_and_becomes_one_printable_line(pool: WorkerPool) -> None:
    pid = pool.submit("ping", {}).result(timeout=60)["pid"]
    error = failure(pool.submit("incomplete"))
    assert error.problem.kind is ProblemKind.INCOMPLETE
    assert error.problem.message == "no end of the directory [31m yet"
    assert pool.submit("ping", {}).result(timeout=60)["pid"] == pid  # the file's fault, not the worker's


def test_an_unexpected_exception_names_its_class_and_replaces_the_worker(pool: WorkerPool) -> None:
    pid = pool.submit("ping", {}).result(timeout=60)["pid"]
    error = failure(pool.submit("raise_error", "first\nsecond " + "x" * 2000))
    assert isinstance(error, TaskFailedError)
    assert error.problem.kind is ProblemKind.WORKER_CRASHED
    assert error.problem.message.startswith("RuntimeError: first second")
    assert len(error.problem.message) <= 500
    assert pool.submit("ping", {}).result(timeout=60)["pid"] != pid


def test_what_a_library_prints_does_not_disturb_the_frames(pool: WorkerPool) -> None:
    assert pool.submit("noise").result(timeout=60) == ""
    assert pool.submit("ping", {"a": 1}).result(timeout=60)["echo"] == {"a": 1}


def test_a_result_over_the_limit_is_a_problem_not_a_crash(pool: WorkerPool) -> None:
    assert len(pool.submit("big", 50_000).result(timeout=60)) == 50_000
    error = failure(pool.submit("big", 200_000))
    assert error.problem.kind is ProblemKind.LIMIT


def test_a_result_that_is_not_finite_is_refused_by_the_worker(pool: WorkerPool) -> None:
    assert failure(pool.submit("not_a_number")).problem.kind is ProblemKind.LIMIT


def frame(body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + body


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"\xff\xff\xff\xff", id="four gigabytes announced"),
        pytest.param(frame(b"\x80\x04cos\nsystem\n(S'true'\ntR."), id="a pickle"),
        pytest.param(frame(b"[1, 2]"), id="no object"),
        pytest.param(frame(b'{"result": NaN}'), id="not a number"),
        pytest.param(frame(b'{"result": 1, "problem": null}'), id="two answers"),
        pytest.param(frame(b'{"problem": {"kind": "harmless", "message": "m"}}'), id="unknown kind"),
        pytest.param(frame(b'{"problem": {"kind": ["incomplete"], "message": "m"}}'), id="kind is a list"),
        pytest.param(frame(b'{"problem": {"kind": "incomplete", "message": 5}}'), id="message is a number"),
        pytest.param(frame(b"\xff\xfe"), id="no text"),
        pytest.param(frame(b"[" * 90_000), id="nested too deep"),
        pytest.param(frame(b'{"result": ' + b"9" * 50_000 + b"}"), id="a number too long"),
        pytest.param(frame(b'{"result": 1}') + b"more", id="bytes after the end"),
    ],
)
def test_a_worker_that_sends_nonsense_is_killed_and_the_pool_goes_on(pool: WorkerPool, data: bytes) -> None:
    pid = pool.submit("ping", {}).result(timeout=60)["pid"]
    error = failure(pool.submit("write_raw", data.hex()))
    assert isinstance(error, WorkerCrashedError)
    assert not is_running(pid)
    assert pool.submit("ping", {"a": 1}).result(timeout=60)["echo"] == {"a": 1}


def test_control_characters_in_a_hostile_message_do_not_reach_a_terminal(pool: WorkerPool) -> None:
    data = frame(b'{"problem": {"kind": "corrupt", "message": "a\\u001b[2Jb\\n' + b"x" * 900 + b'"}}')
    error = failure(pool.submit("write_raw", data.hex()))
    assert error.problem.kind is ProblemKind.CORRUPT
    assert error.problem.message.isprintable()
    assert len(error.problem.message) <= 500


def test_a_worker_is_replaced_after_its_share_of_tasks() -> None:
    with WorkerPool(PoolOptions(tasks_max=2), tasks=TASKS) as pool:
        pids = [pool.submit("ping", {}).result(timeout=60)["pid"] for _ in range(5)]
    assert pids[0] == pids[1]
    assert pids[2] == pids[3]
    assert len(set(pids)) == 3


def test_an_idle_worker_is_let_go_and_a_new_one_starts_when_needed() -> None:
    with WorkerPool(PoolOptions(idle_seconds=0.1), tasks=TASKS) as pool:
        pid = pool.submit("ping", {}).result(timeout=60)["pid"]
        assert eventually(lambda: pool.worker_pids() == () and not is_running(pid))
        assert pool.submit("ping", {}).result(timeout=60)["pid"] != pid


def test_shutdown_finishes_what_is_queued() -> None:
    pool = WorkerPool(tasks=TASKS)
    futures = [pool.submit("ping", n) for n in range(5)]
    pool.shutdown(wait=True)
    assert [f.result()["echo"] for f in futures] == list(range(5))
    assert pool.worker_pids() == ()
    with pytest.raises(RuntimeError, match="shut down"):
        pool.submit("ping", 1)


def test_shutdown_with_cancelling_kills_what_runs_and_cancels_what_waits() -> None:
    pool = WorkerPool(tasks=TASKS)
    pid = pool.submit("ping", {}).result(timeout=60)["pid"]
    running, waiting = pool.submit("sleep", 600), pool.submit("ping", {})
    assert eventually(running.running)
    pool.shutdown(wait=True, cancel_futures=True)
    assert isinstance(running.exception(), PoolClosedError)
    with pytest.raises(CancelledError):
        waiting.result()
    assert not is_running(pid)


def test_shutdown_can_follow_a_shutdown_and_still_cancel() -> None:
    pool = WorkerPool(tasks=TASKS)
    running = pool.submit("sleep", 600)
    assert eventually(running.running)
    pool.shutdown(wait=False)
    pool.shutdown(wait=True, cancel_futures=True)
    assert isinstance(running.exception(), PoolClosedError)
    pool.shutdown()


def test_a_waiting_task_can_be_cancelled_and_never_runs(tmp_path: Path) -> None:
    with WorkerPool(tasks=TASKS) as pool:
        running = pool.submit("sleep", 0.3)
        waiting = pool.submit("write_file", str(tmp_path / "f"), 1)
        assert waiting.cancel()
        running.result(timeout=60)
        pool.submit("ping", {}).result(timeout=60)
    assert not (tmp_path / "f").exists()


def test_a_worker_that_was_killed_while_idle_is_replaced_without_costing_a_task(pool: WorkerPool) -> None:
    pid = pool.submit("ping", {}).result(timeout=60)["pid"]
    os.kill(pid, signal.SIGKILL)
    assert eventually(lambda: not is_running(pid))
    assert pool.submit("ping", {}).result(timeout=60)["pid"] != pid
    assert pool.counts.n_crashes == 0


def test_a_worker_killed_in_the_middle_says_that_memory_may_be_the_reason(pool: WorkerPool) -> None:
    pid = pool.submit("ping", {}).result(timeout=60)["pid"]
    running = pool.submit("sleep", 600)
    assert eventually(running.running)
    os.kill(pid, signal.SIGKILL)
    assert "SIGKILL, perhaps by the kernel for want of memory" in failure(running).problem.message


def test_a_worker_that_cannot_start_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/nonexistent/python")
    with WorkerPool(tasks=TASKS) as pool:
        error = failure(pool.submit("ping", {}))
    assert isinstance(error, WorkerCrashedError)
    assert "cannot be started" in error.problem.message


def test_workers_die_with_the_daemon() -> None:
    script = textwrap.dedent("""
        import sys, time
        from monitor.measure.workers import WorkerPool
        from tests.support.worker_tasks import TASKS
        pool = WorkerPool(tasks=TASKS)
        pool.submit("ping", {}).result()
        pool.submit("sleep", 600)
        print(*pool.worker_pids(), flush=True)
        time.sleep(600)
    """)
    with subprocess.Popen([sys.executable, "-c", script], cwd=ROOT, stdout=subprocess.PIPE, text=True) as daemon:
        assert daemon.stdout is not None
        pid = int(daemon.stdout.readline())
        assert is_running(pid)
        daemon.kill()
        daemon.wait()
    assert eventually(lambda: not is_running(pid))


def test_a_process_that_forgets_to_shut_its_pool_down_still_ends() -> None:
    script = "from monitor.measure.workers import WorkerPool; print(WorkerPool().submit('ping', {}).result()['pid'])"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    )
    assert eventually(lambda: not is_running(int(done.stdout)))


def test_the_daemons_side_imports_no_compiler_and_no_framework() -> None:
    script = "import sys, monitor.measure.workers; print(sorted({'numba', 'torch', 'h5py'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_no_thread_and_no_descriptor_is_left_behind() -> None:
    def descriptors() -> int:
        return len(os.listdir("/proc/self/fd"))

    threads, before = threading.active_count(), descriptors()
    for _ in range(3):
        with WorkerPool(PoolOptions(n_workers=2), tasks=TASKS) as pool:
            pool.submit("ping", {}).result(timeout=60)
            failure(pool.submit("abort"))
    assert threading.active_count() == threads
    assert descriptors() == before


def test_every_real_task_can_be_resolved() -> None:
    with WorkerPool() as pool:
        for name, target in REAL_TASKS.items():
            assert pool._name_of(target) == name
        assert pool.submit("ping", {"a": [1, None, "ü"]}).result(timeout=60)["echo"] == {"a": [1, None, "ü"]}


def test_measuring_a_file_that_is_gone_says_so(tmp_path: Path) -> None:
    with WorkerPool() as pool:
        error = failure(pool.submit("measure", {"path": str(tmp_path / "gone.pt")}))
    assert error.problem.kind is ProblemKind.VANISHED


def test_measuring_refuses_what_it_does_not_know(tmp_path: Path) -> None:
    with WorkerPool() as pool:
        error = failure(pool.submit("measure", {"path": str(tmp_path / "a.pt"), "surprise": 1}))
    assert "surprise" in error.problem.message
