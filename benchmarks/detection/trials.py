"""One trial: a training with or without a fault, watched from its first checkpoint to its last.

A trial is named by plain text and numbers, so that it can be run in another process, and its result is plain facts.
"""

from __future__ import annotations

import random
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.detection import sagemaker, sklearn_training
from benchmarks.detection.faults import FAULTS, Fault
from benchmarks.detection.settings import SETTINGS, Setting
from benchmarks.detection.sklearn_training import Estimator
from benchmarks.detection.training import Seen, train
from benchmarks.detection.watching import Fired, Watch


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """What to train: `fault` "" is a sound training."""

    setting: str
    fault: str
    seed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What was seen. `first_bad` is the first checkpoint, from 1, that the fault could have touched; None if sound."""

    trial: Trial
    held_out: bool
    n_checkpoints: int
    first_bad: int | None
    alerts: tuple[Fired, ...]
    debugger: tuple[Fired, ...]


def planned(seeds: Sequence[int], *, one_in: int) -> list[Trial]:
    """Return every setting without a fault for each seed, and with one in so many of the faults that apply to it.

    Which ones changes with the seed, so that as many seeds try all pairs.
    """
    trials = []
    for seed in seeds:
        for place, setting in enumerate(SETTINGS):
            trials.append(Trial(setting=setting.name, fault="", seed=seed))
            trials += [
                Trial(setting=setting.name, fault=fault.name, seed=seed)
                for number, fault in enumerate(f for f in FAULTS if f.applies(setting))
                if (place + number) % one_in == seed % one_in
            ]
    return trials


def run(trial: Trial) -> Result:
    """Train and watch in a temporary directory."""
    torch.set_num_threads(1)
    setting = next(s for s in SETTINGS if s.name == trial.setting)
    fault = next((f for f in FAULTS if f.name == trial.fault), None)
    with tempfile.TemporaryDirectory(prefix="ckptwatch-detection-") as name:
        directory = Path(name) / "run"
        directory.mkdir()
        with Watch(directory, Path(name) / "watch.db") as watch:
            first_bad, seen = _train(setting, fault, trial.seed, directory, watch)
            return Result(
                trial=trial,
                held_out=setting.held_out,
                n_checkpoints=watch.n_checkpoints,
                first_bad=first_bad,
                alerts=tuple(watch.fired),
                debugger=tuple(Fired(rule=r, severity="warning", checkpoint=c) for r, c in sagemaker.alarms(seen)),
            )


def _train(
    setting: Setting, fault: Fault | None, seed: int, directory: Path, watch: Watch
) -> tuple[int | None, list[Seen]]:
    seen: list[Seen] = []
    struck: list[int] = []

    def saved(path: Path, what: Seen) -> None:
        watch.show(path)
        seen.append(what)

    def strike(job: Any) -> None:
        struck.append(watch.n_checkpoints + 1)
        assert fault is not None
        (sklearn_training.FAULTS[fault.name] if isinstance(job, Estimator) else fault.strike)(job)

    n = setting.plan.n_checkpoints
    middle = random.Random(f"{setting.name} {seed}").randint(4 * n // 9, 2 * n // 3)
    torch.manual_seed(seed)
    job = setting.build(seed)
    when: dict[str, Any] = {
        "strike": strike if fault else None,
        "strike_after": 0 if fault and fault.at_start else middle,
        "saved": saved,
    }
    if isinstance(job, Estimator):
        sklearn_training.train(job, setting.plan, directory, **when)
    else:
        train(job, setting.plan, directory, **when)
    return (struck[0] if struck else None), seen
