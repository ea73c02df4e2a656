"""Damage valid checkpoints of every format at random, and see that no reader does what none may do.

`python -m tests.hostile.fuzz [--seconds N] [--seed N] [--formats A,B] [--keep DIRECTORY]`: every format for N seconds.
Prints the seed and each finding, keeps the input of each below DIRECTORY, and ends with 1 if there is one.
"""

from __future__ import annotations

import argparse
import json
import os
import select
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from tests.hostile.fuzz_reader import chosen, put
from tests.hostile.seeds import load, write_all
from tests.support.daemons import REPOSITORY, clean_environment

INPUT_SECONDS_MAX = 10.0
START_SECONDS_MAX = 60.0
BATCH = 2000
FINDINGS_MAX = 40  # of one format and run: more say the same again


@dataclass
class Campaign:
    """What came of one format."""

    n_inputs: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    findings: dict[int, str] = field(default_factory=dict)


def fuzz(
    seeds: Path,
    format_name: str,
    *,
    seed_number: int,
    n_inputs_max: int,
    directory: Path,
    may_go_on: Callable[[], bool] = lambda: True,
) -> Campaign:
    """Read damaged checkpoints of a format in child processes until `n_inputs_max` or `may_go_on` says no."""
    campaign = Campaign()
    while campaign.n_inputs < n_inputs_max and may_go_on() and len(campaign.findings) < FINDINGS_MAX:
        count = min(BATCH, n_inputs_max - campaign.n_inputs)
        arguments = (str(seeds), format_name, str(seed_number), str(campaign.n_inputs), str(count), str(directory))
        with subprocess.Popen(
            [sys.executable, "-m", "tests.hostile.fuzz_reader", *arguments],
            cwd=REPOSITORY,
            env=clean_environment(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", PYTHONWARNINGS="ignore"),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        ) as child:
            try:
                _follow(child, campaign, may_go_on)
            finally:
                child.kill()
    return campaign


def _follow(child: subprocess.Popen[bytes], campaign: Campaign, may_go_on: Callable[[], bool]) -> None:
    """Take the lines of a child; note what it was at when it died or hung."""
    assert child.stdout is not None
    assert child.stderr is not None
    current: int | None = None
    pending = b""
    while True:
        seconds = START_SECONDS_MAX if current is None else INPUT_SECONDS_MAX
        ready = select.select([child.stdout], [], [], seconds)[0]
        data = os.read(child.stdout.fileno(), 1 << 16) if ready else b""
        if not data:
            why = "it ended by itself" if ready else f"it took more than {seconds:.0f} s"
            if ready:
                why += f" with {child.wait()}: {child.stderr.read().decode(errors='replace')[-500:]}"
            if current is None:
                raise AssertionError(f"the reading process never began: {why}")
            campaign.findings.setdefault(current, why)
            campaign.n_inputs = current + 1
            return
        *lines, pending = (pending + data).split(b"\n")
        for line in lines:
            word, _, rest = line.decode().partition(" ")
            if word == "begin":
                current = int(rest)
                campaign.n_inputs = current + 1
            elif word == "bad":
                number, _, reason = rest.partition(" ")
                campaign.findings.setdefault(int(number), reason)
            elif word == "end":
                campaign.kinds.update(json.loads(rest))
                return
        if not may_go_on():
            return


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=30.0, help="for each format")
    parser.add_argument("--seed", type=int, default=int.from_bytes(os.urandom(4)))
    parser.add_argument("--formats", default="")
    parser.add_argument("--seeds", type=Path, default=Path(tempfile.gettempdir()) / f"ckptwatch-seeds-{os.getuid()}")
    parser.add_argument("--keep", type=Path, default=Path(tempfile.gettempdir()) / f"ckptwatch-found-{os.getuid()}")
    options = parser.parse_args()
    write_all(options.seeds)
    written = load(options.seeds)
    print(f"seed {options.seed}", flush=True)
    n_findings = n_inputs = 0
    for name in options.formats.split(",") if options.formats else sorted(written):
        until = time.monotonic() + options.seconds
        with tempfile.TemporaryDirectory() as directory:
            campaign = fuzz(
                options.seeds,
                name,
                seed_number=options.seed,
                n_inputs_max=sys.maxsize,
                directory=Path(directory),
                may_go_on=lambda until=until: time.monotonic() < until,  # type: ignore[misc]
            )
        n_inputs += campaign.n_inputs
        n_findings += len(campaign.findings)
        print(
            f"{name}: {campaign.n_inputs} inputs, {len(campaign.findings)} findings, {dict(campaign.kinds)}", flush=True
        )
        for number, reason in campaign.findings.items():
            seed, files = chosen(written[name], options.seed, number)
            kept = options.keep / f"{name}-{options.seed}-{number}"
            put(kept, {**seed.files, **files})
            print(f"  {kept}/{seed.target}: {reason}", flush=True)
    print(f"{n_inputs} inputs, {n_findings} findings")
    return 1 if n_findings else 0


if __name__ == "__main__":
    sys.exit(main())
