"""What a training log says at one step, under names that all logs share, and what that adds up to for a checkpoint.

Pure. Values may be NaN or infinite here, since a log says so; `joined` counts them and lets none through.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

STEP_MAX = 2**62
_STEPS = ("step", "global_step", "current_steps", "iteration", "iter", "iter_num", "_step", "train_step", "num_updates")
_NAMES: tuple[tuple[str, re.Pattern[str]], ...] = (
    ("eval_loss", re.compile(r"(?:eval|val|valid|validation|test|dev)(?:[_/.-].*)?[_/.-]loss(?:_epoch)?")),
    ("loss", re.compile(r"(?:(?:train|training|trainer)[_/.-])?(?:loss|total_loss|train_loss)(?:_step)?")),
    (
        "grad_norm",
        re.compile(r"(?:(?:train|training|trainer)[_/.-])?(?:grad(?:ient)?_norm|gnorm|grad_2\.0_norm_total)"),
    ),
    ("learning_rate", re.compile(r"(?:(?:train|training|trainer)[_/.-])?(?:lr|learning_rate|lr-\w+)")),
)
KEYS = tuple(name for name, _ in _NAMES)


@dataclass(frozen=True, slots=True)
class LogPoint:
    """One value of one quantity at one optimizer step; `key` is one of KEYS."""

    step: int
    key: str
    value: float


def key_of(name: str) -> str | None:
    """Return which quantity a log's own name means, None for any other."""
    lower = name.strip().lower()
    return next((key for key, pattern in _NAMES if pattern.fullmatch(lower)), None)


def points_of(record: Mapping[str, object]) -> list[LogPoint]:
    """Return the points in one record of a log: a step beside numbers. Text that states a number is read as one."""
    step = next((s for name in _STEPS if (s := _step(record.get(name))) is not None), None)
    if step is None:
        return []
    found = []
    for name, given in record.items():
        key = key_of(name)
        value = number(given) if key is not None else None
        if key is not None and value is not None:
            found.append(LogPoint(step, key, value))
    return found


def number(given: object) -> float | None:
    """Return a logged value as a number, which may be NaN or infinite; None for what is none."""
    if isinstance(given, bool) or not isinstance(given, int | float | str):
        return None
    try:
        return float(given)
    except (ValueError, OverflowError):
        return None


def _step(given: object) -> int | None:
    value = number(given)
    if value is None or not value.is_integer() or not 0 <= value <= STEP_MAX:
        return None
    return int(value)


def joined(points: Iterable[LogPoint], *, step: int, after: int | None) -> dict[str, float]:
    """Return what the log says about the steps after `after` up to `step`, as numbers of a snapshot.

    `log.loss` and `log.grad_norm` are means over those steps, `log.loss_last` the last loss, `log.loss_max` and
    `log.grad_norm_max` the highest values, `log.learning_rate` the last one, `log.eval_loss` the last evaluation at or
    before `step`. Where nothing was logged in between, the last value before stands. `log.n_nonfinite` counts NaN and
    infinite losses and gradient norms in between; they enter nothing else. `log.step` is the last step used. Empty when
    the log says nothing up to `step`.
    """
    by_key: dict[str, list[LogPoint]] = {}
    for point in points:
        if point.step <= step:
            by_key.setdefault(point.key, []).append(point)
    said: dict[str, float] = {}
    n_nonfinite = 0
    for key, series in by_key.items():
        series.sort(key=lambda p: p.step)  # stable: of two values at one step the later written one comes last
        between = [p for p in series if after is None or p.step > after]
        finite = [p.value for p in between if math.isfinite(p.value)]
        if key in ("loss", "grad_norm"):
            n_nonfinite += len(between) - len(finite)
        last = next((p for p in reversed(series) if math.isfinite(p.value)), None)
        if last is None:
            continue
        said["log.step"] = max(said.get("log.step", 0.0), float(last.step))
        if key in ("eval_loss", "learning_rate"):
            said[f"log.{key}"] = last.value
            continue
        said[f"log.{key}"] = math.fsum(v / len(finite) for v in finite) if finite else last.value
        said[f"log.{key}_max"] = max(finite, default=last.value)
        if key == "loss":
            said["log.loss_last"] = last.value
    if by_key:
        said["log.n_nonfinite"] = float(n_nonfinite)
    return said
