"""Numbers, sizes and times as people read them; pure, and never longer than about ten characters."""

from __future__ import annotations

import math
from datetime import UTC, datetime

NOTHING = "\N{EN DASH}"


def number(value: float | None) -> str:
    """Return four significant digits, scientific far from 1."""
    if value is None or not math.isfinite(value):
        return NOTHING
    if value == 0:
        return "0"
    if 1e-3 <= abs(value) < 1e6:
        return f"{value:,.4g}" if abs(value) < 1e4 else f"{value:,.0f}"
    mantissa, exponent = f"{value:.3e}".split("e")
    return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"


def integer(value: int | None) -> str:
    """Return an integer with thousands apart by narrow spaces."""
    return NOTHING if value is None else f"{value:,}".replace(",", "\N{NARROW NO-BREAK SPACE}")


def count(value: int) -> str:
    """Return a large count in thousands, millions, billions: 124.4 M."""
    scaled = float(value)
    for unit in ("", " k", " M", " B"):
        if abs(scaled) < 999.5:
            return f"{scaled:.4g}{unit}" if unit else str(value)
        scaled /= 1000
    return f"{scaled:.4g} T"


def size(n_bytes: int) -> str:
    """Return a size in binary units."""
    scaled = float(n_bytes)
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if scaled < 1023.5:
            return f"{scaled:.0f} {unit}" if unit == "B" else f"{scaled:.3g} {unit}"
        scaled /= 1024
    return f"{scaled:.4g} PiB"


def duration(seconds: float) -> str:
    """Return a time span in its largest unit, and the next smaller one while it matters."""
    whole = max(0, round(seconds))
    for n_seconds, unit, smaller_seconds, smaller in (
        (86400, "d", 3600, "h"),
        (3600, "h", 60, "min"),
        (60, "min", 1, "s"),
    ):
        if whole >= n_seconds:
            rest = whole % n_seconds // smaller_seconds
            is_coarse = rest == 0 or whole >= 10 * n_seconds
            return f"{whole // n_seconds} {unit}" if is_coarse else f"{whole // n_seconds} {unit} {rest} {smaller}"
    return f"{whole} s"


def ago(then: float | None, now: float) -> str:
    """Return how long ago `then` was; the clocks of a file server and ours may differ, so never a negative time."""
    if then is None:
        return "never"
    return "now" if now - then < 1 else f"{duration(now - then)} ago"


def timestamp(at: float | None) -> str:
    """Return a UTC time to the second, as ISO 8601 without zone letters."""
    if at is None or not math.isfinite(at):
        return NOTHING
    try:
        return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M:%S")
    except (ValueError, OverflowError, OSError):
        return NOTHING
