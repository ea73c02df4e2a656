"""When nobody need be told: silences with an end, and maintenance windows. Pure.

An alert that is kept quiet is judged and stored like any other; only its messages are left out. Patterns are globs
over the names of runs and rules; a plain name means itself even where it holds signs of a pattern.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, date, datetime, time, timedelta
from fnmatch import fnmatchcase
from typing import Annotated, Literal, Self, get_args
from zoneinfo import ZoneInfo, available_timezones

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from storage.records import Alert, Silence

Day = Literal["mon", "tue", "wed", "thu", "fri", "sat", "sun"]
DAYS: tuple[Day, ...] = get_args(Day)
PATTERN_CHARACTERS_MAX = 1000
MINUTES_A_DAY = 24 * 60
Pattern = Annotated[str, Field(min_length=1, max_length=PATTERN_CHARACTERS_MAX)]


class MaintenanceWindow(BaseModel):
    """A time in which nobody is told: once (`begins`, `ends`) or every week (`days`, `from`, `to`).

    Times without an offset are in `timezone`, an IANA name. A weekly window whose `to` is not after its `from` ends on
    the day after; `days` are those on which it begins.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    runs: Pattern = "*"
    rules: Pattern = "*"
    timezone: str = "UTC"
    begins: datetime | None = None
    ends: datetime | None = None
    days: tuple[Day, ...] = Field(default=DAYS, min_length=1)
    from_time: time | None = Field(default=None, alias="from")
    to_time: time | None = Field(default=None, alias="to")

    @field_validator("timezone")
    @classmethod
    def _check_timezone(cls, value: str) -> str:
        if value not in available_timezones():
            raise ValueError(f"{value[:60]!r} is not a time zone such as Europe/Berlin")
        return value

    @field_validator("from_time", "to_time", mode="before")
    @classmethod
    def _read_as_yaml_wrote_it(cls, value: object) -> object:
        # YAML 1.1 reads 22:30 without quotes as a number to the base of 60, which is the minute of the day.
        if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < MINUTES_A_DAY:
            return time(value // 60, value % 60)
        if isinstance(value, str | time):
            return value
        raise ValueError("must be a time of day such as 22:30")

    @model_validator(mode="after")
    def _check_times(self) -> Self:
        once = self.begins is not None and self.ends is not None
        weekly = self.from_time is not None and self.to_time is not None
        halves = (self.begins is None) != (self.ends is None) or (self.from_time is None) != (self.to_time is None)
        if once == weekly or halves:
            raise ValueError("must have either begins and ends, or from and to (and perhaps days)")
        if any(at is not None and at.tzinfo is not None for at in (self.from_time, self.to_time)):
            raise ValueError("from and to have no offset of their own; set timezone")
        if once and self._moment(self.begins) >= self._moment(self.ends):
            raise ValueError("must end after it begins")
        return self

    def lasts_at(self, at: float) -> bool:
        """Say whether a Unix time is within the window; the end is not."""
        if self.begins is not None and self.ends is not None:
            return self._moment(self.begins) <= at < self._moment(self.ends)
        if self.from_time is None or self.to_time is None:
            return False
        zone = ZoneInfo(self.timezone)
        today = datetime.fromtimestamp(at, zone).date()
        return any(self._lasts_from(day, at, zone) for day in (today - timedelta(days=1), today))

    def _lasts_from(self, day: date, at: float, zone: ZoneInfo) -> bool:
        assert self.from_time is not None
        assert self.to_time is not None
        if DAYS[day.weekday()] not in self.days:
            return False
        last = day if self.to_time > self.from_time else day + timedelta(days=1)
        begins = datetime.combine(day, self.from_time, zone)
        ends = datetime.combine(last, self.to_time, zone)
        return begins.timestamp() <= at < ends.timestamp()

    def _moment(self, at: datetime | None) -> float:
        assert at is not None
        return (at if at.tzinfo is not None else at.replace(tzinfo=ZoneInfo(self.timezone))).timestamp()


def quiet_reason(
    alert: Alert, *, silences: Iterable[Silence], windows: Iterable[MaintenanceWindow], at: float
) -> str | None:
    """Return why nobody is told of an alert at a time, None when people are."""
    for silence in silences:
        if silence.created_at <= at < silence.ends_at and _covers(silence.runs, silence.rules, alert):
            return f"silence {silence.id} until {datetime.fromtimestamp(silence.ends_at, UTC):%Y-%m-%d %H:%M} UTC"
    for window in windows:
        if _covers(window.runs, window.rules, alert) and window.lasts_at(at):
            return f"maintenance of {window.runs}"
    return None


def _covers(runs: str, rules: str, alert: Alert) -> bool:
    return _matches(runs, alert.run) and _matches(rules, alert.rule)


def _matches(pattern: str, name: str) -> bool:
    return pattern == name or fnmatchcase(name, pattern)
