"""The picture that goes with an alert's message, drawn when a message is sent, by a process of its own.

A picture is an addition: whatever goes wrong is logged and the message goes without. Drawn once for all receivers and
tries of a message.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import tempfile
import threading
from collections import OrderedDict
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from alerts.plot import POINTS_MAX, plot_of
from storage import queries
from storage.errors import DatabaseError
from storage.records import Alert

if TYPE_CHECKING:
    from storage.database import Database

DRAW_SECONDS_MAX = 30.0
PICTURE_BYTES_MAX = 2_000_000
PICTURES_KEPT_MAX = 16
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
PASSED_ON = ("PATH", "HOME", "LANG", "LC_ALL", "XDG_CACHE_HOME")
_PACKAGE_ROOT = str(Path(__file__).resolve().parent.parent)

logger = logging.getLogger(__name__)


class Illustrator:
    """Draws pictures of alerts from what the database holds; safe to call from several threads."""

    def __init__(self, database: Database, *, seconds_max: float = DRAW_SECONDS_MAX) -> None:
        self._database = database
        self._seconds_max = seconds_max
        self._lock = threading.Lock()
        self._drawn: OrderedDict[str, bytes | None] = OrderedDict()
        self._is_able = find_spec("matplotlib") is not None

    def __call__(self, alert: Alert) -> bytes | None:
        """Return a PNG, or None where Matplotlib is missing, there is nothing to see, or drawing failed."""
        if not self._is_able:
            return None
        with self._lock:
            try:
                with self._database.read() as session:
                    summary = queries.run(session, alert.run)
                    attempt = None if summary is None else summary.attempt
                    snapshots = queries.history(session, alert.run, attempt=attempt, limit=POINTS_MAX)
            except DatabaseError as error:
                logger.warning("no picture for a message about %s: %s", alert.run, error)
                return None
            plot = plot_of(alert, snapshots)
            if plot is None:
                return None
            given = json.dumps(asdict(plot))
            if given not in self._drawn:
                self._drawn[given] = _draw(given, self._seconds_max)
                while len(self._drawn) > PICTURES_KEPT_MAX:
                    self._drawn.popitem(last=False)
            return self._drawn[given]


def _draw(given: str, seconds_max: float) -> bytes | None:
    with tempfile.TemporaryDirectory(prefix="ckptwatch-") as directory:
        environment = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
        environment |= {"PYTHONPATH": _PACKAGE_ROOT, "MPLCONFIGDIR": _cache_directory() or directory}
        try:
            done = subprocess.run(
                [sys.executable, "-P", "-m", "alerts.drawing"],
                input=given.encode(),
                env=environment,
                capture_output=True,
                timeout=seconds_max,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            logger.warning("a picture was not drawn: %s", type(error).__name__)
            return None
    picture = done.stdout
    if done.returncode != 0 or not picture.startswith(PNG_SIGNATURE) or len(picture) > PICTURE_BYTES_MAX:
        last = (done.stderr.decode("utf-8", "replace").strip().splitlines() or ["no message"])[-1][:200]
        logger.warning("a picture was not drawn (status %d): %s", done.returncode, last)
        return None
    return picture


def _cache_directory() -> str | None:
    """Return where Matplotlib may keep its list of fonts, which takes seconds to make; None where it may not."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    path = Path(base) / "ckptwatch" / "matplotlib"
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError:
        return None
    return str(path) if os.access(path, os.W_OK) else None
