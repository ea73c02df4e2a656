"""A trainer that overwrites one file in place without pause, and what a daemon delivers from it."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from monitor.measure.workers import PoolOptions, WorkerError, WorkerPool
from monitor.read.bounded_file import open_bounded
from monitor.read.reader import ReadError
from monitor.watch.names import NameRules
from monitor.watch.scanner import Scanner
from monitor.watch.settle import Settled, SettlePolicy, Tracker
from storage.records import Checkpoint, Problem, ProblemKind

SIZE_BYTES = 1 << 20
PIECE_BYTES = 1 << 16
SETTLE_SECONDS = 0.06  # longer than the 4 ms tick of older kernels' time stamps

# Every version of the file holds one number only, so that a mixture of two versions is easy to tell. Between two
# bursts the writer rests for long enough to settle, and then begins again while somebody may be reading.
WRITER = textwrap.dedent(f"""
    import itertools, os, random, sys, time
    import numpy as np
    random.seed(5)
    path = sys.argv[1]
    np.save(path, np.zeros({SIZE_BYTES} // 4, np.float32))
    print("ready", flush=True)
    header = os.path.getsize(path) - {SIZE_BYTES}
    with open(path, "r+b", buffering=0) as stream:
        for version in itertools.count(1):
            data = np.full({PIECE_BYTES} // 4, version, np.float32).tobytes()
            for offset in range(0, {SIZE_BYTES}, {PIECE_BYTES}):
                stream.seek(header + offset)
                stream.write(data)
                time.sleep(0.001)
            time.sleep(random.choice([0.0, 0.1, 0.15, 0.6]))
""")


@pytest.fixture
def overwritten(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "ckpt.npy"
    with subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "ready\n"
        yield path
        writer.kill()


class Watching:
    """Scanner and tracker on one directory; yields what settles until told enough."""

    def __init__(self, directory: Path) -> None:
        self.scanner = Scanner(str(directory), NameRules.compile())
        policy = SettlePolicy(settle_seconds=SETTLE_SECONDS, retry_seconds_min=0.01)
        self.tracker = Tracker(run_of=lambda root, path: "r", policy=policy)

    def next(self) -> Checkpoint:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            self.tracker.observe(self.scanner.scan(time.time()), time.time())
            for decision in self.tracker.ready(time.time()):
                assert isinstance(decision, Settled)
                return decision.checkpoint
            time.sleep(0.005)
        raise AssertionError("nothing settled")

    def fail(self, checkpoint: Checkpoint, kind: ProblemKind) -> None:
        self.tracker.fail(checkpoint, Problem(kind=kind, message="m"), time.time())


def test_a_read_that_passes_the_stat_bracket_never_mixes_two_versions(overwritten: Path) -> None:
    watching = Watching(overwritten.parent)
    delivered: list[set[float]] = []
    kinds: set[ProblemKind] = set()
    n_torn_and_refused = 0
    deadline = time.monotonic() + 60
    while (len(delivered) < 5 or n_torn_and_refused < 3) and time.monotonic() < deadline:
        checkpoint = watching.next()
        values: list[bytes] = []
        try:
            with open_bounded(checkpoint.path) as file:
                header = file.size_bytes - SIZE_BYTES
                for offset in range(0, SIZE_BYTES, PIECE_BYTES):
                    values.append(file.read(header + offset, PIECE_BYTES))
                    time.sleep(0.01)  # a slow reader meets the writer often
                file.verify_unchanged()
        except ReadError as error:
            kinds.add(error.kind)
            n_torn_and_refused += len(versions(values)) > 1
            watching.fail(checkpoint, error.kind)
        else:
            delivered.append(versions(values))
            watching.tracker.succeed(checkpoint)
    assert all(len(found) == 1 for found in delivered)
    assert len(set.union(*delivered)) == len(delivered)  # and no version was delivered twice
    assert kinds == {ProblemKind.CHANGED}
    assert n_torn_and_refused >= 3  # the test met what it is about


def test_a_measurement_of_a_file_that_is_overwritten_meanwhile_is_never_delivered(overwritten: Path) -> None:
    watching = Watching(overwritten.parent)
    ranges: list[tuple[float, float]] = []
    kinds: list[ProblemKind] = []
    payload = {"path": str(overwritten), "options": {"chunk_bytes": PIECE_BYTES}, "bytes_per_second": 3_000_000}
    deadline = time.monotonic() + 90
    with WorkerPool(PoolOptions()) as pool:
        pool.submit("measure", {"path": str(overwritten)}).exception(timeout=90)  # compiles, outside the loop
        while (len(ranges) < 3 or len(kinds) < 3) and time.monotonic() < deadline:
            checkpoint = watching.next()
            try:
                result = pool.submit("measure", payload).result(timeout=60)
            except WorkerError as error:
                kinds.append(error.problem.kind)
                watching.fail(checkpoint, error.problem.kind)
            else:
                (tensor,) = result["tensors"]
                ranges.append((tensor["min"], tensor["max"]))
                watching.tracker.succeed(checkpoint)
    assert all(low == high for low, high in ranges)
    assert len(ranges) >= 3
    assert set(kinds) == {ProblemKind.CHANGED}
    assert len(kinds) >= 3


def versions(values: list[bytes]) -> set[float]:
    return {float(v) for piece in values for v in np.unique(np.frombuffer(piece, np.float32))}
