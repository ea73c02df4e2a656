"""Which waiting checkpoint makes an older one of its run not worth reading."""

from __future__ import annotations

import pytest

from monitor.watch.scanner import ScanResult
from monitor.watch.settle import Settled, SettlePolicy, Tracker
from storage.records import Checkpoint, FileStat

ROOT = "/r"
NOW = 5000.0


def file(name: str, mtime: float, inode: int) -> FileStat:
    return FileStat(path=f"{ROOT}/{name}", device=1, inode=inode, size_bytes=10, mtime_ns=int(mtime * 1e9))


def tracker_of(*names: tuple[str, float]) -> Tracker:
    files = [file(name, mtime, inode) for inode, (name, mtime) in enumerate(names)]
    by_path = {f.path: f for f in files}
    made = Tracker(
        run_of=lambda root, path: path.removeprefix(f"{root}/").partition("/")[0],
        policy=SettlePolicy(settle_seconds=2.0),
        stat=by_path.get,
    )
    made.observe(
        ScanResult(
            root=ROOT,
            entries=tuple(files),
            problems=(),
            held_back=(),
            truncated=False,
            complete=True,
            n_names=0,
            n_listed=0,
        ),
        NOW - 100.0,
    )
    return made


def oldest(made: Tracker) -> Checkpoint:
    (handed,) = made.ready(NOW, limit=1)
    assert isinstance(handed, Settled)
    return handed.checkpoint


@pytest.mark.parametrize(
    ("first", "second", "is_superseded"),
    [
        (("a/step-1.pt", 1000.0), ("a/step-2.pt", 1100.0), True),
        (("a/model.pt", 1000.0), ("a/other.pt", 1100.0), True),
        (("a/step-1.pt", 1000.0), ("b/step-2.pt", 1100.0), False),
        (("a/step-2.pt", 1000.0), ("a/step-1.pt", 1100.0), False),
        (("a/step-2.pt", 1000.0), ("a/step-2.optimizer.pt", 1100.0), False),
        (("a/step-2.pt", 1000.0), ("a/last.pt", 1100.0), False),
        (("a/last.pt", 1000.0), ("a/step-2.pt", 1100.0), False),
        (("a/step-1.pt", 1000.0), ("a/step-2.pt", NOW - 1.0), False),
    ],
    ids=[
        "a larger step",
        "no steps",
        "another run",
        "a restart",
        "another part of the same step",
        "a copy under another name",
        "a step after a copy",
        "one that has not settled",
    ],
)
def test_a_checkpoint_is_superseded_by_a_later_one_of_its_run_alone(
    first: tuple[str, float], second: tuple[str, float], is_superseded: bool
) -> None:
    made = tracker_of(first, second)
    checkpoint = oldest(made)
    assert checkpoint.path == f"{ROOT}/{first[0]}"
    newer = made.newer_than(checkpoint, NOW)
    assert (None if newer is None else newer.path) == (f"{ROOT}/{second[0]}" if is_superseded else None)


def test_what_is_stored_or_being_read_supersedes_nothing() -> None:
    made = tracker_of(("a/step-1.pt", 1000.0), ("a/step-2.pt", 1100.0), ("a/step-3.pt", 1200.0))
    first, second = oldest(made), oldest(made)
    made.succeed(second)
    third = oldest(made)
    assert made.newer_than(first, NOW) is None
    made.release(third, NOW)
    made.ready(NOW, limit=0)
    newer = made.newer_than(first, NOW)
    assert newer is not None
    assert newer.path == third.path
