"""What every command shares: exit codes, options, one JSON document on stdout, tables, loading the configuration."""

from __future__ import annotations

import json
import logging
import math
import os
import re
import sys
from collections.abc import Sequence
from enum import IntEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from monitor import config as configuration

_DURATION = re.compile(r"(\d{1,9}(?:\.\d{1,9})?)(s|m|h|d)")
_BARS = "▁▂▃▄▅▆▇█"
_LOG_RATIO_MIN = 50.0
_UNIT_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


class ExitCode(IntEnum):
    """What the exit status of every command means."""

    WELL = 0
    BAD_NEWS = 1  # the answer is bad news: check found something, diff differs, there is no good checkpoint
    USAGE = 2  # wrong usage or configuration
    UNREADABLE = 3  # a checkpoint could not be read
    ENVIRONMENT = 4  # the database, the port or another part of the environment failed


class CommandError(Exception):
    """A command cannot go on; the message is one line that says what to do."""

    def __init__(self, message: str, code: ExitCode) -> None:
        super().__init__(message)
        self.code = code


JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document and nothing else.")]
ConfigOption = Annotated[
    Path | None, typer.Option("--config", "-c", help="The configuration file (YAML).", show_default=False)
]
DatabaseOption = Annotated[
    str | None, typer.Option("--db", help="Database URL, for example sqlite:////var/lib/ckptwatch/ckptwatch.db.")
]


def load_config(path: Path | None, **overrides: dict[str, Any]) -> configuration.Config:
    """Read the configuration; raises ConfigError with every problem."""
    return configuration.load(path, {k: v for k, v in overrides.items() if v})


def database_overrides(db: str | None) -> dict[str, Any]:
    """Return the storage section that `--db` stands for; a plain path is a SQLite file."""
    return {} if db is None else {"url": db if "://" in db else f"sqlite:///{os.path.abspath(db)}"}


def root_overrides(roots: Sequence[str] | None) -> dict[str, Any]:
    """Return the watch section that roots on the command line stand for."""
    return {} if not roots else {"roots": [{"path": os.path.abspath(root)} for root in roots]}


def set_up_logging(*, verbose: bool = False, quiet: bool = False) -> None:
    """Log to stderr, one line an event; `quiet` leaves errors only."""
    level = logging.ERROR if quiet else logging.INFO
    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s", level=level, force=True)
    for name in ("apscheduler", "uvicorn", "watchdog", "alembic"):
        logging.getLogger(name).setLevel(logging.INFO if verbose else logging.WARNING)


def print_json(document: object) -> None:
    """Print one JSON document; NaN and infinity are refused rather than written."""
    sys.stdout.write(json.dumps(document, indent=2, allow_nan=False, ensure_ascii=False) + "\n")


def console(*, stderr: bool = False) -> Console:
    """Return the console for people; on a pipe it is wide enough not to cut paths."""
    plain = Console(highlight=False, stderr=stderr)
    return plain if plain.is_terminal else Console(highlight=False, stderr=stderr, width=max(plain.width, 160))


def table(title: str | None, columns: Sequence[tuple[str, str]], rows: Sequence[Sequence[str]]) -> Table:
    """Return a table of plain text; `columns` are (heading, "left" or "right")."""
    built = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="bold")
    for heading, side in columns:
        built.add_column(heading, justify="right" if side == "right" else "left", overflow="fold")
    for row in rows:
        built.add_row(*(Text(cell) for cell in row))
    return built


def number(value: float | None, digits: int = 4) -> str:
    """Return a number in few characters, a dash for None."""
    return "–" if value is None else f"{value:.{digits}g}"


def bars(values: Sequence[float | None], width_max: int = 24) -> str:
    """Return the latest numbers as a row of block characters, one each, a space where there is none.

    The scale runs from the smallest to the largest number shown; it is logarithmic where positive numbers span more
    than a factor of 50, so that one jump does not hide the rest. "" with fewer than two numbers.
    """
    shown = [v if v is not None and math.isfinite(v) else None for v in values[-width_max:]]
    known = [v for v in shown if v is not None]
    if len(known) < 2:
        return ""
    low, high = min(known), max(known)
    if low > 0 and high / low > _LOG_RATIO_MIN:
        shown, low, high = [None if v is None else math.log(v) for v in shown], math.log(low), math.log(high)
    span = high / 2 - low / 2  # halves, so that no difference overflows
    top = len(_BARS) - 1
    return "".join(
        " " if v is None else _BARS[0 if span == 0 else round((v / 2 - low / 2) / span * top)] for v in shown
    )


def size(size_bytes: int) -> str:
    """Return bytes in binary units."""
    value = float(size_bytes)
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if value < 1024 or unit == "TiB":
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    raise AssertionError


def duration_seconds(text: str) -> float | None:
    """Return how long "90s", "30m", "4h" or "2d" is, None when the text is no duration."""
    match = _DURATION.fullmatch(text.strip())
    return None if match is None else float(match.group(1)) * _UNIT_SECONDS[match.group(2)]


def age(seconds: float) -> str:
    """Return a duration as people say it: 12 s, 5 min, 3 h, 2 d."""
    for limit, unit, divisor in ((120, "s", 1), (7200, "min", 60), (172_800, "h", 3600)):
        if seconds < limit:
            return f"{max(seconds, 0) / divisor:.0f} {unit}"
    return f"{seconds / 86400:.0f} d"
