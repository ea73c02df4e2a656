"""Metrics into a file for the textfile collector of node_exporter, for jobs on nodes that only it is scraped on.

The file is replaced at once and whole, and goes away with the daemon: node_exporter would show old numbers for ever.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import generate_latest


class TextfileExporter:
    """Writes one file; its directory must exist and be writable."""

    def __init__(self, registry: CollectorRegistry, path: str) -> None:
        self._registry = registry
        self._path = Path(path)

    def push(self) -> None:
        """Replace the file; raise OSError and leave the old one when that does not work."""
        text = generate_latest(self._registry)
        # node_exporter reads *.prom, so the unfinished file must be called something else.
        handle, name = tempfile.mkstemp(prefix=f".{self._path.name}.", suffix=".tmp", dir=self._path.parent)
        try:
            with open(handle, "wb") as file:
                file.write(text)
            os.chmod(name, 0o644)  # node_exporter is another user
            os.replace(name, self._path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(name)
            raise

    def finish(self) -> None:
        """Remove the file."""
        self._path.unlink(missing_ok=True)
