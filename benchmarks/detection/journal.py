"""Results of trials in a file of JSON lines, so that hours of training can be done in pieces."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from benchmarks.detection.trials import Result, Trial
from benchmarks.detection.watching import Fired


def append(path: Path, result: Result) -> None:
    """Add a result at the end of the file, and make the file where it is missing."""
    with path.open("a") as file:
        file.write(json.dumps(dataclasses.asdict(result)) + "\n")


def read(path: Path) -> dict[Trial, Result]:
    """Return the results by trial, none for a file that is missing; a last line that was cut off is passed over."""
    if not path.exists():
        return {}
    lines = path.read_text().split("\n")
    results = [_result(json.loads(line)) for line in lines[:-1]]
    return {result.trial: result for result in results}


def _result(fields: dict[str, Any]) -> Result:
    fired = {side: tuple(Fired(**entry) for entry in fields[side]) for side in ("alerts", "debugger")}
    return Result(**{**fields, **fired, "trial": Trial(**fields["trial"])})
