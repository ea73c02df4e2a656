"""What a worker may be asked to do: plain functions from JSON to JSON, importable without numba.

An executor that pickles functions (dask) and our own pool, which sends a name, both run them. Each imports what it
needs when it is called, because the daemon imports this module to name the tasks and must not hold a compiler.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping
from typing import Any

from monitor.measure.options import MeasureOptions
from monitor.measure.throttle import BackOff, Throttle, io_pressure
from monitor.read.reader import ReadLimits

CHUNK_LIMITS = ReadLimits(chunk_bytes_max=2**20)

_MEASURE_KEYS = frozenset(
    {"path", "options", "reference_path", "limits", "bytes_per_second", "io_pressure_max", "back_off_seconds_max"}
)

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
    fields}, "bytes_per_second": int | null, "io_pressure_max": percent | null, "back_off_seconds_max": float}; all but
    "path" may be left out. Returns the JSON of a Measured (see monitor.measure.codec). Raises ReadError when the file
    cannot be read, ValueError for a key that is not known. The budget of bytes belongs to this process and lasts from
    task to task; while other tasks of the machine wait for their disk in more than `io_pressure_max` percent of the
    time, reading slows down, by at most `back_off_seconds_max` for one checkpoint.
    """
    # Deferred: these bring in the compiled kernels, which only a worker may hold.
    from monitor.measure.codec import measured_to_json  # noqa: PLC0415
    from monitor.measure.snapshot import measure_path  # noqa: PLC0415

    unknown = set(payload) - _MEASURE_KEYS
    if unknown:
        raise ValueError(f"measure knows no {', '.join(sorted(unknown))}")
    options = dict(payload.get("options") or {})
    if "quantiles" in options:
        options["quantiles"] = tuple(options["quantiles"])
    measured = measure_path(
        payload["path"],
        MeasureOptions(**options),
        on_read=_pace(payload),
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


def _pace(payload: Mapping[str, Any]) -> Callable[[int], None] | None:
    """Return what is to be called after each read, None where nothing limits the pace."""
    bytes_per_second, percent_max = payload.get("bytes_per_second"), payload.get("io_pressure_max")
    throttle = _throttle(bytes_per_second) if bytes_per_second else None
    if not percent_max:
        return throttle
    back_off = _back_off(float(percent_max), float(payload.get("back_off_seconds_max") or 0.0))
    back_off.begin()
    if throttle is None:
        return back_off

    def pace(n_bytes: int) -> None:
        throttle(n_bytes)
        back_off(n_bytes)

    return pace


@functools.lru_cache(maxsize=1)
def _throttle(bytes_per_second: int) -> Throttle:
    return Throttle(bytes_per_second)


@functools.lru_cache(maxsize=1)
def _back_off(percent_max: float, sleep_seconds_max: float) -> BackOff:
    return BackOff(percent_max, sleep_seconds_max=sleep_seconds_max, pressure=io_pressure)
