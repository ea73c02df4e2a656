"""What a checkpoint of many small tensors costs beside one of the same bytes in large tensors: 20 000 of 4 KiB.

    python -m benchmarks.small_tensors [--tensors 20000] [--repeats 5]

One process, taking turns, medians. What a tensor costs beyond its bytes is the work of making its record.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from benchmarks.figures import Figure, median, publish
from monitor.measure.options import MeasureOptions
from monitor.measure.snapshot import measure_path

ELEMENTS = 1024


def main() -> None:
    """Write both files, measure them in turn."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tensors", type=int, default=20_000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    values = np.random.default_rng(0).standard_normal(arguments.tensors * ELEMENTS).astype(np.float32)
    parts = values.reshape(arguments.tensors, ELEMENTS)
    with tempfile.TemporaryDirectory() as directory:
        many, one = f"{directory}/many.safetensors", f"{directory}/one.safetensors"
        save_file({f"layers.{i}.weight": part for i, part in enumerate(parts)}, many)
        save_file({"weight": values}, one)
        seconds: dict[str, list[float]] = {many: [], one: []}
        for path in (many, one):
            measure_path(path, MeasureOptions())  # loads or compiles the kernel
        for _ in range(arguments.repeats):
            for path, times in seconds.items():
                start = time.perf_counter()
                measure_path(path, MeasureOptions())
                times.append(time.perf_counter() - start)
    name = f"{arguments.tensors} tensors of 4 KiB"
    each = 1e6 * (median(seconds[many]) - median(seconds[one])) / arguments.tensors
    publish(
        [
            Figure(what=f"{name}: seconds in all", measured=median(seconds[many]), unit="s"),
            Figure(what=f"{name}: beyond the bytes, each", measured=each, unit="us"),
        ],
        arguments.json,
    )


if __name__ == "__main__":
    main()
