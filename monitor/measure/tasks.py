"""What a worker may be asked to do: plain functions from JSON to JSON, importable without numba.

An executor that pickles functions (dask) and our own pool, which sends a name, both run them. Each imports what it
needs when it is called, because the daemon imports this module to name the tasks and must not hold a compiler.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping
from typing import Any

from monitor.measure.options import MeasureOptions
from monitor.measure.throttle import Throttle
from monitor.read.reader import ReadLimits

CHUNK_LIMITS = ReadLimits(chunk_bytes_max=2**20)

TASKS: Mapping[str, str] = {
    "ping": "monitor.measure.tasks:ping",
    "measure": "monitor.measure.tasks:measure",
    "compare": "monitor.measure.tasks:compare",
}


def ping(payload: dict[str, Any]) -> dict[str, Any]:
    """Return the payload and the number of the process that answers."""
    return {"echo": payload, "pid": os.getpid()}


def measure(payload: dict[str, Any]) -> dict[str, Any]:
    """Measure one checkpoint file.

    `payload`: {"path": str, "options": {MeasureOptions' fields}, "reference_path": str | null, "limits": {ReadLimits'
    fields}, "bytes_per_second": int | null}; all but "path" may be left out. Returns the JSON of a Measured (see
    monitor.measure.codec). Raises ReadError when the file cannot be read, ValueError for a key that is not known.
    The budget of bytes belongs to this process and lasts from task to task.
    """
    # Deferred: these bring in the compiled kernels, which only a worker may hold.
    from monitor.measure.codec import measured_to_json  # noqa: PLC0415
    from monitor.measure.snapshot import measure_path  # noqa: PLC0415

    unknown = set(payload) - {"path", "options", "reference_path", "limits", "bytes_per_second"}
    if unknown:
        raise ValueError(f"measure knows no {', '.join(sorted(unknown))}")
    options = dict(payload.get("options") or {})
    if "quantiles" in options:
        options["quantiles"] = tuple(options["quantiles"])
    bytes_per_second = payload.get("bytes_per_second")
    measured = measure_path(
        payload["path"],
        MeasureOptions(**options),
        on_read=_throttle(bytes_per_second) if bytes_per_second else None,
        reference_path=payload.get("reference_path"),
        limits=ReadLimits(**(payload.get("limits") or {})),
    )
    return measured_to_json(measured)


def compare(payload: dict[str, Any]) -> dict[str, Any]:
    """Compare pairs of tensors of two checkpoints, whatever the order of their axes.

    `payload`: {"old_path": str, "new_path": str, "pairs": [[old name, new name], ...], "joined": [{JoinedBias'
    fields}, ...]}; "joined" may be left out. Returns the JSON of PairResults
    (see monitor.measure.codec). Raises ReadError when either checkpoint cannot be read.
    """
    # Deferred like those of `measure`.
    from monitor.measure.codec import pairs_to_json  # noqa: PLC0415
    from monitor.measure.pair_comparison import compare_paths  # noqa: PLC0415
    from monitor.measure.recurrent_bias import JoinedBias  # noqa: PLC0415

    pairs = [(str(old), str(new)) for old, new in payload["pairs"]]
    joined = [JoinedBias(**fields) for fields in payload.get("joined") or ()]
    return pairs_to_json(compare_paths(payload["old_path"], payload["new_path"], pairs, CHUNK_LIMITS, joined))


@functools.lru_cache(maxsize=1)
def _throttle(bytes_per_second: int) -> Throttle:
    return Throttle(bytes_per_second)
