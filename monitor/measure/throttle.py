"""How fast a worker may read: a number of bytes a second, and less of that while others wait for the disk.

The clock, the sleep and the pressure are handed in. Nothing here reads a checkpoint.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

_BURST_SECONDS = 0.25
_LOOK_SECONDS = 1.0  # the kernel renews its averages every two seconds
_HALVINGS_MAX = 3
_PRESSURE_FILE = Path("/proc/pressure/io")
_PRESSURE_BYTES_MAX = 4096


class Throttle:
    """Sleeps after a read for as long as the budget is overdrawn; call it with each number of bytes read."""

    def __init__(
        self,
        bytes_per_second: int,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """Start with a full bucket, which holds a quarter of a second."""
        if bytes_per_second <= 0:
            raise ValueError("bytes_per_second must be positive")
        self._rate = float(bytes_per_second)
        self._clock = clock
        self._sleep = sleep
        self._filled_at = clock()
        self._tokens = self._rate * _BURST_SECONDS

    def __call__(self, n_bytes: int) -> None:
        """Take `n_bytes` from the budget, and sleep until it is no longer overdrawn."""
        now = self._clock()
        self._tokens = min(self._tokens + (now - self._filled_at) * self._rate, self._rate * _BURST_SECONDS)
        self._filled_at = now
        self._tokens -= n_bytes
        if self._tokens < 0:
            self._sleep(-self._tokens / self._rate)


class BackOff:
    """Halves the pace of reading, down to an eighth, while tasks on this machine stall on their disk.

    Call it after each read. Once a second it looks at the pressure: above `percent_max` the pace is halved once more,
    below it is doubled again. The pace is what it would be without this: after a stretch of work it sleeps for 1, 3 or
    7 times as long, so that it also holds where no number of bytes a second is set. No more than `sleep_seconds_max`
    is slept in all between two calls of `begin`, or one checkpoint could take longer than a worker may need for it.
    """

    def __init__(
        self,
        percent_max: float,
        *,
        sleep_seconds_max: float,
        pressure: Callable[[], float | None],
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """Start at the full pace. `pressure` gives percent of the time, or None where the system does not tell."""
        if percent_max <= 0 or sleep_seconds_max < 0:
            raise ValueError("percent_max must be positive and sleep_seconds_max not negative")
        self._percent_max = percent_max
        self._sleep_seconds_max = sleep_seconds_max
        self._pressure = pressure
        self._clock = clock
        self._sleep = sleep
        self._left_seconds = sleep_seconds_max
        self._n_halvings = 0
        self._worked_since = self._looked_at = clock()

    @property
    def n_halvings(self) -> int:
        """Return how often the pace is halved now, 0 to 3."""
        return self._n_halvings

    def begin(self) -> None:
        """Begin with another checkpoint: all of `sleep_seconds_max` may be slept again, and waiting was no work."""
        self._left_seconds = self._sleep_seconds_max
        self._worked_since = self._clock()

    def __call__(self, _n_bytes: int) -> None:
        """Sleep, if others wait for the disk."""
        now = self._clock()
        if now - self._looked_at >= _LOOK_SECONDS:
            self._looked_at = now
            percent = self._pressure()
            is_high = percent is not None and percent > self._percent_max
            self._n_halvings = min(max(self._n_halvings + (1 if is_high else -1), 0), _HALVINGS_MAX)
        worked_seconds = min(max(now - self._worked_since, 0.0), _LOOK_SECONDS)
        seconds = min(worked_seconds * (2**self._n_halvings - 1), self._left_seconds)
        if seconds > 0.0:
            self._left_seconds -= seconds
            self._sleep(seconds)
        self._worked_since = self._clock()


def io_pressure(path: Path = _PRESSURE_FILE) -> float | None:
    """Return in how many percent of the last ten seconds some task of the machine waited for its disk, 0..100.

    None where the kernel does not tell: before Linux 4.20, without CONFIG_PSI, in some containers, elsewhere.
    """
    try:
        with path.open("rb") as file:
            text = file.read(_PRESSURE_BYTES_MAX).decode("ascii")
    except (OSError, ValueError):
        return None
    for line in text.splitlines():
        fields = line.split()
        for field in fields[1:]:
            if fields[0] == "some" and field.startswith("avg10="):
                return _percent(field.removeprefix("avg10="))
    return None


def _percent(text: str) -> float | None:
    try:
        percent = float(text)
    except ValueError:
        return None
    return percent if 0.0 <= percent <= 100.0 else None
