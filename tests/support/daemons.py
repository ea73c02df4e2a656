"""A real `ckptwatch run` in a process of its own, and what can be asked of it from outside."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self, TypeVar
from urllib.parse import quote

import yaml
from prometheus_client.parser import text_string_to_metric_families

REPOSITORY = Path(__file__).resolve().parents[2]
DEADLINE_SECONDS = 60.0  # how long a loaded machine may take; a test that passes never waits for it

T = TypeVar("T")


def wait_for(what: str, probe: Callable[[], T | None], seconds: float = DEADLINE_SECONDS) -> T:
    """Ask `probe` until its answer is true and return it; fail after `seconds`."""
    deadline = time.monotonic() + seconds
    while True:
        found = probe()
        if found:
            return found
        assert time.monotonic() < deadline, f"waited {seconds:.0f} s for {what}; the last answer was {found!r}"
        time.sleep(0.05)


def clean_environment(**more: str) -> dict[str, str]:
    """Return this process's environment without settings of ckptwatch, with our own packages to be found."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("CKPTWATCH_")}
    return {**kept, "PYTHONPATH": str(REPOSITORY), "PYTHONWARNINGS": "default", **more}


def ckptwatch(*arguments: object, **more_environment: str) -> subprocess.CompletedProcess[str]:
    """Run one command to its end."""
    return subprocess.run(
        [sys.executable, "-m", "monitor.cli", *map(str, arguments)],
        env=clean_environment(**more_environment),
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


class DaemonProcess:
    """`ckptwatch run --config FILE` on a port of the system's choice, in one directory with its database and log.

    `settings` are laid over a configuration that settles fast. May be started, ended and started again.
    """

    def __init__(self, directory: Path, root: Path, **settings: dict[str, Any]) -> None:
        self.directory = directory
        self.root = root
        self.database = directory / "ckptwatch.db"
        self.log_file = directory / "daemon.log"
        self.config_file = directory / "config.yaml"
        document: dict[str, dict[str, Any]] = {
            "watch": {"roots": [str(root)], "settle_seconds": 0.2, "scan_interval_seconds": 1},
            "storage": {"url": f"sqlite:///{self.database}"},
            "serve": {"listen": "127.0.0.1:0"},
        }
        for section, keys in settings.items():
            document[section] = {**document.get(section, {}), **keys}
        directory.mkdir(parents=True, exist_ok=True)
        self.config_file.write_text(yaml.safe_dump(document))
        self.process: subprocess.Popen[bytes] | None = None
        self.port = 0
        self.program = [sys.executable, "-m", "monitor.cli"]
        self.environment = clean_environment()

    def start(self) -> Self:
        """Start the process and return when it says that it is ready."""
        assert self.process is None
        begin = self.log_file.stat().st_size if self.log_file.exists() else 0
        with self.log_file.open("ab") as log:
            self.process = subprocess.Popen(
                [*self.program, "run", "--config", str(self.config_file)],
                env=self.environment,
                stdout=log,
                stderr=log,
            )

        def served() -> re.Match[str] | None:
            assert self.process is not None
            assert self.process.poll() is None, f"the daemon ended by itself:\n{self.log}"
            return re.search(r"on http://127\.0\.0\.1:(\d+)", self.log[begin:])

        self.port = int(wait_for("the daemon to serve its page", served).group(1))
        wait_for("the daemon to be ready", lambda: self.get("/readyz")[0] == 200)
        return self

    def terminate(self) -> int:
        """Ask the process to end, as systemd does, and return its exit status."""
        return self._end(signal.SIGTERM)

    def kill(self) -> None:
        """End the process as a power cut does."""
        assert self._end(signal.SIGKILL) == -signal.SIGKILL

    def _end(self, number: signal.Signals) -> int:
        assert self.process is not None
        self.process.send_signal(number)
        status = self.process.wait(DEADLINE_SECONDS)
        self.process = None
        return status

    def __enter__(self) -> Self:
        return self if self.process is not None else self.start()

    def __exit__(self, *exc_info: object) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    @property
    def log(self) -> str:
        return self.log_file.read_text(errors="replace")

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def get(self, path: str) -> tuple[int, str]:
        """Return status and body of a GET."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status, answer.read().decode()
        finally:
            connection.close()

    def json(self, path: str) -> Any:
        """Return the document that the API gives."""
        status, body = self.get(path)
        assert status == 200, body
        return json.loads(body)

    def snapshots(self, run: str | None = None) -> list[dict[str, Any]]:
        """Return the stored snapshots of a run, oldest first; nothing for a run that is not known yet."""
        status, body = self.get(f"/api/v1/runs/{quote(run or self.root.name)}/history")
        if status == 404:
            return []
        assert status == 200, body
        return list(json.loads(body)["snapshots"])

    def metric(self, name: str, **labels: str) -> float:
        """Return the value of one sample of a live scrape."""
        for family in text_string_to_metric_families(self.get("/metrics")[1]):
            for sample in family.samples:
                if sample.name == name and labels.items() <= sample.labels.items():
                    return float(sample.value)
        raise AssertionError(f"no sample {name}{labels}")
