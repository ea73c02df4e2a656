"""Run the benchmarks one after the other and print one table: `make bench`. Figures belong here, never into a test.

Ratios are measured in one run; absolute times only mean something on a machine that does nothing else (the load is
printed, and written beside the results). The default takes about ten minutes; `--quick` smaller files and shorter
waits, `--full` three million stored tensor rows. `--only NAME` runs those whose name begins so. What was found is kept
in benchmarks/results, one document for the run and one for each benchmark.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.figures import RESULTS, Figure, machine, read, table, write

# name -> (arguments for --quick, by default, for --full)
BENCHMARKS: dict[str, tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]] = {
    "throughput": (("--large-mib", "512", "--small-mib", "128"), (), ()),
    "small_tensors": ((), (), ()),
    "start_time": (("--repeats", "3"), (), ()),
    "metrics_scrape": ((), (), ()),
    "storage_queries": (
        ("--snapshots", "300", "--tensors", "300"),
        ("--snapshots", "1000", "--tensors", "300"),
        ("--snapshots", "1000", "--tensors", "3000"),
    ),
    "idle_daemon": (("--files", "2000", "--seconds", "30"), ("--seconds", "60"), ()),
    "co_running": (("--rounds", "3"), (), ("--rounds", "24")),
}


def main() -> None:
    """Run each benchmark in a process of its own; exit 1 when one of them failed to run, whatever the figures say."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--quick", action="store_true")
    size.add_argument("--full", action="store_true")
    parser.add_argument("--only", metavar="NAME", default="")
    options = parser.parse_args()
    which = 0 if options.quick else 2 if options.full else 1
    about = machine()
    print(f"{about['date']}, {about['processor']}, {about['n_processors']} processors, load {about['load'][0]}")
    figures: list[Figure] = []
    failed: list[str] = []
    chosen = [name for name in BENCHMARKS if name.startswith(options.only)]
    with tempfile.TemporaryDirectory() as directory:
        for name in chosen:
            arguments, found = BENCHMARKS[name][which], Path(directory) / f"{name}.json"
            print(f"... {name} {' '.join(arguments)}".rstrip(), file=sys.stderr, flush=True)
            command = [sys.executable, "-m", f"benchmarks.{name}", *arguments, "--json", str(found)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode != 0 or not found.exists():
                print(f"{name} failed:\n{done.stderr[-4000:]}", file=sys.stderr, flush=True)
                failed.append(name)
                continue
            RESULTS.mkdir(exist_ok=True)
            (RESULTS / f"{name}.json").write_bytes(found.read_bytes())
            figures += read(found)
    print(table(figures))
    if len(chosen) == len(BENCHMARKS):
        write(RESULTS / "all.json", figures, size=("quick", "default", "full")[which], failed=failed)
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
