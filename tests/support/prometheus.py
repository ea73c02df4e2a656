"""A real Prometheus and a real Alertmanager on loopback, each in a directory of its own."""

from __future__ import annotations

import http.client
import json
import shutil
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self
from urllib.parse import quote

import pytest
import yaml

from tests.support.daemons import wait_for
from tests.support.receivers import free_port

PROMETHEUS = shutil.which("prometheus")
ALERTMANAGER = shutil.which("prometheus-alertmanager") or shutil.which("alertmanager")
needs_stack = pytest.mark.skipif(
    PROMETHEUS is None or ALERTMANAGER is None,
    reason="prometheus and alertmanager are not installed (Debian: prometheus, prometheus-alertmanager)",
)
NAMESPACE = "ckptwatch"


class _Server:
    """A program that serves a port; `start` returns when it says that it is ready."""

    def __init__(self, directory: Path, port: int | None = None) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.directory = directory
        self.port = port or free_port()
        self.process: subprocess.Popen[bytes] | None = None

    def command(self) -> list[str]:
        raise NotImplementedError

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> Self:
        with (self.directory / "log").open("ab") as log:
            self.process = subprocess.Popen(self.command(), stdout=log, stderr=log, cwd=self.directory)
        wait_for(f"{self.command()[0]} to be ready", self._ready)
        return self

    def _ready(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, (self.directory / "log").read_text()
        try:
            return self.get("/-/ready")[0] == 200
        except OSError:
            return False

    def stop(self) -> None:
        if self.process is not None:
            self.process.terminate()
            self.process.wait(30)
            self.process = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *exc_info: object) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def get(self, path: str) -> tuple[int, str]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status, answer.read().decode()
        finally:
            connection.close()

    def json(self, path: str) -> Any:
        status, body = self.get(path)
        assert status == 200, body
        return json.loads(body)


class Alertmanager(_Server):
    """One that sends everything to one webhook, soon."""

    def __init__(self, directory: Path, webhook: str, port: int | None = None) -> None:
        super().__init__(directory, port)
        document = {
            "route": {
                "receiver": "hook",
                "group_by": ["alertname", "run"],
                "group_wait": "1s",
                "group_interval": "1s",
                "repeat_interval": "4h",
            },
            "receivers": [{"name": "hook", "webhook_configs": [{"url": webhook, "send_resolved": True}]}],
        }
        (directory / "alertmanager.yml").write_text(yaml.safe_dump(document))

    def command(self) -> list[str]:
        return [
            str(ALERTMANAGER),
            "--config.file=alertmanager.yml",
            "--storage.path=data",
            f"--web.listen-address=127.0.0.1:{self.port}",
            "--cluster.listen-address=",
            "--log.level=debug",
        ]

    def forget(self) -> None:
        """End it as a power cut does, and lose all that it knew."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()
        self.process = None
        shutil.rmtree(self.directory / "data", ignore_errors=True)

    def alerts(self) -> list[dict[str, Any]]:
        return list(self.json("/api/v2/alerts"))


class Prometheus(_Server):
    """One that scrapes one target every second and knows the given rules."""

    def __init__(
        self, directory: Path, target: str, *, rules: Sequence[Path] = (), alertmanager: str | None = None
    ) -> None:
        super().__init__(directory)
        document: dict[str, Any] = {
            "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
            "rule_files": [str(rule) for rule in rules],
            "scrape_configs": [{"job_name": "ckptwatch", "static_configs": [{"targets": [target]}]}],
        }
        if alertmanager is not None:
            document["alerting"] = {"alertmanagers": [{"static_configs": [{"targets": [alertmanager]}]}]}
        (directory / "prometheus.yml").write_text(yaml.safe_dump(document))

    def command(self) -> list[str]:
        return [
            str(PROMETHEUS),
            "--config.file=prometheus.yml",
            "--storage.tsdb.path=data",
            f"--web.listen-address=127.0.0.1:{self.port}",
            "--web.enable-remote-write-receiver",
        ]

    def value(self, expression: str) -> float | None:
        """Return the first value of an expression now, None without one."""
        result = self.json(f"/api/v1/query?query={quote(expression)}")["data"]["result"]
        return float(result[0]["value"][1]) if result else None

    def labels(self, expression: str) -> list[dict[str, str]]:
        """Return the labels of every series that an expression has now."""
        result = self.json(f"/api/v1/query?query={quote(expression)}")["data"]["result"]
        return [dict(series["metric"]) for series in result]

    def n_values(self, expression: str, since: float) -> int:
        """Return how many values an expression had since a Unix time, a second apart."""
        now = time.time()
        result = self.json(f"/api/v1/query_range?query={quote(expression)}&start={since}&end={now}&step=1")
        assert result["status"] == "success"
        return sum(len(series["values"]) for series in result["data"]["result"])

    def rules(self) -> dict[str, Mapping[str, Any]]:
        groups = self.json("/api/v1/rules")["data"]["groups"]
        return {rule["name"]: rule for group in groups for rule in group["rules"]}
