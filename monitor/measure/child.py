"""One child process and its pipes, seen from the parent: start, ask, time limits, end. Knows frames, not tasks."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from monitor.measure import frames

_READ_BYTES = 1 << 20
_STDERR_BYTES_MAX = 8192
_LINE_CHARACTERS_MAX = 300
_KILL_SECONDS = 5.0


class ChildError(Exception):
    """The child could not be started, died, or sent something that is no frame; the message says which."""


class ChildTimeoutError(Exception):
    """The child did not answer in time, or used up its CPU time."""


class Child:
    """A process that takes one request frame at a time and answers each with one frame."""

    def __init__(
        self,
        command: Sequence[str],
        *,
        environment: Mapping[str, str],
        result_bytes_max: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Start the process; raise ChildError when the system cannot."""
        try:
            self._process = subprocess.Popen(  # noqa: S603 - our own interpreter with our own arguments
                list(command),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                bufsize=0,
                close_fds=True,
                cwd="/",
                env=dict(environment),
            )
        except OSError as error:
            raise ChildError(f"a worker process cannot be started: {error.strerror or error}") from error
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        assert self._process.stderr is not None
        self._stdin = self._process.stdin.fileno()
        self._stdout = self._process.stdout.fileno()
        self._stderr = self._process.stderr.fileno()
        for descriptor in (self._stdin, self._stdout, self._stderr):
            os.set_blocking(descriptor, False)
        self._result_bytes_max = result_bytes_max
        self._clock = clock
        self._tail = bytearray()

    @property
    def pid(self) -> int:
        """Return the number of the process."""
        return self._process.pid

    def is_alive(self) -> bool:
        """Say whether the process has not ended yet."""
        return self._process.poll() is None

    def wait_ready(self, *, timeout_seconds: float) -> None:
        """Wait for the first frame, which says that the child is ready; raise ChildError when it is anything else."""
        if "ready" not in self._exchange(b"", timeout_seconds, "start"):
            raise ChildError("the worker did not say that it is ready")

    def ask(self, request: bytes, *, timeout_seconds: float) -> dict[str, Any]:
        """Send one request frame and return the answer.

        Raises ChildTimeoutError, ChildError, or FrameError when the answer is no frame; after any of them the child
        must be closed.
        """
        if _is_readable(self._stdout):
            raise frames.FrameError("the worker sent something without being asked")
        return self._exchange(request, timeout_seconds, "answer")

    def kill(self) -> None:
        """End the process at once, from any thread; whoever waits for its answer gets a ChildError."""
        with contextlib.suppress(OSError):
            self._process.kill()

    def close(self, *, timeout_seconds: float) -> None:
        """Ask the process to end by closing its input, kill it after `timeout_seconds`, and free its pipes.

        A process that hangs in the kernel (a dead file server) cannot be killed; it is left behind after a moment.
        """
        assert self._process.stdin is not None
        self._process.stdin.close()
        if timeout_seconds <= 0:
            self._process.kill()
        try:
            self._process.wait(timeout=max(timeout_seconds, 0.001))
        except subprocess.TimeoutExpired:
            self._process.kill()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(timeout=_KILL_SECONDS)
        for pipe in (self._process.stdout, self._process.stderr):
            assert pipe is not None
            pipe.close()

    def _exchange(self, request: bytes, timeout_seconds: float, aim: str) -> dict[str, Any]:
        deadline = self._clock() + timeout_seconds
        unsent = memoryview(request)
        received = bytearray()
        expected: int | None = None
        poll = select.poll()
        poll.register(self._stdout, select.POLLIN)
        poll.register(self._stderr, select.POLLIN)
        if unsent:
            poll.register(self._stdin, select.POLLOUT)
        while expected is None or len(received) < expected:
            left = deadline - self._clock()
            if left <= 0:
                raise ChildTimeoutError(f"the worker did not {aim} within {timeout_seconds:g} s and was stopped")
            ready = dict(poll.poll(min(left, 3600.0) * 1000 + 1))
            if self._stderr in ready and not self._read_errors():
                poll.unregister(self._stderr)
            if self._stdin in ready:
                unsent = self._write(unsent)
                if not unsent:
                    poll.unregister(self._stdin)
            if self._stdout in ready:
                data = os.read(self._stdout, _READ_BYTES)
                if not data:
                    self._raise_death()
                received += data
            if expected is None and len(received) >= frames.HEADER.size:
                n_bytes = frames.length(bytes(received[: frames.HEADER.size]), bytes_max=self._result_bytes_max)
                expected = frames.HEADER.size + n_bytes
        if len(received) != expected:
            raise frames.FrameError(f"{len(received) - expected} bytes after the end of the worker's answer")
        return frames.decode(received[frames.HEADER.size :])

    def _write(self, unsent: memoryview) -> memoryview:
        try:
            return unsent[os.write(self._stdin, unsent[:65536]) :]
        except BlockingIOError:
            return unsent
        except BrokenPipeError:
            return unsent[:0]  # the end of its output says more

    def _read_errors(self) -> bool:
        try:
            data = os.read(self._stderr, _STDERR_BYTES_MAX)
        except BlockingIOError:
            return True
        self._tail += data
        del self._tail[:-_STDERR_BYTES_MAX]
        return bool(data)

    def _raise_death(self) -> None:
        try:
            status = self._process.wait(timeout=5.0)
        except subprocess.TimeoutExpired:
            raise ChildError("the worker closed its output without an answer") from None
        while _is_readable(self._stderr) and self._read_errors():
            pass
        if status == -signal.SIGXCPU:
            raise ChildTimeoutError("the worker used up its CPU time and was stopped")
        raise ChildError(f"the worker {_end(status)}{_last_line(bytes(self._tail))}")


def _is_readable(descriptor: int) -> bool:
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(0))


def _end(status: int) -> str:
    if status >= 0:
        return f"ended with status {status}"
    try:
        name = signal.Signals(-status).name
    except ValueError:
        name = f"signal {-status}"
    hint = ", perhaps by the kernel for want of memory" if name == "SIGKILL" else ""
    return f"was ended by {name}{hint}"


def _last_line(errors: bytes) -> str:
    lines = [line.strip() for line in errors.decode("utf-8", "replace").splitlines() if line.strip()]
    if not lines:
        return ""
    printable = "".join(c if c.isprintable() else " " for c in lines[-1])
    return f": {printable[:_LINE_CHARACTERS_MAX]}"
