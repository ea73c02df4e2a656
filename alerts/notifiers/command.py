"""The notifier `command`: runs one fixed program for each message, for instance to stop or requeue a job.

Off unless it is configured with `enabled: true`. The argument list comes from the configuration alone and no shell is
involved: what an alert says reaches the program on standard input only, as the webhook's JSON document. The program
gets a small environment without the daemon's secrets, and a time limit.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import tempfile
import time
from typing import Annotated, ClassVar, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from alerts.document import document
from alerts.notifier import SEND_SECONDS_MAX, DeliveryError, Message, printable
from storage.records import Notification

ARGUMENTS_MAX = 100
OUTPUT_SHOWN_BYTES = 2048
SHOWN_CHARACTERS_MAX = 200
PASSED_ON = ("PATH", "HOME", "LANG", "LC_ALL", "TZ", "USER", "LOGNAME", "TMPDIR")
TEMPORARY_STATUS = 75  # EX_TEMPFAIL of sysexits.h: try again


class CommandNotifier:
    """Run the program once a message; its exit status says whether it was taken."""

    kind: ClassVar[str] = "command"
    joins: ClassVar[bool] = False

    class Config(BaseModel):
        """`argv` is the program, by absolute path, with its arguments; `environment` is added to what it gets."""

        model_config = ConfigDict(extra="forbid", frozen=True)

        enabled: bool = False
        argv: Annotated[tuple[str, ...], Field(min_length=1, max_length=ARGUMENTS_MAX)]
        environment: dict[str, str] = Field(default_factory=dict, max_length=50)
        timeout_seconds: float = Field(default=SEND_SECONDS_MAX, gt=0, le=60)

        @field_validator("argv")
        @classmethod
        def _check_program(cls, value: tuple[str, ...]) -> tuple[str, ...]:
            if not os.path.isabs(value[0]):
                raise ValueError("the program must be an absolute path")
            if any("\0" in part for part in value):
                raise ValueError("arguments must not hold NUL")
            return value

        @model_validator(mode="after")
        def _check_enabled(self) -> Self:
            if not self.enabled:
                raise ValueError("running a program is off by default; set enabled: true if you mean it")
            return self

    def __init__(self, config: Config) -> None:
        self._config = config

    def send(self, notification: Notification, content: Message) -> None:
        """Run the program; raise DeliveryError unless it ends with status 0 in time.

        Status 75 and a program that takes too long or cannot be started are tried again; any other status is final.
        """
        alert = notification.alert
        kept = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
        facts = {
            "CKPTWATCH_REASON": notification.reason,
            "CKPTWATCH_RULE": alert.rule,
            "CKPTWATCH_SEVERITY": alert.severity.label,
            "CKPTWATCH_FINGERPRINT": alert.fingerprint,
            "CKPTWATCH_DEDUPLICATION_KEY": notification.deduplication_key,
        }
        stdin = json.dumps(document(notification, content), allow_nan=False).encode("ascii")
        status, output = _run(
            self._config.argv, stdin, {**kept, **facts, **self._config.environment}, self._config.timeout_seconds
        )
        if status == 0:
            return
        said = printable(output.decode("utf-8", "replace"), SHOWN_CHARACTERS_MAX)
        how = f"was ended by signal {-status}" if status < 0 else f"ended with status {status}"
        raise DeliveryError(
            f"the command {how}" + (f": {said}" if said else ""), permanent=status not in (TEMPORARY_STATUS,)
        )


def _run(argv: tuple[str, ...], stdin: bytes, environment: dict[str, str], timeout: float) -> tuple[int, bytes]:
    """Run a program in a session of its own and return its status and the end of its output.

    Both standard streams are files: no pipe can fill up, and a grandchild that keeps one open delays nothing.
    """
    with tempfile.TemporaryFile() as given, tempfile.TemporaryFile() as said:
        given.write(stdin)
        given.seek(0)
        try:
            process = subprocess.Popen(  # noqa: S603 - the operator's own argument list
                argv, stdin=given, stdout=said, stderr=said, env=environment, cwd="/", start_new_session=True
            )
        except OSError as error:
            raise DeliveryError(f"the command cannot be started: {error.strerror}") from None
        deadline = time.monotonic() + timeout
        try:
            status = process.wait(max(deadline - time.monotonic(), 0.0))
        except subprocess.TimeoutExpired:
            raise DeliveryError(f"the command did not end within {timeout:g} s and was ended") from None
        finally:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)  # with everything that it started and left behind
            process.wait()
        size = said.seek(0, os.SEEK_END)
        said.seek(max(size - OUTPUT_SHOWN_BYTES, 0))
        return status, said.read(OUTPUT_SHOWN_BYTES)
