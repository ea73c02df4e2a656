"""A token bucket that keeps reading under a number of bytes a second, with the clock and the sleep handed in."""

from __future__ import annotations

import time
from collections.abc import Callable

_BURST_SECONDS = 0.25


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
