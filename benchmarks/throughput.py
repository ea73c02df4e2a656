"""How fast checkpoints are measured, beside `cat` and beside the plain torch way, in one run on one core.

Run: python benchmarks/throughput.py [--large-mib 2048] [--small-mib 256] [--repeats 5] [--directory /tmp]

The marginal cost is the slope between a small and a large file of the same kind: what one more byte costs, without
starting an interpreter. Whole-process times and peak memory are printed beside it. Files are in the page cache.
Prints a table and writes benchmarks/results/throughput.json.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TENSOR_ELEMENTS = 16 * 2**20

# Not ru_maxrss: Linux hands the high-water mark of the parent, which holds the tensors it wrote, on to its children.
PEAK = """
def peak_mib():
    import resource, sys
    try:
        with open("/proc/self/status") as status:
            return next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) / 1024
    except OSError:  # no procfs, as on macOS, where ru_maxrss is in bytes
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
"""

MEASURE = """
import json, sys, time
sys.path.insert(0, {root!r})
from monitor.measure.options import MeasureOptions
from monitor.measure.snapshot import measure_path
measure_path({small!r}, MeasureOptions())  # loads or compiles the kernel
times = []
for path in ({small!r}, {large!r}) * {repeats}:
    start = time.perf_counter()
    measure_path(path, MeasureOptions())
    times.append(time.perf_counter() - start)
print(json.dumps([times, peak_mib()]))
"""

PLAIN = """
import json, time, torch
torch.set_num_threads(1)
def plain(path):
    if path.endswith(".safetensors"):
        from safetensors.torch import load_file
        tensors = load_file(path)
    else:
        tensors = torch.load(path)
    for t in tensors.values():
        t = t.float()
        [f(t).item() for f in (torch.mean, torch.std, torch.min, torch.max, torch.norm)]
        [f(t).sum().item() for f in (torch.isnan, torch.isinf)], (t == 0).sum().item()
times = []
for path in ({small!r}, {large!r}):
    start = time.perf_counter()
    plain(path)
    times.append(time.perf_counter() - start)
print(json.dumps([times, peak_mib()]))
"""


def write(directory: Path, kind: str, dtype: str, mib: int) -> str:
    """Write one checkpoint of normally distributed tensors of 16 Mi elements each."""
    import torch
    from safetensors.torch import save_file

    torch.manual_seed(0)
    base = torch.randn(4096, TENSOR_ELEMENTS // 4096).to(getattr(torch, dtype))
    n = max(1, mib * 2**20 // (base.numel() * base.element_size()))
    tensors = {f"layers.{i}.weight": base.roll(i, 0).contiguous() for i in range(n)}
    path = directory / f"{dtype}-{mib}.{'safetensors' if kind == 'safetensors' else 'pt'}"
    if kind == "safetensors":
        save_file(tensors, path)
    else:
        torch.save(tensors, path)
    return str(path)


def cat_seconds(path: str) -> float:
    """Time `cat path > /dev/null` as a whole process."""
    start = time.perf_counter()
    subprocess.run(["cat", path], stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - start


def child(script: str) -> tuple[list[float], float]:
    """Run a script that prints [times, peak MiB]."""
    done = subprocess.run([sys.executable, "-c", PEAK + script], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"a measured process failed with status {done.returncode}:\n{done.stderr}")
    times, peak = json.loads(done.stdout.splitlines()[-1])
    return times, peak


def measure(small: str, large: str, repeats: int, *, with_plain: bool) -> dict[str, float]:
    """Return seconds per GiB and ratios for one kind of file; `cat` and we take turns, medians of the slopes count."""
    gib = (os.path.getsize(large) - os.path.getsize(small)) / 2**30
    ours: list[float] = []
    cats: list[float] = []
    peaks: list[float] = []
    for _ in range(repeats):
        times, peak = child(MEASURE.format(root=str(ROOT), small=small, large=large, repeats=1))
        ours.append((times[1] - times[0]) / gib)
        peaks.append(peak)
        cats.append((cat_seconds(large) - cat_seconds(small)) / gib)
    whole_start = time.perf_counter()
    child(MEASURE.format(root=str(ROOT), small=large, large=large, repeats=0))
    row = {
        "ours_seconds_per_gib": statistics.median(ours),
        "cat_seconds_per_gib": statistics.median(cats),
        "ratio_to_cat": statistics.median(ours) / statistics.median(cats),
        "whole_process_seconds": time.perf_counter() - whole_start,
        "whole_cat_seconds": cat_seconds(large),
        "peak_mib": max(peaks),
    }
    if with_plain:
        times, peak = child(PLAIN.format(small=small, large=large))
        row["plain_seconds_per_gib"] = (times[1] - times[0]) / gib
        row["times_faster_than_plain"] = row["plain_seconds_per_gib"] / row["ours_seconds_per_gib"]
        row["plain_peak_mib"] = peak
        row["memory_share_of_plain"] = row["peak_mib"] / peak
    return row


def main() -> None:
    """Measure every kind, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--large-mib", type=int, default=2048)
    parser.add_argument("--small-mib", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--directory", default=None)
    parser.add_argument("--without-plain", action="store_true")
    arguments = parser.parse_args()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    load_before = os.getloadavg()[0]
    rows: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory(dir=arguments.directory) as name:
        for kind, dtype in (
            ("safetensors", "float32"),
            ("torch_zip", "float32"),
            ("safetensors", "bfloat16"),
            ("safetensors", "float16"),
            ("safetensors", "float64"),
        ):
            sizes = (arguments.small_mib, arguments.large_mib)
            small, large = (write(Path(name), kind, dtype, mib) for mib in sizes)
            with_plain = dtype in ("float32", "bfloat16") and not arguments.without_plain
            rows[f"{kind} {dtype}"] = measure(small, large, arguments.repeats, with_plain=with_plain)
            for path in (small, large):
                Path(path).unlink()
            show(f"{kind} {dtype}", rows[f"{kind} {dtype}"])
    results = ROOT / "benchmarks" / "results"
    results.mkdir(exist_ok=True)
    document = {
        "date": datetime.datetime.now(tz=datetime.UTC).date().isoformat(),
        "machine": f"{platform.machine()} {platform.system()}, {os.cpu_count()} processors",
        "load": [load_before, os.getloadavg()[0]],  # above 1 before we began, the figures are not worth much
        "large_mib": arguments.large_mib,
        "rows": rows,
    }
    (results / "throughput.json").write_text(json.dumps(document, indent=2) + "\n")


def show(name: str, row: dict[str, float]) -> None:
    """Print one line of the table."""
    plain = ""
    if "plain_seconds_per_gib" in row:
        plain = (
            f" | plain {row['plain_seconds_per_gib']:6.3f} s/GiB, {row['times_faster_than_plain']:5.1f} times slower,"
            f" {row['plain_peak_mib']:6.0f} MiB"
        )
    print(
        f"{name:22} | ours {row['ours_seconds_per_gib']:.3f} s/GiB | cat {row['cat_seconds_per_gib']:.3f} s/GiB"
        f" | ratio {row['ratio_to_cat']:.2f} | whole process {row['whole_process_seconds']:.2f} s"
        f" (cat {row['whole_cat_seconds']:.2f}) | {row['peak_mib']:.0f} MiB{plain}",
        flush=True,
    )


if __name__ == "__main__":
    main()
