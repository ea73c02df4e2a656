"""How fast checkpoints are measured, beside `cat` and beside the plain torch way, in one run on one core.

    python -m benchmarks.throughput [--large-mib 2048] [--small-mib 256] [--repeats 5] [--directory /tmp]

The marginal cost is the slope between a small and a large file of the same kind: what one more byte costs, without
starting an interpreter. `cat` and we take turns, and the medians of the slopes count. The plain way (load, then eight
statistics a tensor) is compared on the small file, median against median of as many repeats, and once on the large
one, for its memory. Cost is shown to be linear by a fit through three sizes. Files are in the page cache and one thread
works, so CPU time is what an idle machine takes, and means the same on a busy one; only whole processes are timed by
the clock.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.figures import Figure, median, publish

ROOT = Path(__file__).resolve().parent.parent
TENSOR_ELEMENTS = 16 * 2**20
KINDS = (
    ("safetensors", "float32", 1.5),
    ("torch_zip", "float32", 1.5),
    ("safetensors", "bfloat16", 2.0),
    ("safetensors", "float16", None),
    ("safetensors", "float64", None),
)
WITH_PLAIN = ("float32", "bfloat16")
LINEAR = ("safetensors", "float32")

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
paths = {paths!r}
measure_path(paths[0], MeasureOptions())  # loads or compiles the kernel
times = []
for path in paths:
    start = time.process_time()
    measure_path(path, MeasureOptions())
    times.append(time.process_time() - start)
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
for path in {paths!r}:
    start = time.process_time()
    plain(path)
    times.append(time.process_time() - start)
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
    os.sync()  # the kernel does not write it back while we measure
    return str(path)


def cat_seconds(path: str) -> float:
    """Return the CPU time of `cat path > /dev/null` as a whole process."""
    with subprocess.Popen(["cat", path], stdout=subprocess.DEVNULL) as process:
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"cat {path} failed")
    return usage.ru_utime + usage.ru_stime


def child(script: str) -> tuple[list[float], float]:
    """Run a script that prints [times, peak MiB]."""
    done = subprocess.run([sys.executable, "-c", PEAK + script], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"a measured process failed with status {done.returncode}:\n{done.stderr}")
    times, peak = json.loads(done.stdout.splitlines()[-1])
    return times, peak


def ours(*paths: str) -> tuple[list[float], float]:
    """Return the seconds that each path took in one process, and its peak of memory in MiB."""
    return child(MEASURE.format(root=str(ROOT), paths=list(paths)))


def measure(name: str, files: tuple[str, str], repeats: int, target: float | None) -> list[Figure]:
    """Compare with `cat`: slopes between the small and the large file, taking turns."""
    small, large = files
    gib = (os.path.getsize(large) - os.path.getsize(small)) / 2**30
    slopes: list[float] = []
    cats: list[float] = []
    peaks: list[float] = []
    for _ in range(repeats):
        times, peak = ours(small, large)
        slopes.append((times[1] - times[0]) / gib)
        peaks.append(peak)
        cats.append((cat_seconds(large) - cat_seconds(small)) / gib)
    start = time.perf_counter()
    child(MEASURE.format(root=str(ROOT), paths=[large]).replace("measure_path(paths[0], MeasureOptions())", "pass", 1))
    whole = time.perf_counter() - start
    return [
        Figure(what=f"{name}: times `cat`", measured=median(slopes) / median(cats), unit="x", target=target),
        Figure(what=f"{name}: a GiB more", measured=median(slopes), unit="s CPU"),
        Figure(what=f"{name}: `cat` of a GiB more", measured=median(cats), unit="s CPU"),
        Figure(what=f"{name}: whole process, large file", measured=whole, unit="s"),
        Figure(what=f"{name}: peak memory", measured=max(peaks), unit="MiB", target=250),
    ]


def compare_plain(name: str, files: tuple[str, str], repeats: int) -> list[Figure]:
    """Compare with the plain way: time on the small file, taking turns, and peak memory on the large one."""
    small, large = files
    mine: list[float] = []
    plain: list[float] = []
    for _ in range(repeats):
        mine += ours(small)[0]
        plain += child(PLAIN.format(paths=[small]))[0]
    peak, plain_peak = ours(large)[1], child(PLAIN.format(paths=[large]))[1]
    faster = median(plain) / median(mine)
    return [
        Figure(what=f"{name}: times faster than plain torch", measured=faster, unit="x", target=20, at_least=True),
        Figure(what=f"{name}: share of its memory", measured=peak / plain_peak, unit="", target=0.2),
    ]


def linearity(name: str, paths: list[str], repeats: int) -> Figure:
    """Fit a line through the medians of three sizes; return how far they lie off it, relative to the largest."""
    times = [ours(*paths)[0] for _ in range(repeats)]
    seconds = np.median(np.array(times), axis=0)
    sizes = np.array([os.path.getsize(path) for path in paths]) / 2**30
    off = seconds - np.polyval(np.polyfit(sizes, seconds, 1), sizes)
    share = float(100 * np.abs(off).max() / seconds.max())
    return Figure(what=f"{name}: three sizes, off a straight line", measured=share, unit="%", target=5)


def main() -> None:
    """Measure every kind, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--large-mib", type=int, default=2048)
    parser.add_argument("--small-mib", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--directory", default=None)
    parser.add_argument("--without-plain", action="store_true")
    parser.add_argument("--only", metavar="KIND", default="", help='such as "safetensors bfloat16"')
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    figures: list[Figure] = []
    with tempfile.TemporaryDirectory(dir=arguments.directory) as directory:
        for kind, dtype, target in KINDS:
            name = f"{kind} {dtype}"
            if arguments.only not in name:
                continue
            sizes = (arguments.small_mib, arguments.large_mib)
            small, large = (write(Path(directory), kind, dtype, mib) for mib in sizes)
            figures += measure(name, (small, large), arguments.repeats, target)
            if dtype in WITH_PLAIN and kind == "safetensors" and not arguments.without_plain:
                figures += compare_plain(name, (small, large), arguments.repeats)
            if (kind, dtype) == LINEAR:
                middle = write(Path(directory), kind, dtype, (arguments.small_mib + arguments.large_mib) // 2)
                figures.append(linearity(name, [small, middle, large], arguments.repeats))
                Path(middle).unlink()
            for path in (small, large):
                Path(path).unlink()
    publish(figures, arguments.json, large_mib=arguments.large_mib, repeats=arguments.repeats)


if __name__ == "__main__":
    main()
