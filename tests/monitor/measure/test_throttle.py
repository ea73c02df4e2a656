from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from monitor.measure.throttle import Throttle


class Time:
    """A clock that only sleeping and reading move."""

    def __init__(self) -> None:
        self.now = 100.0
        self.slept = 0.0

    def clock(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        assert seconds > 0
        self.now += seconds
        self.slept += seconds


@given(
    rate=st.integers(1, 10**9),
    reads=st.lists(st.tuples(st.integers(0, 10**8), st.floats(0, 2, allow_nan=False)), min_size=1, max_size=30),
)
def test_no_span_of_time_carries_more_than_rate_and_burst(rate: int, reads: list[tuple[int, float]]) -> None:
    time = Time()
    throttle = Throttle(rate, clock=time.clock, sleep=time.sleep)
    marks = [(time.now, 0)]
    total = 0
    for n_bytes, busy in reads:
        time.now += busy
        throttle(n_bytes)
        total += n_bytes
        marks.append((time.now, total))
    for i, (begin, before) in enumerate(marks):
        for end, after in marks[i + 1 :]:
            assert after - before <= rate * (end - begin + 0.25) * (1 + 1e-6) + 1


def test_a_slow_reader_is_never_slowed_down() -> None:
    time = Time()
    throttle = Throttle(1000, clock=time.clock, sleep=time.sleep)
    for _ in range(100):
        time.now += 1.0
        throttle(200)
    assert time.slept == 0.0


def test_a_fast_reader_is_held_to_the_rate() -> None:
    time = Time()
    throttle = Throttle(1000, clock=time.clock, sleep=time.sleep)
    for _ in range(100):
        throttle(1000)
    assert time.now - 100.0 == pytest.approx(100.0, abs=0.3)


def test_a_rate_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="positive"):
        Throttle(0)
