"""How long `ckptwatch inspect` takes for a checkpoint of 1 MB, with compiled kernels in the cache and without.

    python -m benchmarks.start_time [--repeats 5]

Whole processes, from the shell's point of view; the cache is a directory of the benchmark's own.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from benchmarks.figures import Figure, median, publish

ROOT = Path(__file__).resolve().parent.parent


def inspect_seconds(path: str, cache: str) -> float:
    """Time one `ckptwatch inspect`."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "CKPTWATCH_COMPILE_CACHE": cache}
    start = time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", "monitor.cli", "inspect", path],
        env=environment,
        stdout=subprocess.DEVNULL,
        check=True,
    )
    return time.perf_counter() - start


def main() -> None:
    """Time warm and cold starts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    random = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as directory:
        path, cache = f"{directory}/one.safetensors", f"{directory}/kernels"
        save_file({f"l{i}.weight": random.standard_normal((128, 128)).astype(np.float32) for i in range(16)}, path)
        cold: list[float] = []
        warm: list[float] = []
        for _ in range(arguments.repeats):
            shutil.rmtree(cache, ignore_errors=True)
            cold.append(inspect_seconds(path, cache))
            warm.append(inspect_seconds(path, cache))
    publish(
        [
            Figure(what="inspect of 1 MB, kernels compiled before", measured=median(warm), unit="s", target=1.5),
            Figure(what="inspect of 1 MB, kernels compiled now", measured=median(cold), unit="s", target=8),
        ],
        arguments.json,
    )


if __name__ == "__main__":
    main()
