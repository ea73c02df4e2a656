"""How much a real training loop is slowed down by measuring its checkpoints, beside controls that must be noticed.

    python -m benchmarks.co_running [--rounds 8] [--block-seconds 4]

A small torch model trains on all cores and saves a checkpoint in every block. Blocks come in the order A B B A: in A
nobody looks, in B the daemon's worker pool measures what was saved, as often as the daemon would. The figure is the
ratio of step times B to A, pair by pair, with the upper end of a bootstrap interval of 95 %, for the median and the
99th percentile of a block. The same is done with an unthrottled reader through mmap and with eight busy threads, both
at nice 0: a benchmark that does not see those slow the training down would prove nothing, so there the LOWER end has to
be above what is allowed to us.
"""

from __future__ import annotations

import argparse
import mmap
import multiprocessing
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from benchmarks.figures import Figure, publish
from monitor.measure.options import MeasureOptions
from monitor.measure.workers import WorkerPool

CHECKPOINT_ELEMENTS = 16 * 2**20  # 64 MiB
RESAMPLES = 4000
SLOWDOWN_MAX, SLOWDOWN_P99_MAX = 1.0, 3.0  # percent

Block = tuple[float, float]  # median and 99th percentile of the step times
Treatment = Callable[[Path], AbstractContextManager[None]]


class Training:
    """A real loop: forward, backward, step; `block` runs it for a while and returns its step times."""

    def __init__(self, checkpoint: Path) -> None:
        torch.manual_seed(0)
        torch.set_num_threads(os.cpu_count() or 1)
        self._model = torch.nn.Sequential(torch.nn.Linear(512, 1024), torch.nn.ReLU(), torch.nn.Linear(1024, 10))
        self._optimizer = torch.optim.AdamW(self._model.parameters())
        self._inputs, self._targets = torch.randn(256, 512), torch.randint(0, 10, (256,))
        self._weights = {"weight": torch.randn(CHECKPOINT_ELEMENTS)}
        self._checkpoint = checkpoint

    def save(self) -> None:
        """Save a checkpoint under its name at once, as careful trainers do."""
        temporary = self._checkpoint.with_suffix(".tmp")
        torch.save(self._weights, temporary)
        os.replace(temporary, self._checkpoint)

    def block(self, seconds: float) -> Block:
        """Train for so long; return median and 99th percentile of the seconds that a step took."""
        times: list[float] = []
        end = time.perf_counter() + seconds
        while (begun := time.perf_counter()) < end:
            self._optimizer.zero_grad()
            loss: torch.Tensor = torch.nn.functional.cross_entropy(self._model(self._inputs), self._targets)
            loss.backward()  # type: ignore[no-untyped-call]
            self._optimizer.step()
            times.append(time.perf_counter() - begun)
        return float(np.median(times)), float(np.quantile(times, 0.99))


@contextmanager
def repeated(work: Callable[[], object], pause_seconds: float) -> Iterator[None]:
    """Run `work` again and again in a thread, with a pause between."""
    stop = threading.Event()

    def loop() -> None:
        while not stop.wait(pause_seconds):
            work()

    thread = threading.Thread(target=loop)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def measured_by(pool: WorkerPool, pause_seconds: float) -> Treatment:
    """Return what we do: a confined worker measures the newest checkpoint, once in `pause_seconds`."""

    def treat(checkpoint: Path) -> AbstractContextManager[None]:
        payload = {"path": str(checkpoint), "options": {"chunk_bytes": MeasureOptions().chunk_bytes}}
        return repeated(lambda: pool.submit("measure", payload).result(), pause_seconds)

    return treat


def read_by_mmap(path: str) -> None:
    """Sum the file up through a mapping, again and again, until we are ended."""
    with open(path, "rb") as file:
        while True:
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
                values: npt.NDArray[np.uint8] = np.frombuffer(mapped, np.uint8)
                values.sum(dtype=np.int64)
                del values


def burn() -> None:
    """Keep one core busy until we are ended."""
    values = np.ones(2**16)
    while True:
        np.sqrt(values, out=values)


@contextmanager
def processes(target: Callable[..., None], n: int, *arguments: str) -> Iterator[None]:
    """Keep so many processes running, at the priority of the training."""
    context = multiprocessing.get_context("spawn")
    running = [context.Process(target=target, args=arguments, daemon=True) for _ in range(n)]
    for process in running:
        process.start()
    time.sleep(1.0)
    try:
        yield
    finally:
        for process in running:
            process.kill()
            process.join()


def pairs(
    training: Training, checkpoint: Path, treat: Treatment, rounds: int, seconds: float
) -> npt.NDArray[np.float64]:
    """Return log ratios of step times with and without, shape (2 * rounds, 2): median and 99th percentile."""
    ratios = []
    for _ in range(rounds):
        blocks = []
        for treated in (False, True, True, False):
            training.save()
            if treated:
                with treat(checkpoint):
                    blocks.append(training.block(seconds))
            else:
                blocks.append(training.block(seconds))
        first, second, third, fourth = np.log(np.array(blocks))
        ratios += [second - first, third - fourth]
    return np.array(ratios)


def interval(ratios: npt.NDArray[np.float64]) -> tuple[float, float, float]:
    """Return (lower, middle, upper) slowdown in percent: the median over pairs, and its bootstrap interval of 95 %."""
    random = np.random.default_rng(0)
    drawn = ratios[random.integers(0, ratios.size, (RESAMPLES, ratios.size))]
    low, high = np.quantile(np.median(drawn, axis=1), (0.025, 0.975))
    percent = 100 * np.expm1(np.array([low, np.median(ratios), high]))
    return float(percent[0]), float(percent[1]), float(percent[2])


def main() -> None:
    """Train under each treatment, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=8, help="of four blocks; the controls get a quarter")
    parser.add_argument("--block-seconds", type=float, default=4.0)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    seconds, figures = arguments.block_seconds, []
    with tempfile.TemporaryDirectory() as directory, WorkerPool() as pool:
        checkpoint = Path(directory) / "model.pt"
        training = Training(checkpoint)
        training.save()
        pool.submit("measure", {"path": str(checkpoint)}).result()
        training.block(seconds)  # whatever is slow at first
        found = pairs(training, checkpoint, measured_by(pool, seconds / 2), arguments.rounds, seconds)
        for column, what, target in ((0, "median", SLOWDOWN_MAX), (1, "p99", SLOWDOWN_P99_MAX)):
            low, middle, high = interval(found[:, column])
            name = f"training slowed down, {what} step"
            figures += [
                Figure(what=f"{name}: upper 95 % bound", measured=high, unit="%", target=target),
                Figure(what=f"{name}: estimate", measured=middle, unit="%"),
                Figure(what=f"{name}: lower bound", measured=low, unit="%"),
            ]
        controls: tuple[tuple[str, Treatment], ...] = (
            ("unthrottled mmap reader", lambda path: processes(read_by_mmap, 1, str(path))),
            ("eight busy threads", lambda path: processes(burn, 8)),  # noqa: ARG005
        )
        for name, treat in controls:
            found = pairs(training, checkpoint, treat, max(2, arguments.rounds // 4), seconds)
            low, _, _ = interval(found[:, 0])
            figures.append(
                Figure(
                    what=f"control, {name}: lower bound must show",
                    measured=low,
                    unit="%",
                    target=SLOWDOWN_MAX,
                    at_least=True,
                )
            )
    publish(figures, arguments.json, rounds=arguments.rounds, block_seconds=seconds)


if __name__ == "__main__":
    main()
