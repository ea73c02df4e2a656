from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from monitor.measure.throttle import BackOff, Throttle, io_pressure


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


class Disk:
    """A disk whose pressure a test sets, read by somebody who works for 0.1 s between two calls."""

    def __init__(self, *, sleep_seconds_max: float = 1e9) -> None:
        self.time = Time()
        self.percent: float | None = 0.0
        self.back_off = BackOff(
            10.0,
            sleep_seconds_max=sleep_seconds_max,
            pressure=lambda: self.percent,
            clock=self.time.clock,
            sleep=self.time.sleep,
        )

    def work(self, seconds: float) -> float:
        """Work for so long; return how much longer it took than without the pressure, as a ratio."""
        begin = self.time.now
        for _ in range(round(seconds * 10)):
            self.time.now += 0.1
            self.back_off(2**20)
        return (self.time.now - begin) / seconds


def test_the_pace_is_halved_under_pressure_step_by_step_and_comes_back() -> None:
    disk = Disk()
    assert disk.work(30) == pytest.approx(1.0)
    disk.percent = 40.0
    seen = []
    for _ in range(60):
        disk.work(0.1)
        seen.append(disk.back_off.n_halvings)
    assert seen == sorted(seen)
    assert set(seen) >= {1, 2, 3}
    assert disk.work(10) == pytest.approx(8.0)
    disk.percent = 9.0
    disk.work(5)
    assert disk.back_off.n_halvings == 0
    assert disk.work(10) == pytest.approx(1.0)


def test_a_system_that_does_not_tell_its_pressure_slows_nothing_down() -> None:
    disk = Disk()
    disk.percent = None
    assert disk.work(60) == pytest.approx(1.0)


def test_what_is_slept_for_one_checkpoint_is_bounded_and_the_next_may_sleep_again() -> None:
    disk = Disk(sleep_seconds_max=20.0)
    disk.percent = 100.0
    disk.work(300)
    assert disk.time.slept == pytest.approx(20.0)
    disk.time.now += 1000.0
    disk.back_off.begin()
    disk.work(300)
    assert disk.time.slept == pytest.approx(40.0)


def test_waiting_for_the_next_checkpoint_is_not_taken_for_work() -> None:
    disk = Disk()
    disk.percent = 100.0
    disk.work(10)
    slept = disk.time.slept
    disk.time.now += 3600.0
    disk.back_off.begin()
    disk.back_off(1)
    assert disk.time.slept == slept


def test_a_threshold_or_budget_that_makes_no_sense_is_refused() -> None:
    for percent_max, seconds in ((0.0, 1.0), (10.0, -1.0)):
        with pytest.raises(ValueError, match="must be positive"):
            BackOff(percent_max, sleep_seconds_max=seconds, pressure=lambda: None)


@pytest.mark.parametrize(
    ("text", "percent"),
    [
        ("some avg10=12.34 avg60=1.00 avg300=0.10 total=1\nfull avg10=3.00 avg60=0 avg300=0 total=1\n", 12.34),
        ("full avg10=3.00 avg60=0 avg300=0 total=1\n", None),
        ("some avg10=high\n", None),
        ("some avg10=-1\n", None),
        ("\n", None),
        ("\xff", None),
    ],
)
def test_the_pressure_is_what_the_kernel_tells(tmp_path: Path, text: str, percent: float | None) -> None:
    (tmp_path / "io").write_text(text, encoding="latin-1")
    assert io_pressure(tmp_path / "io") == percent
    assert io_pressure(tmp_path / "missing") is None


def test_the_pressure_of_this_machine_is_a_percentage_or_unknown() -> None:
    assert (found := io_pressure()) is None or 0.0 <= found <= 100.0
