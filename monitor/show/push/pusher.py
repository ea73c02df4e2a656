"""Metrics that go out by themselves: every exporter in a thread of its own, at an interval, as long as it lives.

What an exporter sends is what `/metrics` shows at that moment. A push that fails is counted and not made up for: the
next one says everything that is true then.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping
from typing import Protocol

from alerts.notifier import DeliveryError
from monitor.show.telemetry import Telemetry

logger = logging.getLogger(__name__)


class Exporter(Protocol):
    """One way out. Both raise DeliveryError or OSError when it did not work."""

    def push(self) -> None:
        """Send what is true now."""

    def finish(self) -> None:
        """Say that nothing more will come, so that old numbers do not stay."""


class Pusher:
    """Runs exporters by name; `start` once, `stop` at the end."""

    def __init__(self, exporters: Mapping[str, Exporter], *, interval_seconds: float, telemetry: Telemetry) -> None:
        self._exporters = dict(exporters)
        self._interval_seconds = interval_seconds
        self._telemetry = telemetry
        self._stopping = threading.Event()
        self._threads: list[threading.Thread] = []

    def start(self) -> None:
        """Begin to push; the first time at once."""
        for name, exporter in self._exporters.items():
            thread = threading.Thread(target=self._run, args=(name, exporter), name=f"push-{name}", daemon=True)
            self._threads.append(thread)
            thread.start()

    def stop(self, timeout: float = 5.0) -> None:
        """Stop pushing, and let every exporter say that nothing more will come."""
        self._stopping.set()
        for thread in self._threads:
            thread.join(timeout)

    def push_once(self, name: str) -> bool:
        """Push by one exporter now and count it; return whether it worked."""
        return self._attempt(name, self._exporters[name].push)

    def _run(self, name: str, exporter: Exporter) -> None:
        while not self._stopping.is_set():
            self.push_once(name)
            self._stopping.wait(self._interval_seconds)
        self._attempt(name, exporter.finish)

    def _attempt(self, name: str, act: object) -> bool:
        assert callable(act)
        try:
            act()
        except (DeliveryError, OSError) as error:
            logger.warning("metrics were not exported by %s: %s", name, error)
        except Exception as error:  # noqa: BLE001 - a supervisor: the export must go on
            # Only the type: the text of a foreign error may hold the address or a token.
            logger.error("exporting metrics by %s failed with %s", name, type(error).__name__)  # noqa: TRY400
        else:
            self._telemetry.count_export(name, worked=True)
            return True
        self._telemetry.count_export(name, worked=False)
        return False
