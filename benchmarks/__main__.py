"""Run the benchmarks one after the other: `make bench`. Figures belong here, never into a timed test.

Ratios are measured in one run; absolute times only mean something on a machine that does nothing else (the load is
printed, and written beside the results). `--quick` takes smaller files and shorter waits.
"""

from __future__ import annotations

import argparse
import datetime
import os
import subprocess
import sys

FULL: tuple[tuple[str, ...], ...] = (
    ("benchmarks.throughput",),
    ("benchmarks.metrics_scrape",),
    ("benchmarks.storage_queries", "--snapshots", "1000", "--tensors", "1000"),
    ("benchmarks.idle_daemon",),
)
QUICK: tuple[tuple[str, ...], ...] = (
    ("benchmarks.throughput", "--large-mib", "512", "--small-mib", "128", "--repeats", "3"),
    ("benchmarks.metrics_scrape",),
    ("benchmarks.storage_queries", "--snapshots", "300", "--tensors", "300"),
    ("benchmarks.idle_daemon", "--files", "2000", "--seconds", "30"),
)


def main() -> None:
    """Run each benchmark in a process of its own; exit 1 when one of them failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    chosen = QUICK if parser.parse_args().quick else FULL
    today = datetime.datetime.now(tz=datetime.UTC).date()
    print(f"{today}, {os.cpu_count()} processors, load {os.getloadavg()[0]:.1f}", flush=True)
    failed = []
    for module, *arguments in chosen:
        print(f"\n{module} {' '.join(arguments)}".rstrip(), flush=True)
        if subprocess.run([sys.executable, "-m", module, *arguments], check=False).returncode:
            failed.append(module)
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
