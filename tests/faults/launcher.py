"""Start many daemons fast: the program is imported once, and each daemon is a fork of that process.

Run as a child by `Launcher`: it takes lines of JSON `{"id", "config", "log", "failpoints", "files_max"}` on standard
input, forks for each a process that does what `ckptwatch run --config FILE` does, and writes `{"id", "pid"}` and at
its end `{"id", "status"}` (negative: the signal) on standard output. `files_max` limits open files, 0 does not.
"""

from __future__ import annotations

import json
import os
import queue
import resource
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.support.daemons import REPOSITORY, clean_environment


class Running:
    """One daemon: its process, and its exit status once it has ended."""

    def __init__(self, launcher: Launcher, number: int, log: Path) -> None:
        self.log_file = log
        self._launcher = launcher
        self._number = number
        self.pid = 0
        self.status: int | None = None

    def kill(self, how: signal.Signals = signal.SIGKILL) -> int:
        """Send a signal and return the exit status."""
        if self.status is None:
            with suppress(ProcessLookupError):  # it was faster
                os.kill(self.pid, how)
        return self.wait()

    def wait(self, seconds: float = 120.0) -> int:
        """Return the exit status; fail when the daemon does not end."""
        self._launcher.follow(lambda: self.status is not None, seconds, f"the end of process {self.pid}")
        assert self.status is not None
        return self.status

    def is_over_within(self, seconds: float) -> bool:
        """Wait at most so long for the end."""
        self._launcher.follow(lambda: self.status is not None, seconds, None)
        return self.status is not None

    @property
    def log(self) -> str:
        return self.log_file.read_text(errors="replace")


class Launcher:
    """The process that forks daemons; use it as a context."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._running: dict[int, Running] = {}
        self._answers: queue.SimpleQueue[dict[str, int] | None] = queue.SimpleQueue()

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.launcher"],
            cwd=REPOSITORY,
            env=clean_environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        self._thread = threading.Thread(target=self._take, daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for running in self._running.values():
            if running.status is None and running.pid:
                with suppress(ProcessLookupError):
                    os.kill(running.pid, signal.SIGKILL)
        assert self._process is not None
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(60)
        self._thread.join()  # it has read to the end
        assert self._process.stdout is not None
        self._process.stdout.close()

    def start(self, config: Path, log: Path, *, failpoints: str = "", files_max: int = 0) -> Running:
        """Start `ckptwatch run --config CONFIG`; its messages are added to `log`."""
        number = len(self._running)
        running = self._running[number] = Running(self, number, log)
        order = {"id": number, "config": str(config), "log": str(log), "failpoints": failpoints, "files_max": files_max}
        assert self._process is not None
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(order).encode() + b"\n")
        self._process.stdin.flush()
        self.follow(lambda: running.pid > 0, 120.0, "a fork")
        return running

    def follow(self, is_done: Any, seconds: float, what: str | None) -> None:
        """Take the launcher's news until `is_done`; fail after `seconds` where `what` says for what was waited."""
        deadline = time.monotonic() + seconds
        while not is_done():
            left = deadline - time.monotonic()
            if left <= 0:
                assert what is None, f"waited {seconds:.0f} s for {what}"
                return
            try:
                news = self._answers.get(timeout=min(left, 1.0))
            except queue.Empty:
                continue
            assert news is not None, "the launcher ended"
            running = self._running[news["id"]]
            running.pid = news.get("pid", running.pid)
            running.status = news.get("status", running.status)

    def _take(self) -> None:
        assert self._process is not None
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._answers.put(json.loads(line))
        self._answers.put(None)


def _daemon(order: dict[str, Any]) -> None:
    """Become the daemon: the body of the forked process."""
    from monitor import cli
    from storage import failpoints

    log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for target, source in ((0, nothing), (1, log), (2, log)):
        os.dup2(source, target)
    if order["files_max"]:
        resource.setrlimit(resource.RLIMIT_NOFILE, (order["files_max"], order["files_max"]))
    os.environ[failpoints.ENVIRONMENT_NAME] = order["failpoints"]
    failpoints._armed = failpoints._from_environment()  # read at import, which was before the fork
    sys.argv = ["ckptwatch", "run", "--config", order["config"]]
    cli.main()


def main() -> None:
    import monitor.cli
    import monitor.commands.run

    assert monitor.cli.COMMANDS["run"] == f"{monitor.commands.run.__name__}:run"
    output = sys.stdout.buffer
    lock = threading.Lock()

    def say(**news: int) -> None:
        with lock:
            output.write(json.dumps(news).encode() + b"\n")
            output.flush()

    def reap(number: int, pid: int) -> None:
        say(id=number, status=os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))

    for line in sys.stdin.buffer:
        order = json.loads(line)
        with lock:
            pid = os.fork()
        if pid == 0:
            status = 1
            try:
                _daemon(order)
                status = 0
            except SystemExit as error:
                status = error.code if isinstance(error.code, int) else int(bool(error.code))
            finally:
                sys.stderr.flush()
                os._exit(status)
        say(id=order["id"], pid=pid)
        threading.Thread(target=reap, args=(order["id"], pid), daemon=True).start()


if __name__ == "__main__":
    main()
