"""The training loop of the acceptance tests in a process of its own, and the truth that it writes down."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from tests.support.daemons import DEADLINE_SECONDS, REPOSITORY, clean_environment, wait_for

LOOP = REPOSITORY / "tests" / "e2e" / "torch_loop.py"
BETA2 = 0.99
SAVE_EVERY = 5


class TrainingProcess:
    """The loop, told when to save."""

    def __init__(self, directory: Path, truth: Path, mode: str, *arguments: object, loop: Path = LOOP) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        truth.mkdir(parents=True, exist_ok=True)
        self.truth_directory = truth
        self.n_saves = 0
        self.process = subprocess.Popen(
            [sys.executable, str(loop), str(directory), str(truth), "--mode", mode, *map(str, arguments)],
            env=clean_environment(HF_HUB_OFFLINE="1", CUDA_VISIBLE_DEVICES=""),
            stdin=subprocess.PIPE,
            text=True,
        )

    def save(self) -> int:
        """Let the loop save once more, wait until it has, and return the step."""
        assert self.process.stdin is not None
        self.n_saves += 1
        step = self.n_saves * SAVE_EVERY
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        wait_for(f"the save at step {step}", lambda: self._has(step))
        return step

    def _has(self, step: int) -> bool:
        assert self.process.poll() in (None, 0), "the training loop failed"
        return (self.truth_directory / f"{step:06d}.json").exists()

    def finish(self) -> None:
        """Let the loop go on without pauses to its end."""
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        assert self.process.wait(DEADLINE_SECONDS) == 0

    def truths(self) -> dict[int, dict[str, Any]]:
        """Return what was true of every save so far, by step."""
        documents = [json.loads(path.read_text()) for path in sorted(self.truth_directory.glob("*.json"))]
        return {document["step"]: document for document in documents}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()


def window_norm(truths: Mapping[int, Mapping[str, Any]], step: int, window_steps: int) -> float:
    """Return the root of the mean of the squared gradient norms over the steps up to `step`, weighted as Adam does."""
    norms = [norm for at in sorted(truths) if at <= step for norm in truths[at]["squared_norms"]]
    window = norms[len(norms) - window_steps :]
    assert len(window) == window_steps
    weights = [BETA2**age for age in range(window_steps)]
    return math.sqrt(sum(w * g for w, g in zip(weights, reversed(window), strict=True)) / sum(weights))
