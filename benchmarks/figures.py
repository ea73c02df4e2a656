"""What a benchmark reports: figures beside their targets, one table, one JSON document with date and machine.

Every benchmark hands its figures over as JSON (`--json PATH`), so that `python -m benchmarks` can print them as one
table. A figure without a target is context and has no verdict.
"""

from __future__ import annotations

import dataclasses
import datetime
import json
import os
import platform
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parent / "results"


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One measured number; `target` is the most it may be, with `at_least` the least, None where there is none."""

    what: str
    measured: float
    unit: str
    target: float | None = None
    at_least: bool = False

    @property
    def is_met(self) -> bool | None:
        """Say whether the target is met, None without one."""
        if self.target is None:
            return None
        return self.measured >= self.target if self.at_least else self.measured <= self.target


def table(figures: Iterable[Figure]) -> str:
    """Return the lines: figure, target, measured, ratio of measured to target, verdict."""
    lines = [f"{'figure':62} {'measured':>14} {'target':>14} {'ratio':>7}  verdict"]
    for figure in figures:
        target = ratio = verdict = ""
        if figure.target is not None:
            target = f"{'>=' if figure.at_least else '<='} {_number(figure.target)} {figure.unit}"
            ratio = f"{figure.measured / figure.target:.2f}"
            verdict = "met" if figure.is_met else "MISSED"
        measured = f"{_number(figure.measured)} {figure.unit}"
        lines.append(f"{figure.what:62} {measured:>14} {target:>14} {ratio:>7}  {verdict}".rstrip())
    return "\n".join(lines)


def machine() -> dict[str, Any]:
    """Return what a reader must know of the machine: processor, system, how loaded it was."""
    return {
        "date": datetime.datetime.now(tz=datetime.UTC).isoformat(timespec="seconds"),
        "processor": _processor(),
        "n_processors": os.cpu_count(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": platform.python_version(),
        "load": [round(load, 2) for load in os.getloadavg()],
    }


def write(path: Path, figures: Sequence[Figure], **more: Any) -> None:
    """Write figures with date and machine; `more` goes beside them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    document = {**machine(), **more, "figures": [{**dataclasses.asdict(f), "is_met": f.is_met} for f in figures]}
    path.write_text(json.dumps(document, indent=1) + "\n")


def read(path: Path) -> list[Figure]:
    """Return the figures that `write` left."""
    names = {field.name for field in dataclasses.fields(Figure)}
    return [Figure(**{k: v for k, v in f.items() if k in names}) for f in json.loads(path.read_text())["figures"]]


def publish(figures: Sequence[Figure], path: Path | None, **more: Any) -> None:
    """Print the table, and write the document where a path is given."""
    print(table(figures), flush=True)
    if path is not None:
        write(path, figures, **more)


def median(values: Iterable[float]) -> float:
    """Return the median as a float."""
    return float(statistics.median(values))


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")
